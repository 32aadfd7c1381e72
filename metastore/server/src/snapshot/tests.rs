use inkfast_metastore::Version;
use inkfast_metastore::memory::MemoryRows;
use inkfast_metastore::state::{self, apply};
use uuid::Uuid;

use super::*;
use crate::consensus::codec::Coded;
use crate::consensus::network::PieceMessage;
use crate::consensus::types::{NodeId, Vote};
use crate::directory::STATE;
use crate::rows::WriteRows;
use crate::storage::{Beginning, Storage};
use crate::store::Amount;
use crate::test_commands::{all_rows, block_on, log_id, put, walk};
use crate::test_disk::TestFiles;

#[test]
fn a_copy_is_what_was_there_when_it_was_begun() {
    block_on(async {
        let (_, store) = filled(10_000).await;
        let (meta, mut view) = store.view().await.unwrap();
        let then = all_rows(&store).await;
        let (files, other) = filled(7).await;
        let mut incoming = other.receive().await.unwrap();
        let mut chunks = 0;
        while let Some(chunk) = view.next().await.unwrap() {
            assert!(chunk.len() <= CHUNK_BYTES + AROUND_BYTES_MAX, "{} bytes", chunk.len());
            incoming.add(chunk).await.unwrap();
            chunks += 1;
            write(&store, 10_000 + chunks, "written meanwhile").await;
        }
        assert!(chunks > 1);
        assert_eq!(view.next().await, Ok(None));
        let received = incoming.finish().await.unwrap();
        write(&other, 8, "what is there meanwhile").await;
        let (_, mut old) = other.view().await.unwrap();
        let old_rows = all_rows(&other).await;
        other.install(received, meta.clone()).await.unwrap();
        assert_eq!(all_rows(&other).await, then);
        assert_eq!(other.applied().await.unwrap(), meta);
        assert_eq!(files.file_names(), ["log.redb", "state.redb"]);

        // Who has begun to read the state before goes on with it.
        let (_, third) = filled(0).await;
        third.install(copy(&mut old, &third).await, meta.clone()).await.unwrap();
        assert_eq!(all_rows(&third).await, old_rows);
        write(&other, 10_001, "what comes after").await;
        let left = open(&files.after_power_cut(&[false]));
        assert_eq!(all_rows(&left).await, then);
        assert_eq!(left.applied().await.unwrap(), meta);
    });
}

#[test]
fn every_chunk_fits_a_frame_however_the_rows_fall() {
    let large = vec![7; ROW_BYTES_MAX - 40];
    for left in (0..40).chain([500, CHUNK_BYTES / 2]) {
        let mut rows = MemoryRows::default();
        rows.insert(b"a", &vec![1; CHUNK_BYTES - left - 20]).unwrap();
        rows.insert(b"b", &large).unwrap();
        rows.insert(b"c", b"small").unwrap();
        rows.insert(b"d", &large).unwrap();
        let chunks = chunks(&rows);
        assert_eq!(chunks, [1, 1, 1, 1], "{left} bytes are left");
    }
    let mut rows = MemoryRows::default();
    for number in 0..300_000u32 {
        rows.insert(&number.to_be_bytes(), b"").unwrap();
    }
    assert_eq!(chunks(&rows).len(), 3, "what encodes a row counts too");
    assert_eq!(chunks(&MemoryRows::default()), [0]);
}

/// Turns rows into chunks, looks at all of them, and returns how many rows each has.
fn chunks(rows: &MemoryRows) -> Vec<usize> {
    let (mut chunks, mut found, mut counts) = (Chunks::default(), Vec::new(), Vec::new());
    while let Some(data) = chunks.next(rows).unwrap() {
        let message = PieceMessage {
            vote: Some(Vote::new_committed(u64::MAX, NodeId(Uuid::max())).to_message()),
            snapshot: Bytes::copy_from_slice(Uuid::max().as_bytes()),
            number: u64::MAX,
            data: data.clone(),
            meta: None,
        };
        assert!(message.encoded_len() <= FRAME_BYTES_MAX, "{} bytes", message.encoded_len());
        let chunk = Chunk::decode(data).unwrap();
        counts.push(chunk.rows.len());
        found.extend(chunk.rows.into_iter().map(|Row { key, value }| (key.to_vec(), value)));
    }
    assert!(found == walk(rows), "all rows are there");
    counts
}

#[test]
fn log_is_kept_while_a_snapshot_is_sent_and_not_without_end() {
    block_on(async {
        let (_, store) = filled(1).await;
        let view = || async { store.view().await.unwrap().1 };
        let (mut one, mut other, _unsent) = (view().await, view().await, view().await);
        assert!(!store.keeps_log());
        one.keep_log();
        one.keep_log();
        other.keep_log();
        drop(one);
        assert!(store.keeps_log());
        let much = |entries, bytes| store.apply(Amount { entries, bytes }, |_, _| Ok(()));
        for (entries, bytes) in [(2000, 0), (0, 1 << 30)] {
            much(entries, bytes).await.unwrap();
            assert!(!store.keeps_log());
            store.forgets_log();
            assert!(store.keeps_log());
        }
        drop(other);
        assert!(!store.keeps_log());
    });
}

#[test]
fn a_copy_that_is_not_whole_is_refused() {
    block_on(async {
        let (_, store) = filled(30_000).await;
        let (_, mut view) = store.view().await.unwrap();
        let mut chunks = Vec::new();
        while let Some(chunk) = view.next().await.unwrap() {
            chunks.push(chunk);
        }
        assert!(chunks.len() >= 3, "{} chunks", chunks.len());
        let last = chunks.len() - 1;
        let without = |left_out: usize| {
            let mut chunks = chunks.clone();
            chunks.remove(left_out);
            chunks
        };
        let swapped = {
            let mut chunks = chunks.clone();
            chunks.swap(0, 1);
            chunks
        };
        let flipped = {
            let mut bytes = chunks[1].to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let mut chunks = chunks.clone();
            chunks[1] = bytes.into();
            chunks
        };
        let twice = [chunks.as_slice(), &chunks[last..]].concat();
        let all = [without(0), without(1), without(last), swapped, flipped, twice, Vec::new()];
        for (number, damaged) in all.into_iter().enumerate() {
            let (files, other) = filled(3).await;
            let before = all_rows(&other).await;
            assert!(receive(&other, damaged).await.is_err(), "damage {number}");
            assert_eq!(files.file_names(), ["log.redb", "state.redb"]);
            assert_eq!(all_rows(&other).await, before);
        }
        let (_, other) = filled(3).await;
        assert!(receive(&other, chunks).await.is_ok());
    });
}

#[test]
fn one_copy_is_received_at_a_time() {
    block_on(async {
        let (files, store) = filled(1).await;
        let incoming = store.receive().await.unwrap();
        assert!(files.file_names().contains(&INCOMING.into()));
        assert!(store.receive().await.is_err());
        drop(incoming);
        assert!(!files.file_names().contains(&INCOMING.into()));
        let incoming = store.receive().await.unwrap();
        store.close().await;
        drop(incoming);
        assert!(store.view().await.is_err());
    });
}

#[test]
fn a_power_cut_leaves_the_one_copy_or_the_other() {
    let mut reached = [0; 2];
    for writes in 0.. {
        let (before, after, found, done) = block_on(async {
            let (files, store) = filled(5).await;
            let before = all_rows(&store).await;
            let (_, other) = filled(40).await;
            let (meta, mut view) = other.view().await.unwrap();
            files.cut_power_after(writes);
            let receive = async {
                let mut incoming = store.receive().await?;
                while let Some(chunk) = view.next().await? {
                    incoming.add(chunk).await?;
                }
                store.install(incoming.finish().await?, meta).await
            };
            let done = receive.await.is_ok();
            let kept = [writes % 2 == 0, writes % 3 == 0, true];
            let left = files.after_power_cut(&kept);
            let found = all_rows(&open(&left)).await;
            assert_eq!(left.file_names(), ["log.redb", "state.redb"]);
            (before, all_rows(&other).await, found, done)
        });
        assert!(found == before || found == after, "after {writes} writes");
        assert!(!done || found == after, "after {writes} writes");
        reached[usize::from(found == after)] += 1;
        if done {
            break;
        }
    }
    assert!(reached[0] > 3, "{reached:?}");
}

/// Makes a store in which there were so many changes.
async fn filled(changes: u64) -> (TestFiles, Store) {
    let files = TestFiles::default();
    let store = open(&files);
    let amount = Amount { entries: 1, bytes: 0 };
    if changes > 0 {
        let fill = move |rows: &mut WriteRows<'_>, meta: &mut SnapshotMeta| {
            for number in 1..=changes {
                let command =
                    put(Uuid::from_u128(number.into()), &format!("{changes}/{number:0200}"));
                apply(rows, command, &mut Vec::new())?.unwrap();
            }
            meta.last_log_id = Some(log_id(1, changes));
            assert_eq!(state::revision(rows)?, Version::new(changes));
            Ok(())
        };
        store.apply(amount, fill).await.unwrap();
        store.view().await.unwrap();
    }
    (files, store)
}

fn open(files: &TestFiles) -> Store {
    let store = Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap().store;
    assert!(files.file_names().contains(&STATE.into()));
    store
}

async fn write(store: &Store, index: u64, key: &'static str) {
    let amount = Amount { entries: 1, bytes: 0 };
    let change = move |rows: &mut WriteRows<'_>, meta: &mut SnapshotMeta| {
        meta.last_log_id = Some(log_id(1, index));
        apply(rows, put(Uuid::new_v4(), key), &mut Vec::new())?.unwrap();
        Ok(())
    };
    store.apply(amount, change).await.unwrap();
}

async fn receive(store: &Store, chunks: Vec<Bytes>) -> Result<(), StateError> {
    let mut incoming = store.receive().await?;
    for chunk in chunks {
        incoming.add(chunk).await?;
    }
    incoming.finish().await.map(drop)
}

async fn copy(view: &mut View, store: &Store) -> Received {
    let mut incoming = store.receive().await.unwrap();
    while let Some(chunk) = view.next().await.unwrap() {
        incoming.add(chunk).await.unwrap();
    }
    incoming.finish().await.unwrap()
}
