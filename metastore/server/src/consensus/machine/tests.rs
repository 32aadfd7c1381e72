use std::time::Duration;

use inkfast_metastore::state::Command;
use inkfast_metastore::{Error, Transaction};
use openraft::impls::TokioRuntime;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft_rt::deterministic_rng::DeterministicRng;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::consensus::log::Log;
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_commands::{all_rows, block_on, entry, log_id};
use crate::test_disk::TestFiles;

/// Makes members for openraft's own suite.
struct Members;

/// A machine that is given blank entries where the suite leaves holes, which it would refuse.
struct Filled(Machine);

impl StoreBuilder<Types, Log, Filled> for Members {
    async fn build(&self) -> Result<((), Log, Filled), openraft::StorageError<Types>> {
        let Storage { log, store, .. } = open(TestFiles::default());
        Ok(((), log, Filled(machine(store))))
    }
}

impl RaftStateMachine<Types> for Filled {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        self.0.applied_state().await
    }

    async fn apply<Strm>(&mut self, mut stream: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = stream.try_next().await? {
            let (last, _) = self.applied_state().await?;
            let missing = last.map_or(entry.log_id.index, |last| last.index + 1);
            let blank = |index| {
                let log_id = LogId { index, ..entry.log_id };
                Ok((Entry { log_id, payload: EntryPayload::Blank }, None))
            };
            let blank = (missing..entry.log_id.index).map(blank).collect::<Vec<_>>();
            let entries = blank.into_iter().chain([Ok((entry, responder))]);
            self.0.apply(futures::stream::iter(entries)).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.0.get_snapshot_builder().await
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        self.0.install_snapshot(meta, snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.0.get_current_snapshot().await
    }
}

#[tokio::test]
async fn log_and_machine_are_what_openraft_wants() {
    DeterministicRng::<TokioRuntime>::scope(1, Suite::test_all(Members)).await.unwrap();
}

#[test]
fn leases_and_watches_follow_what_is_applied() {
    block_on(async {
        let mut machine = machine(open(TestFiles::default()).store);
        let mut watcher = machine.watches.watch("k", Version::new(0), Version::new(0)).unwrap();
        let ttl = Duration::from_secs(1);
        apply(&mut machine, 0, [grant(ttl), grant(ttl), put_leased("key", 1)]).await.unwrap();
        let told = watcher.next().await.unwrap();
        assert_eq!((told.changes.len(), told.seen), (1, Version::new(1)));
        let leases = machine.leases.clone();
        let keep_alive =
            |lease| leases.lock().unwrap().keep_alive(LeaseId::new(lease), Instant::now());
        assert!(keep_alive(1) && keep_alive(2) && !keep_alive(3));
        apply(&mut machine, 3, [Operation::EndLease(LeaseId::new(1))]).await.unwrap();
        assert!(!keep_alive(1) && keep_alive(2));
        let told = watcher.next().await.unwrap();
        assert_eq!((told.changes[0].now.clone(), told.seen), (None, Version::new(2)));
        tokio::time::advance(ttl).await;
        assert_eq!(leases.lock().unwrap().take_expired(Instant::now()), [LeaseId::new(2)]);
    });
}

#[test]
fn an_installed_state_has_its_own_leases_and_forgets_what_was_watched() {
    block_on(async {
        let mut machine = machine(open(TestFiles::default()).store);
        let ttl = Duration::from_secs(1);
        apply(&mut machine, 0, [grant(ttl), grant(ttl), put_leased("key", 1)]).await.unwrap();
        let mut behind = machine.watches.watch("", Version::new(0), Version::new(1)).unwrap();
        let mut waiting = machine.watches.watch("", Version::new(1), Version::new(1)).unwrap();
        let waiting = tokio::spawn(async move { waiting.next().await });
        tokio::task::yield_now().await;

        let mut other = self::machine(open(TestFiles::default()).store);
        apply(&mut other, 0, [grant(ttl), grant(ttl), put_leased("key", 1)]).await.unwrap();
        let more = [Operation::EndLease(LeaseId::new(1)), grant(ttl), put_leased("other", 3)];
        apply(&mut other, 3, more).await.unwrap();
        let snapshot = other.get_current_snapshot().await.unwrap().unwrap();
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();

        assert_eq!(all_rows(&machine.store).await, all_rows(&other.store).await);
        assert_eq!(machine.applied_state().await.unwrap(), other.applied_state().await.unwrap());
        assert_eq!(behind.next().await, Err(Error::Compacted));
        assert_eq!(waiting.await.unwrap(), Err(Error::Compacted));
        let revision = Version::new(3);
        let mut watcher = machine.watches.watch("", revision, revision).unwrap();
        apply(&mut machine, 6, [put_leased("key", 2)]).await.unwrap();
        assert_eq!(watcher.next().await.unwrap().changes.len(), 1);
        tokio::time::advance(ttl).await;
        let expired = machine.leases.lock().unwrap().take_expired(Instant::now());
        assert_eq!(expired, [LeaseId::new(2), LeaseId::new(3)]);
    });
}

#[test]
fn what_cannot_be_applied_stops_the_member() {
    block_on(async {
        let store = open(TestFiles::default()).store;
        let mut machine = machine(store.clone());
        apply(&mut machine, 0, [put_leased("key", 9), grant(Duration::from_secs(1))])
            .await
            .unwrap();
        let before = all_rows(&store).await;
        let unknown = EntryPayload::Normal(Data(b"of a newer version".as_slice().into()));
        let unknown = Entry { log_id: log_id(1, 3), payload: unknown };
        let good = entry(log_id(1, 2), command(2, put_leased("key", 1)));
        let repeated = entry(log_id(1, 1), command(1, put_leased("key", 1)));
        let early = entry(log_id(1, 3), command(3, put_leased("key", 1)));
        for entries in [vec![good, unknown], vec![repeated], vec![early]] {
            let entries = entries.into_iter().map(|entry| Ok((entry, None)));
            machine.apply(futures::stream::iter(entries)).await.unwrap_err();
            assert_eq!(all_rows(&store).await, before, "all of it or nothing");
        }
        let read = futures::stream::iter([Err(io::Error::other("the log cannot be read"))]);
        machine.apply(read).await.unwrap_err();
        assert_eq!(store.applied().await.unwrap().last_log_id, Some(log_id(1, 1)));
    });
}

#[test]
fn no_snapshot_is_made_while_one_is_sent() {
    block_on(async {
        let mut machine = machine(open(TestFiles::default()).store);
        apply(&mut machine, 0, [grant(Duration::from_secs(1))]).await.unwrap();
        let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
        let SnapshotData::View(mut view) = snapshot.snapshot else { panic!("it is to be sent") };
        assert!(machine.try_create_snapshot_builder(false).await.is_some());
        view.keep_log();
        assert!(machine.try_create_snapshot_builder(false).await.is_none());
        let mut forced = machine.try_create_snapshot_builder(true).await.unwrap();
        let numbers = |_| Operation::NextSequence { name: "numbers".into(), count: 1 };
        apply(&mut machine, 1, (0..2000).map(numbers)).await.unwrap();
        assert!(machine.try_create_snapshot_builder(false).await.is_some(), "the log is bounded");
        forced.build_snapshot().await.unwrap();
        assert!(machine.try_create_snapshot_builder(false).await.is_none());
        drop(view);
        assert!(machine.try_create_snapshot_builder(false).await.is_some());
    });
}

#[test]
fn many_entries_are_applied_in_parts() {
    block_on(async {
        const ENTRIES: usize = 2 * BATCH_ENTRIES_MAX + 1;
        let mut machine = machine(open(TestFiles::default()).store);
        let numbers = |_| Operation::NextSequence { name: "numbers".into(), count: 1 };
        apply(&mut machine, 0, (0..ENTRIES).map(numbers)).await.unwrap();
        let last = ENTRIES as u64 - 1;
        assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id(1, last)));
    });
}

fn open(files: TestFiles) -> Storage {
    Storage::open(files, Executor::Inline, Beginning::Found).unwrap()
}

fn machine(store: Store) -> Machine {
    Machine::new(store, Arc::default(), Watches::new(Version::new(0)))
}

async fn apply(
    machine: &mut Machine,
    first: u64,
    operations: impl IntoIterator<Item = Operation>,
) -> io::Result<()> {
    let entries = (first..)
        .zip(operations)
        .map(|(index, operation)| Ok((entry(log_id(1, index), command(index, operation)), None)));
    machine.apply(futures::stream::iter(entries.collect::<Vec<_>>())).await
}

fn command(request: u64, operation: Operation) -> Command {
    Command { request: Uuid::from_u128(request.into()), time_ms: 0, operation }
}

fn grant(ttl: Duration) -> Operation {
    Operation::GrantLease { ttl }
}

fn put_leased(key: &str, lease: u64) -> Operation {
    Operation::Commit(Transaction::new().put_leased(key, "value", LeaseId::new(lease)))
}

/// As many ledgers as a large cluster has, with INKFAST_LONG; a few otherwise.
#[tokio::test]
async fn memory_is_bounded_and_a_restart_is_short() {
    const BATCH: u64 = 500;
    let long = std::env::var_os("INKFAST_LONG").is_some();
    let keys = if long { 2_000_000 } else { 20_000 };
    let dir = TempDir::new().unwrap();
    let open = || Storage::open_directory(dir.path(), Beginning::Found).unwrap();
    let storage = open();
    let mut machine = machine(storage.store.clone());
    let (began, memory) = (std::time::Instant::now(), resident_mib());
    let mut most = memory;
    for batch in 0..keys / BATCH {
        let put = |number| {
            // Ledgers are made in the order of their numbers, which are spread over the tree.
            let key = format!("ledgers/{:016x}", u64::reverse_bits(batch * BATCH + number));
            Operation::Commit(Transaction::new().put(key, vec![7; 300]))
        };
        apply(&mut machine, batch * BATCH, (0..BATCH).map(put)).await.unwrap();
        most = most.max(resident_mib());
    }
    let applied = began.elapsed();
    let killed = TempDir::new().unwrap();
    for name in ["log.redb", "state.redb"] {
        std::fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
    }
    let file_mib = std::fs::metadata(dir.path().join("state.redb")).unwrap().len() >> 20;
    let began = std::time::Instant::now();
    let copied = TempDir::new().unwrap();
    let copy = Storage::open_directory(copied.path(), Beginning::Found).unwrap();
    let mut copy = self::machine(copy.store);
    let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
    copy.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap();
    let (copied, most) = (began.elapsed(), most.max(resident_mib()));
    storage.close().await;
    let began = std::time::Instant::now();
    let left = Storage::open_directory(killed.path(), Beginning::Found).unwrap();
    let opened = began.elapsed();
    let lost = left.store.applied().await.unwrap().last_log_id.map_or(0, |last| last.index);
    eprintln!(
        "{keys} keys: applied in {applied:?}, file {file_mib} MiB, memory {memory} to {most} MiB, \
         copied in {copied:?}, after a kill open in {opened:?}, {} to apply again",
        keys - 1 - lost
    );
    assert!(keys - 1 - lost < 5000);
    if long {
        assert!(most < 300, "{most} MiB");
        // Without redb's own assertions, which walk the whole file.
        assert!(cfg!(debug_assertions) || opened < Duration::from_secs(1), "{opened:?}");
    }
}

fn resident_mib() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() / 256
}
