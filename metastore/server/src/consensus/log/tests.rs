use futures::TryStreamExt;
use openraft::EntryPayload;
use openraft::impls::leader_id_std::LeaderId;
use openraft::storage::RaftLogStorageExt;
use openraft::type_config::TypeConfigExt;
use proptest::prelude::any;
use redb::{ReadableTable, TableDefinition};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::*;
use crate::consensus::types::{Data, NodeId};
use crate::database;
use crate::directory::{LOG, STATE};
use crate::error::Error;
use crate::storage::{Beginning, Storage};
use crate::test_commands::{block_on, entry, log_id, put, while_it_hangs};
use crate::test_disk::TestFiles;

#[test]
fn what_queues_together_shares_a_sync() {
    block_on(async {
        let files = TestFiles::default();
        let mut log = open(&files).log;
        let before = files.syncs(LOG);
        log.blocking_append(entries(0..1)).await.unwrap();
        assert_eq!(files.syncs(LOG), before + 1, "one sync is enough");
        let mut appended = Vec::new();
        for index in 1..=200 {
            let (told, waits) = Types::oneshot();
            log.append(entries(index..index + 1), IOFlushed::signal(told)).await.unwrap();
            appended.push(waits);
        }
        let read = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(read, entries(0..201), "it is read before it is on disk");
        for appended in appended {
            appended.await.unwrap().unwrap();
        }
        // The file grows now and then, which is synced too.
        let syncs = files.syncs(LOG) - before;
        assert!((2..10).contains(&syncs), "{syncs} syncs");
    });
}

#[test]
fn nothing_is_written_after_a_failed_sync() {
    block_on(async {
        let files = TestFiles::default();
        let mut log = open(&files).log;
        log.blocking_append(entries(0..1)).await.unwrap();
        files.break_down(LOG);
        let refused = log.blocking_append(entries(1..2)).await.unwrap_err();
        assert!(refused.to_string().contains("broken"), "{refused}");
        files.mend(LOG);
        let refused = log.save_vote(&vote(1)).await.unwrap_err();
        assert!(refused.to_string().contains("broken"), "{refused}");
        log.blocking_append(entries(2..3)).await.unwrap_err();
        let mut left = open(&files.after_power_cut(&[false])).log;
        assert_eq!(left.try_get_log_entries(..).await.unwrap(), entries(0..1));
        assert_eq!(left.read_vote().await.unwrap(), None);
    });
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_answer_counts_as_broken() {
    let files = TestFiles::default();
    let storage = Storage::open(files.clone(), Executor::Threads, Beginning::Found).unwrap();
    let mut log = storage.log.clone();
    log.blocking_append(entries(0..1)).await.unwrap();
    let hanging = files.hang(LOG);
    let mut appended = log.clone();
    let appended = while_it_hangs(async move { appended.blocking_append(entries(1..2)).await });
    let refused = appended.await.unwrap_err();
    assert!(refused.to_string().contains("has not answered for 10s"), "{refused}");
    log.save_vote(&vote(1)).await.unwrap_err();
    while_it_hangs(async move { log.close().await }).await;
    drop(hanging);
}

#[test]
fn what_is_purged_is_never_taken_for_what_comes_after_it() {
    block_on(async {
        let mut log = open(&TestFiles::default()).log;
        log.blocking_append(entries(0..100)).await.unwrap();
        log.purge(log_id(1, 49)).await.unwrap();
        assert_eq!(log.limited_get_log_entries(49, 60).await.unwrap(), []);
        assert_eq!(log.limited_get_log_entries(50, 60).await.unwrap(), entries(50..60));
        for (start, end) in [(49, 60), (0, 10), (49, 50)] {
            let streamed = log.entries_stream(start..end).await.try_collect::<Vec<_>>().await;
            assert!(streamed.is_err(), "{start}..{end}: {streamed:?}");
        }
        let streamed = log.entries_stream(50..60).await.try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(streamed, entries(50..60));
    });
}

#[test]
fn old_entries_are_read_from_the_file_and_recent_ones_from_memory() {
    block_on(async {
        let end = RECENT_MAX as u64 + 1000;
        let files = TestFiles::default();
        let mut log = open(&files).log;
        for start in (0..end).step_by(500) {
            log.blocking_append(entries(start..end.min(start + 500))).await.unwrap();
        }
        let kept = log.shared.state().recent.len();
        assert!((RECENT_MAX - 500..=RECENT_MAX).contains(&kept), "{kept} are in memory");
        for range in [0..end, 10..20, 990..1010, end - 10..end + 10, end..end + 1, 7..7] {
            let read = log.try_get_log_entries(range.clone()).await.unwrap();
            assert_eq!(read, entries(range.start..range.end.min(end)), "{range:?}");
        }
        let streamed = log.entries_stream(5..end).await.try_collect::<Vec<_>>().await.unwrap();
        assert_eq!(streamed, entries(5..end));

        log.purge(log_id(1, 499)).await.unwrap();
        log.truncate_after(Some(log_id(1, 599))).await.unwrap();
        assert_eq!(log.try_get_log_entries(..).await.unwrap(), entries(500..600));
        log.blocking_append(vec![blank(2, 600)]).await.unwrap();
        assert_eq!(log.try_get_log_entries(599..).await.unwrap()[1], blank(2, 600));
        log.blocking_append(vec![blank(2, 602)]).await.unwrap_err();
    });
}

#[test]
fn a_read_to_be_sent_has_so_many_bytes_and_at_least_one_entry() {
    block_on(async {
        let mut log = open(&TestFiles::default()).log;
        let many = (0..40).map(|index| large(index, READ_BYTES_MAX / 4)).collect::<Vec<_>>();
        let huge = large(40, 2 * READ_BYTES_MAX);
        for entry in many.iter().chain([&huge]) {
            log.blocking_append([entry.clone()]).await.unwrap();
        }
        assert!(log.shared.state().recent.len() < 40, "some are read from the file");
        for start in [0, 35] {
            let read = log.limited_get_log_entries(start, 41).await.unwrap();
            assert_eq!(read.len(), 3, "from {start}");
            assert_eq!(read[0].log_id.index, start);
        }
        assert_eq!(log.limited_get_log_entries(40, 41).await.unwrap(), [huge]);
        assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 41);
    });
}

#[tokio::test]
async fn what_is_not_on_disk_is_read_from_memory_however_much_it_is() {
    let files = TestFiles::default();
    let mut log = Storage::open(files, Executor::Threads, Beginning::Found).unwrap().log;
    for index in 0..150 {
        log.append([large(index, 200_000)], IOFlushed::noop()).await.unwrap();
        let read = log.try_get_log_entries(index.saturating_sub(60)..).await.unwrap();
        assert_eq!(read.len() as u64, index.min(60) + 1, "at {index}");
    }
}

/// Readers see no hole and no entry of another place while the log is cut at both ends.
#[tokio::test]
async fn reads_are_whole_while_the_log_is_cut() {
    let files = TestFiles::default();
    let mut log = Storage::open(files, Executor::Threads, Beginning::Found).unwrap().log;
    let mut readers = JoinSet::new();
    for _ in 0..4 {
        let mut log = log.clone();
        readers.spawn(async move {
            loop {
                let read = log.try_get_log_entries(..).await.unwrap();
                let last = read.last().map(|entry| entry.log_id);
                assert!(read.is_sorted_by(|one, next| one.log_id.index + 1 == next.log_id.index));
                assert!(read.is_sorted_by_key(|entry| entry.log_id));
                if last.is_some_and(|last| last.index >= 2000) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        });
    }
    let mut next = 0;
    for term in 1..=100 {
        let entries = (next..next + 30).map(|index| large_of(term, index, 10_000));
        log.blocking_append(entries).await.unwrap();
        next += 21;
        log.truncate_after(Some(log_id(term, next - 1))).await.unwrap();
        if term % 10 == 0 {
            log.purge(log_id(term - 5, next - 106)).await.unwrap();
        }
    }
    while let Some(reader) = readers.join_next().await {
        reader.unwrap();
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(256))]

    /// No damage of the file is believed, and none is taken for the end of the log. After a kill
    /// only, the last commit may count as one that was cut short.
    #[test]
    fn flipped_bytes_are_found(
        place in any::<proptest::sample::Index>(),
        flip in 1..=255u8,
        killed: bool,
    ) {
        block_on(async {
            let files = TestFiles::default();
            let storage = open(&files);
            let mut log = storage.log.clone();
            log.save_vote(&vote(1)).await.unwrap();
            for index in 0..20 {
                log.blocking_append(entries(index..index + 1)).await.unwrap();
                if index == 10 {
                    log.purge(log_id(1, 4)).await.unwrap();
                }
            }
            let member = storage.member.clone();
            let files = if killed { files.after_power_cut(&[true]) } else { files };
            storage.close().await;
            let mut bytes = files.bytes(LOG).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= flip;
            files.set_bytes(LOG, bytes);
            match Storage::open(files, Executor::Inline, Beginning::Found) {
                Ok(mut storage) => {
                    assert_eq!(storage.member, member);
                    assert_eq!(storage.log.read_vote().await.unwrap(), Some(vote(1)));
                    let read = storage.log.try_get_log_entries(..).await.unwrap();
                    let whole = read == entries(5..20) || killed && read == entries(5..19);
                    assert!(whole, "byte {place}: {} entries", read.len());
                }
                Err(Error::NotAMetastore { why }) => assert!(why.contains(LOG), "{why}"),
                Err(Error::NewerFormat { .. }) => {}
                Err(error) => panic!("byte {place}: {error}"),
            }
        });
    }
}

#[test]
fn damaged_misplaced_and_missing_records_are_named() {
    const ENTRIES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("entries");
    type Change = fn(&mut redb::Table<'_, u64, &'static [u8]>);
    let changes: [(Change, &str); 5] = [
        (|entries| drop(entries.remove(7).unwrap()), "no entry 7"),
        (|entries| drop(entries.remove(0).unwrap()), "no entry 0"),
        (
            |entries| {
                let other = entries.get(8).unwrap().unwrap().value().to_vec();
                entries.insert(7, other.as_slice()).unwrap();
            },
            "entry 7 is damaged",
        ),
        (
            |entries| {
                let torn = entries.get(9).unwrap().unwrap().value()[..10].to_vec();
                entries.insert(9, torn.as_slice()).unwrap();
            },
            "entry 9 is damaged",
        ),
        (|entries| drop(entries.insert(9, [].as_slice()).unwrap()), "entry 9 is damaged"),
    ];
    for (change, words) in changes {
        block_on(async {
            let files = TestFiles::default();
            let mut storage = open(&files);
            storage.log.blocking_append(entries(0..10)).await.unwrap();
            storage.close().await;
            let database = database::open(&files, LOG, 1 << 20, true).unwrap();
            let transaction = database.begin_write().unwrap();
            change(&mut transaction.open_table(ENTRIES).unwrap());
            transaction.commit().unwrap();
            drop(database);
            let refused = Storage::open(files, Executor::Inline, Beginning::Found).unwrap_err();
            assert!(matches!(refused, Error::NotAMetastore { .. }), "{refused}");
            assert!(refused.to_string().contains(words), "{words}: {refused}");
            assert!(refused.to_string().contains(LOG), "{refused}");
        });
    }
}

#[test]
fn a_newer_format_and_a_file_of_something_else_are_refused() {
    block_on(async {
        for name in [LOG, STATE] {
            let files = TestFiles::default();
            open(&files).close().await;
            let database = database::open(&files, name, 1 << 20, true).unwrap();
            let transaction = database.begin_write().unwrap();
            let newer = (database::FORMAT + 1).to_le_bytes();
            transaction.open_table(database::META).unwrap().insert("format", &newer[..]).unwrap();
            transaction.commit().unwrap();
            drop(database);
            let refused = Storage::open(files.clone(), Executor::Inline, Beginning::Found);
            let refused = refused.unwrap_err();
            assert!(
                matches!(refused, Error::NewerFormat { found } if found == database::FORMAT + 1),
                "{refused}"
            );
            files.set_bytes(name, vec![b'x'; 8192]);
            let refused = Storage::open(files, Executor::Inline, Beginning::Found).unwrap_err();
            assert!(matches!(refused, Error::NotAMetastore { .. }), "{refused}");
            assert!(refused.to_string().contains(name), "{refused}");
        }
    });
}

fn open(files: &TestFiles) -> Storage {
    Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap()
}

fn entries(range: Range<u64>) -> Vec<Entry> {
    range.map(|index| entry(log_id(1, index), put(Uuid::from_u128(index.into()), "key"))).collect()
}

fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: log_id(term, index), payload: EntryPayload::Blank }
}

fn large(index: u64, bytes: usize) -> Entry {
    large_of(1, index, bytes)
}

fn large_of(term: u64, index: u64, bytes: usize) -> Entry {
    let payload = EntryPayload::Normal(Data(vec![0; bytes].into()));
    Entry { log_id: log_id(term, index), payload }
}

fn vote(term: u64) -> Vote {
    Vote { leader_id: LeaderId { term, voted_for: NodeId(Uuid::from_u128(1)) }, committed: false }
}
