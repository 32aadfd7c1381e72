use std::path::PathBuf;

use inkfast_metastore::rows::RowsMut;
use inkfast_metastore::state::{Command, LEAP, Operation};
use inkfast_metastore::{LeaseId, Transaction};
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use std::time::Duration;
use tempfile::TempDir;

use super::*;
use crate::consensus::types::Entry;
use crate::storage::{Beginning, Storage};
use crate::store::Amount;
use crate::test_commands::{AllRows, all_rows, entry, log_id, walk};

#[tokio::test]
async fn a_restored_member_has_the_backup_and_leaps() {
    let place = Place::new();
    let storage = place.member("old", 7).await;
    let rows = all_rows(&storage.store).await;
    let file = place.backup_of(&storage).await;
    let restored = restore(&file, &place.path("new")).await.unwrap();
    assert_eq!(restored.rows, rows.len() as u64);

    let mut new = place.open("new");
    assert_eq!(new.member.id, restored.member);
    assert_eq!(new.member.cluster, storage.member.cluster);
    assert_ne!(new.member.id, storage.member.id);
    assert_ne!(new.member.reset_key, storage.member.reset_key);
    assert!(!new.founds());
    let after = all_rows(&new.store).await;
    assert_eq!(after, leapt(rows));
    let revision = new.store.read(state::revision).await.unwrap();
    assert_eq!((revision, revision.get()), (restored.revision, LEAP + 2));

    let meta = new.store.applied().await.unwrap();
    let id = NodeId(new.member.id);
    assert_eq!(meta.last_log_id, Some(log_id(3, 6)));
    assert_eq!(*meta.last_membership.log_id(), Some(log_id(3, 6)));
    assert_eq!(meta.last_membership.voter_ids().collect::<Vec<_>>(), [id]);
    let state = new.log.get_log_state().await.unwrap();
    assert_eq!((state.last_purged_log_id, state.last_log_id), (meta.last_log_id, meta.last_log_id));
    let leader_id = LeaderId { term: 3, voted_for: id };
    let vote = new.log.read_vote().await.unwrap();
    assert_eq!(vote, Some(Vote { leader_id, committed: false }));
    new.log.blocking_append([sequence(4, 7)]).await.unwrap();
    new.close().await;
    assert!(place.open("new").log.try_get_log_entries(..).await.unwrap().len() == 1);
}

#[tokio::test]
async fn a_stopped_member_gives_all_that_it_knows_and_is_left_as_it_was() {
    let place = Place::new();
    let mut storage = place.member("old", 5).await;
    storage.log.blocking_append((0..7).map(logged)).await.unwrap();
    let known = place.member("other", 7).await;
    let in_use = backup_directory(&place.path("old"), &place.path("file")).await.unwrap_err();
    assert!(matches!(in_use, Error::InUse { .. }), "{in_use}");
    let cluster = storage.member.cluster;
    storage.close().await;
    for name in ["file", "again"] {
        let summary = backup_directory(&place.path("old"), &place.path(name)).await.unwrap();
        let (rows, bytes) =
            all_rows(&known.store).await.iter().fold((0, 0), |(rows, bytes), row| {
                (rows + 1, bytes + row.0.len() as u64 + row.1.len() as u64)
            });
        let revision = known.store.read(state::revision).await.unwrap();
        let expected = BackupSummary { cluster, term: 3, entry: 6, revision, rows, bytes };
        assert_eq!(summary, expected);
    }
    let read = |name| fs::read(place.path(name)).unwrap();
    assert_eq!(read("file"), read("again"));
    let storage = place.open("old");
    assert_eq!(storage.store.applied().await.unwrap().last_log_id, Some(log_id(3, 4)));

    restore(&place.path("file"), &place.path("new")).await.unwrap();
    assert_eq!(all_rows(&place.open("new").store).await, leapt(all_rows(&known.store).await));
}

#[tokio::test]
async fn a_file_is_never_written_over_and_a_directory_must_have_a_member() {
    let place = Place::new();
    place.member("old", 3).await.close().await;
    fs::write(place.path("file"), "of somebody").unwrap();
    let refused = backup_directory(&place.path("old"), &place.path("file")).await.unwrap_err();
    assert!(matches!(refused, Error::Backup { .. }), "{refused}");
    assert_eq!(fs::read(place.path("file")).unwrap(), b"of somebody");
    let refused = backup_directory(&place.path("no"), &place.path("other")).await.unwrap_err();
    assert!(refused.to_string().contains("no member"), "{refused}");
    assert!(!place.path("other").exists() && !place.path("no").exists());

    let empty = Storage::open_directory(&place.path("empty"), Beginning::Found).unwrap();
    assert!(Backup::of(&empty.store, empty.member.cluster).await.is_err());
    empty.close().await;
    let refused = backup_directory(&place.path("empty"), &place.path("other")).await.unwrap_err();
    assert!(refused.to_string().contains("nothing was ever written"), "{refused}");
    assert!(!place.path("other").exists());
}

#[tokio::test]
async fn a_restore_touches_nothing_that_is_there() {
    let place = Place::new();
    let storage = place.member("old", 3).await;
    let file = place.backup_of(&storage).await;
    let rows = all_rows(&storage.store).await;
    storage.close().await;
    let refused = restore(&file, &place.path("old")).await.unwrap_err();
    assert!(refused.to_string().contains("give an empty one"), "{refused}");
    assert_eq!(all_rows(&place.open("old").store).await, rows);

    fs::create_dir(place.path("other")).unwrap();
    fs::write(place.path("other").join("notes.txt"), "").unwrap();
    let refused = restore(&file, &place.path("other")).await.unwrap_err();
    assert!(refused.to_string().contains("notes.txt"), "{refused}");
    assert_eq!(fs::read_dir(place.path("other")).unwrap().count(), 1);

    let refused = restore(&place.path("missing"), &place.path("new")).await.unwrap_err();
    assert!(matches!(refused, Error::Backup { .. }), "{refused}");
    assert!(!place.path("new").exists());
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_leaves_no_member() {
    let place = Place::new();
    let storage = place.member("old", 7).await;
    let bytes = fs::read(place.backup_of(&storage).await).unwrap();
    let damaged = place.path("damaged");
    let mut all = Vec::new();
    for length in (0..bytes.len()).step_by(5) {
        all.push(bytes[..length].to_vec());
        let mut flipped = bytes.clone();
        flipped[length] ^= 1 << (length % 8);
        all.push(flipped);
    }
    all.push([bytes.as_slice(), b"more"].concat());
    let (header, _) = header(Uuid::nil(), &storage.store.applied().await.unwrap()).unwrap();
    all.push([bytes.as_slice(), &bytes[header.len()..]].concat());
    for bytes in all {
        fs::write(&damaged, &bytes).unwrap();
        let refused = restore(&damaged, &place.path("new")).await.unwrap_err();
        assert!(matches!(refused, Error::Backup { .. }), "{refused}");
        assert_eq!(Storage::member_of(&place.path("new")).unwrap(), None);
    }
    fs::write(&damaged, &bytes).unwrap();
    restore(&damaged, &place.path("new")).await.unwrap();
}

struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> Storage {
        Storage::open_directory(&self.path(name), Beginning::Found).unwrap()
    }

    /// Makes a member whose state has the first entries of the log.
    async fn member(&self, name: &str, entries: u64) -> Storage {
        let storage = self.open(name);
        let amount = Amount { entries: 1, bytes: 0 };
        let apply = move |rows: &mut crate::rows::WriteRows<'_>, meta: &mut SnapshotMeta| {
            (0..entries).try_for_each(|index| {
                apply_entry(rows, meta, logged(index), &mut Vec::new()).map(drop)
            })
        };
        storage.store.apply(amount, apply).await.unwrap();
        storage
    }

    async fn backup_of(&self, storage: &Storage) -> PathBuf {
        let mut backup = Backup::of(&storage.store, storage.member.cluster).await.unwrap();
        let mut bytes = Vec::new();
        while let Some(piece) = backup.next().await.unwrap() {
            bytes.extend(piece);
        }
        let path = self.path("backup");
        fs::write(&path, bytes).unwrap();
        path
    }
}

/// Returns the entry of an index: leases, sequences and keys.
fn logged(index: u64) -> Entry {
    let operation = match index {
        0 | 3 => Operation::GrantLease { ttl: Duration::from_secs(9) },
        1 => {
            let leased = Transaction::new().put_leased("leased", "1", LeaseId::new(1));
            Operation::Commit(leased.put("key", vec![7; 100]))
        }
        4 => Operation::Commit(Transaction::new().put("other", "2")),
        _ => return sequence(3, index),
    };
    entry(log_id(3, index), command(index, operation))
}

fn sequence(term: u64, index: u64) -> Entry {
    let operation = Operation::NextSequence { name: format!("numbers/{}", index % 2), count: 5 };
    entry(log_id(term, index), command(index, operation))
}

fn command(request: u64, operation: Operation) -> Command {
    Command { request: Uuid::from_u128(request.into()), time_ms: 1000, operation }
}

/// Returns what rows are after a leap.
fn leapt(rows: AllRows) -> AllRows {
    let mut memory = inkfast_metastore::memory::MemoryRows::default();
    for (row, value) in rows {
        memory.insert(&row, &value).unwrap();
    }
    state::leap(&mut memory).unwrap();
    walk(&memory)
}
