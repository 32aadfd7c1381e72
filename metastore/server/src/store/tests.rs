use inkfast_metastore::memory::MemoryRows;
use inkfast_metastore::state::{Answer, Command, apply};
use proptest::collection::vec;
use uuid::Uuid;

use super::*;
use crate::storage::{Beginning, Storage};
use crate::test_commands::{all_rows, block_on, command, log_id, put, walk, while_it_hangs};
use crate::test_disk::TestFiles;

type Outcomes = Vec<Result<Answer, inkfast_metastore::Error>>;

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// The store on disk and the one in memory are the same after the same commands.
    #[test]
    fn redb_and_memory_give_the_same_answers(batches in vec(vec(command(), 0..8), 0..12)) {
        block_on(async {
            let store = open(&TestFiles::default());
            let mut memory = MemoryRows::default();
            for batch in batches {
                let expected = batch
                    .iter()
                    .map(|command| apply(&mut memory, command.clone(), &mut Vec::new()).unwrap());
                let expected = expected.collect::<Vec<_>>();
                assert_eq!(apply_batch(&store, batch).await, expected);
                assert_eq!(all_rows(&store).await, walk(&memory));
            }
        });
    }
}

#[test]
fn what_is_not_synced_is_seen_and_may_be_lost_as_a_whole() {
    block_on(async {
        let files = TestFiles::default();
        let store = open(&files);
        let before = files.syncs(STATE);
        apply_at(&store, 1, 1).await;
        store.sync_and(|_| Ok(())).await.unwrap();
        let synced = files.syncs(STATE);
        assert!(synced > before);
        let one = all_rows(&store).await;
        for index in 2..=20 {
            apply_at(&store, index, 1).await;
        }
        // The file grows now and then, which is synced too.
        assert!(files.syncs(STATE) - synced < 5, "it is not synced each time");
        assert_ne!(all_rows(&store).await, one);
        assert_eq!(store.applied().await.unwrap().last_log_id, Some(log_id(1, 20)));
        for kept in [true, false] {
            let left = open(&files.after_power_cut(&[kept]));
            assert_eq!(left.applied().await.unwrap().last_log_id, Some(log_id(1, 1)));
            assert_eq!(all_rows(&left).await, one);
        }
        store.close().await;
        let left = open(&files.after_power_cut(&[false]));
        assert_eq!(left.applied().await.unwrap().last_log_id, Some(log_id(1, 20)));
        store.applied().await.unwrap_err();
    });
}

#[test]
fn a_restart_has_so_much_to_apply_again_and_no_more() {
    block_on(async {
        for (entries, bytes) in [(UNSYNCED_ENTRIES_MAX / 4, 0), (1, UNSYNCED_BYTES_MAX / 4)] {
            let files = TestFiles::default();
            let store = open(&files);
            for number in 1..=7 {
                apply_amount(&store, number, Amount { entries, bytes }).await;
                let left = open(&files.after_power_cut(&[false]));
                let durable = left.applied().await.unwrap().last_log_id;
                assert_eq!(durable, (number >= 4).then(|| log_id(1, 4)), "after {number}");
            }
        }
    });
}

#[test]
fn nothing_is_applied_after_a_failed_sync() {
    block_on(async {
        let files = TestFiles::default();
        let store = open(&files);
        files.break_down(STATE);
        let refused = store.sync_and(|_| Ok(())).await;
        assert_eq!(refused, Ok(()), "there is nothing to sync");
        apply_at(&store, 1, 1).await;
        store.sync_and(|_| Ok(())).await.unwrap_err();
        let amount = Amount { entries: 1, bytes: 0 };
        store.apply(amount, |_, _| Ok(())).await.unwrap_err();
    });
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_does_not_answer_fails_who_waits_for_it() {
    let open = |files: &TestFiles| {
        Storage::open(files.clone(), Executor::Threads, Beginning::Found).unwrap().store
    };
    let files = TestFiles::default();
    let store = open(&files);
    apply_at(&store, 1, 1).await;
    let hanging = files.hang(STATE);
    let syncing = store.clone();
    let refused = while_it_hangs(async move { syncing.sync_and(|_| Ok(())).await }).await;
    assert_eq!(refused, Err(StateError("the disk has not answered for 10s".into())));
    while_it_hangs(async move { store.close().await }).await;
    drop(hanging);

    let files = TestFiles::default();
    let store = open(&files);
    let hanging = files.hang(STATE);
    let amount = Amount { entries: 1, bytes: UNSYNCED_BYTES_MAX };
    let refused = while_it_hangs(async move { store.apply(amount, |_, _| Ok(())).await }).await;
    assert_eq!(refused, Err(StateError("the disk has not answered for 10.02s".into())));
    drop(hanging);
}

fn open(files: &TestFiles) -> Store {
    Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap().store
}

async fn apply_at(store: &Store, index: u64, entries: usize) {
    apply_amount(store, index, Amount { entries, bytes: 0 }).await;
}

async fn apply_amount(store: &Store, index: u64, amount: Amount) {
    let change = move |rows: &mut WriteRows<'_>, meta: &mut SnapshotMeta| {
        meta.last_log_id = Some(log_id(1, index));
        apply(rows, put(Uuid::from_u128(index.into()), "key"), &mut Vec::new())?.unwrap();
        Ok(())
    };
    store.apply(amount, change).await.unwrap();
}

async fn apply_batch(store: &Store, batch: Vec<Command>) -> Outcomes {
    let amount = Amount { entries: batch.len(), bytes: 0 };
    let apply_all = |rows: &mut WriteRows<'_>, _: &mut SnapshotMeta| {
        batch.into_iter().map(|command| apply(rows, command, &mut Vec::new())).collect()
    };
    store.apply(amount, apply_all).await.unwrap()
}
