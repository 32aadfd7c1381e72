use std::fs;
use std::time::Duration;

use inkfast_metastore::memory::MemoryRows;
use inkfast_metastore::rows::Rows;
use inkfast_metastore::state::{Command, Operation, apply};
use inkfast_metastore::{LeaseId, Transaction, Version};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use redb::backends::InMemoryBackend;
use std::ops::Bound;
use tempfile::TempDir;

use super::*;
use crate::test_disk::TestDisk;

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]

    /// The store on disk and the one in memory are the same after the same commands.
    #[test]
    fn redb_and_memory_give_the_same_answers(batches in vec(vec(command(), 0..8), 0..12)) {
        block_on(async {
            let store = Store::open(InMemoryBackend::new(), Executor::Inline).unwrap();
            let mut memory = MemoryRows::default();
            for batch in batches {
                let expected =
                    batch.iter().map(|command| apply(&mut memory, command.clone(), &mut Vec::new()).unwrap());
                let expected = expected.collect::<Vec<_>>();
                assert_eq!(write_all(&store, batch).await, expected);
                assert_eq!(all_rows(&store).await, walk(&memory));
            }
        });
    }

    /// Whatever a power cut keeps of what was not synced, what was answered is there.
    #[test]
    fn a_power_cut_takes_back_no_answer(
        batches in vec(vec(command(), 1..8), 1..12),
        kept in vec(any::<bool>(), 1..16),
    ) {
        block_on(async {
            let mut disk = TestDisk::default();
            let mut store = Store::open(disk.clone(), Executor::Inline).unwrap();
            let member = store.member().clone();
            let mut memory = MemoryRows::default();
            for batch in batches {
                for command in &batch {
                    let _ = apply(&mut memory, command.clone(), &mut Vec::new()).unwrap();
                }
                write_all(&store, batch).await;
                disk = disk.after_power_cut(&kept);
                store = Store::open(disk.clone(), Executor::Inline).unwrap();
                assert_eq!(store.member(), &member);
                assert_eq!(all_rows(&store).await, walk(&memory));
            }
        });
    }
}

#[test]
fn a_file_that_was_never_finished_is_made_again() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("metastore.redb.new"), [0; 8192]).unwrap();
    let member = Store::open_directory(dir.path()).unwrap().member().clone();
    assert_eq!(Store::open_directory(dir.path()).unwrap().member(), &member);
}

#[test]
fn a_file_whose_beginning_is_lost_is_not_made_anew() {
    let dir = TempDir::new().unwrap();
    drop(Store::open_directory(dir.path()).unwrap());
    let path = dir.path().join("metastore.redb");
    let mut bytes = fs::read(&path).unwrap();
    bytes[..4096].fill(0);
    fs::write(&path, &bytes).unwrap();
    Store::open_directory(dir.path()).unwrap_err();
    assert!(fs::read(&path).unwrap()[4096..] == bytes[4096..], "the rest was changed");
}

#[test]
fn a_newer_format_is_refused() {
    let disk = TestDisk::default();
    Store::open(disk.clone(), Executor::Inline).unwrap();
    let disk = disk.after_power_cut(&[true]);
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    let newer = (FORMAT + 1).to_le_bytes();
    transaction.open_table(META).unwrap().insert(META_FORMAT, newer.as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = Store::open(disk.after_power_cut(&[true]), Executor::Inline).unwrap_err();
    assert!(matches!(refused, Error::NewerFormat { found } if found == FORMAT + 1), "{refused}");
}

#[test]
fn a_database_of_something_else_is_refused() {
    let disk = TestDisk::default();
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("other")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = Store::open(disk.after_power_cut(&[true]), Executor::Inline).unwrap_err();
    assert!(matches!(refused, Error::NotAMetastore { .. }), "{refused}");
    let garbage = TestDisk::with(vec![b'x'; 8192]);
    let refused = Store::open(garbage, Executor::Inline).unwrap_err();
    assert!(matches!(refused, Error::NotAMetastore { .. }), "{refused}");
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
}

async fn write_all(
    store: &Store,
    batch: Vec<Command>,
) -> Vec<Result<inkfast_metastore::state::Answer, inkfast_metastore::Error>> {
    let apply_all = |rows: &mut WriteRows<'_>| {
        batch
            .into_iter()
            .map(|command| apply(rows, command, &mut Vec::new()))
            .collect::<Result<Vec<_>, _>>()
    };
    store.write(apply_all).await.unwrap()
}

type AllRows = Vec<(Vec<u8>, bytes::Bytes)>;

async fn all_rows(store: &Store) -> AllRows {
    store.read(|rows| Ok(walk(rows))).await.unwrap()
}

fn walk(rows: &impl Rows) -> AllRows {
    rows.walk(Bound::Unbounded).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Commands over few keys, leases and requests, so that they meet.
fn command() -> impl Strategy<Value = Command> {
    (any::<u8>(), 0..2_000_000u64, operation()).prop_map(|(request, time_ms, operation)| Command {
        request: Uuid::from_u128(u128::from(request)),
        time_ms,
        operation,
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => vec((key(), change()), 0..4).prop_map(|changes| Operation::Commit(transaction(changes))),
        1 => (key(), 1..5u64).prop_map(|(name, count)| Operation::NextSequence { name, count }),
        2 => Just(Operation::GrantLease { ttl: Duration::from_secs(1) }),
        1 => lease().prop_map(Operation::EndLease),
    ]
}

#[derive(Clone, Debug)]
enum Change {
    Put(Option<LeaseId>),
    Create,
    Replace(Version),
    Delete,
    Remove(Version),
}

fn change() -> impl Strategy<Value = Change> {
    let version = (1..12u64).prop_map(Version::new).boxed();
    prop_oneof![
        Just(Change::Put(None)),
        lease().prop_map(|lease| Change::Put(Some(lease))),
        Just(Change::Create),
        version.clone().prop_map(Change::Replace),
        Just(Change::Delete),
        version.prop_map(Change::Remove),
    ]
}

fn transaction(changes: Vec<(String, Change)>) -> Transaction {
    let mut transaction = Transaction::new();
    for (key, change) in changes {
        transaction = match change {
            Change::Put(None) => transaction.put(key, "put"),
            Change::Put(Some(lease)) => transaction.put_leased(key, "leased", lease),
            Change::Create => transaction.create(key, "created"),
            Change::Replace(version) => transaction.replace(key, version, "replaced"),
            Change::Delete => transaction.delete(key),
            Change::Remove(version) => transaction.remove(key, version),
        };
    }
    transaction
}

fn key() -> impl Strategy<Value = String> {
    proptest::sample::select(vec!["a", "a/1", "a/2", "b"]).prop_map(String::from)
}

fn lease() -> impl Strategy<Value = LeaseId> {
    (1..5u64).prop_map(LeaseId::new)
}
