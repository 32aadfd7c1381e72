//! Commands and entries for tests.

use std::ops::Bound;
use std::time::Duration;

use inkfast_metastore::memory::MemoryRows;
use inkfast_metastore::messages::encode_command;
use inkfast_metastore::rows::Rows;
use inkfast_metastore::state::{Command, Operation, apply};
use inkfast_metastore::{LeaseId, Transaction, Version};
use openraft::EntryPayload;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use uuid::Uuid;

use crate::consensus::types::{CommittedLeaderId, Data, Entry, LogId};
use crate::store::Store;

pub(crate) type AllRows = Vec<(Vec<u8>, bytes::Bytes)>;

pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(work)
}

/// Waits for work for which the clock has to be moved by hand, for a disk hangs; not for longer than
/// a minute of that clock.
pub(crate) async fn while_it_hangs<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    let work = tokio::spawn(work);
    for _ in 0..600 {
        if work.is_finished() {
            return work.await.unwrap();
        }
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    panic!("it waits for the disk");
}

pub(crate) fn log_id(term: u64, index: u64) -> LogId {
    LogId { leader_id: CommittedLeaderId::new(term), index }
}

pub(crate) fn entry(log_id: LogId, command: Command) -> Entry {
    Entry { log_id, payload: EntryPayload::Normal(Data(encode_command(command))) }
}

pub(crate) fn put(request: Uuid, key: &str) -> Command {
    let transaction = Transaction::new().put(key, "value");
    Command { request, time_ms: 0, operation: Operation::Commit(transaction) }
}

pub(crate) async fn all_rows(store: &Store) -> AllRows {
    store.read(|rows| Ok(walk(rows))).await.unwrap()
}

pub(crate) fn walk(rows: &impl Rows) -> AllRows {
    rows.walk(Bound::Unbounded).unwrap().collect::<Result<_, _>>().unwrap()
}

/// Returns the rows that commands make.
pub(crate) fn rows_after(commands: impl IntoIterator<Item = Command>) -> AllRows {
    let mut rows = MemoryRows::default();
    for command in commands {
        let _ = apply(&mut rows, command, &mut Vec::new()).unwrap();
    }
    walk(&rows)
}

/// Commands over few keys, leases and requests, so that they meet.
pub(crate) fn command() -> impl Strategy<Value = Command> {
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
