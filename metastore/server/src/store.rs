//! The state on disk: the rows, and how much of the log they have.
//!
//! A commit is seen by readers at once, but is on disk only when one that is synced comes after it:
//! after so many entries or bytes, before the log is purged, and at the end. What a power cut takes
//! back is in the log still, and is applied again.

use std::fmt::{self, Debug, Formatter};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use inkfast_metastore::rows::StateError;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::consensus::codec::Coded;
use crate::consensus::types::SnapshotMeta;
use crate::database::{self, META, seal, unseal};
use crate::directory::{Files, STATE};
use crate::error::Error;
use crate::rows::{ReadRows, RedbRows, WriteRows, state_error};

/// The most memory that redb's cache takes.
const CACHE_BYTES: usize = 64 << 20;
/// The most entries that are applied and not on disk: what a restart may have to apply again.
const UNSYNCED_ENTRIES_MAX: usize = 4096;
/// The most bytes of such entries.
const UNSYNCED_BYTES_MAX: usize = 16 << 20;
/// How many entries are applied at most until log is forgotten though a snapshot is being sent.
const SENDING_ENTRIES_MAX: usize = if cfg!(test) { 2000 } else { 1_000_000 };
/// The same in bytes of entries.
const SENDING_BYTES_MAX: usize = 1 << 30;
/// How long the disk may take for what it is asked, which is bounded. A disk that takes longer
/// counts as broken: somebody else leads then.
pub(crate) const DISK_DEADLINE: Duration = Duration::from_secs(10);
/// How much longer it may take for each entry that is applied, which has many changes at most.
const ENTRY_DEADLINE: Duration = Duration::from_millis(20);

/// The rows.
pub(crate) const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
const META_APPLIED: &str = "applied";

/// Where redb's calls run, which block.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Executor {
    /// On tokio's threads for blocking calls.
    Threads,
    /// In the task that calls: for disks that do not block, and where there must be no threads.
    #[cfg(test)]
    Inline,
    /// The same, but some milliseconds late by chance, as if the disk were slow.
    #[cfg(test)]
    Late,
}

/// The state of a metastore on disk. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    pub(crate) shared: Arc<Shared>,
    pub(crate) executor: Executor,
}

#[derive(Debug)]
pub(crate) struct Shared {
    /// None once it is closed.
    open: RwLock<Option<Open>>,
    /// Held by whoever writes.
    unsynced: Mutex<Unsynced>,
    /// One snapshot is received at a time.
    pub(crate) receiving: Arc<Semaphore>,
    since_snapshot: Mutex<SinceSnapshot>,
}

#[derive(Debug)]
struct Open {
    copy: Arc<Copy>,
    /// Keeps others away.
    files: Arc<dyn Files>,
}

/// A copy of the state. One that is received takes the place of the one before, which is there as
/// long as somebody reads it.
pub(crate) struct Copy(RwLock<Option<Database>>);

/// What was committed and not synced.
#[derive(Debug, Default)]
struct Unsynced {
    entries: usize,
    bytes: usize,
}

/// What has happened since log was last forgotten.
#[derive(Debug, Default)]
struct SinceSnapshot {
    entries: usize,
    bytes: usize,
    /// How many views are being sent now.
    sending: usize,
}

/// A view that is being sent, until it is dropped.
pub(crate) struct Sending(Arc<Shared>);

/// How much is applied at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amount {
    pub(crate) entries: usize,
    pub(crate) bytes: usize,
}

impl Store {
    /// Makes the store of an open file.
    pub(crate) fn new(database: Database, files: Arc<dyn Files>, executor: Executor) -> Self {
        let open = Open { copy: Arc::new(Copy(RwLock::new(Some(database)))), files };
        let shared = Shared {
            open: RwLock::new(Some(open)),
            unsynced: Mutex::default(),
            receiving: Arc::new(Semaphore::new(1)),
            since_snapshot: Mutex::default(),
        };
        Self { shared: Arc::new(shared), executor }
    }

    /// Reads the state as all commits so far have left it.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ReadRows) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        self.run(move |shared| shared.copy()?.read(|database| work(&rows(database)?))).await
    }

    /// Returns how much of the log the state has.
    pub(crate) async fn applied(&self) -> Result<SnapshotMeta, StateError> {
        self.run(|shared| shared.copy()?.read(read_applied)).await
    }

    /// Changes the state, and how much of the log it has: all of it, or after an error nothing, and
    /// then nothing more may be written. Readers see it when this returns. Fails if the disk does
    /// not answer; then it may be done later.
    pub(crate) async fn apply<T: Send + 'static>(
        &self,
        amount: Amount,
        work: impl FnOnce(&mut WriteRows<'_>, &mut SnapshotMeta) -> Result<T, StateError>
        + Send
        + 'static,
    ) -> Result<T, StateError> {
        let entries = u32::try_from(amount.entries).unwrap_or(u32::MAX);
        let deadline = DISK_DEADLINE + ENTRY_DEADLINE.saturating_mul(entries);
        self.run_within(deadline, move |shared| {
            shared.count(amount);
            let mut unsynced = shared.writing();
            unsynced.entries += amount.entries;
            unsynced.bytes += amount.bytes;
            let full =
                unsynced.entries >= UNSYNCED_ENTRIES_MAX || unsynced.bytes >= UNSYNCED_BYTES_MAX;
            let durability = if full { Durability::Immediate } else { Durability::None };
            let done = shared.copy()?.read(|database| write(database, durability, work))?;
            if full {
                *unsynced = Unsynced::default();
            }
            Ok(done)
        })
        .await
    }

    /// Sees to it that all that was committed is on disk, and then does something with it before
    /// anything more is committed. Fails if the disk does not answer.
    pub(crate) async fn sync_and<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<Copy>) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        self.run_within(DISK_DEADLINE, move |shared| {
            let mut unsynced = shared.writing();
            let copy = shared.copy()?;
            sync(&mut unsynced, &copy)?;
            work(copy)
        })
        .await
    }

    /// Puts another copy in the place of the one that there is, durably: a power cut leaves the one
    /// or the other.
    pub(crate) async fn replace(
        &self,
        name: &'static str,
        database: Database,
    ) -> Result<(), StateError> {
        self.run(move |shared| {
            let mut unsynced = shared.writing();
            shared.files(|files| files.rename(name, STATE))?;
            *unsynced = Unsynced::default();
            let mut open = shared.open.write().unwrap_or_else(PoisonError::into_inner);
            let open = open.as_mut().ok_or_else(closed)?;
            open.copy = Arc::new(Copy(RwLock::new(Some(database))));
            Ok(())
        })
        .await
    }

    /// Returns whether log has to be kept for who receives a snapshot, as no other snapshot need be
    /// made: one is being sent, and not too much was applied since log was last forgotten.
    pub(crate) fn keeps_log(&self) -> bool {
        let since = self.shared.since_snapshot();
        since.sending > 0 && since.entries < SENDING_ENTRIES_MAX && since.bytes < SENDING_BYTES_MAX
    }

    /// Notes that log is forgotten now.
    pub(crate) fn forgets_log(&self) {
        let mut since = self.shared.since_snapshot();
        (since.entries, since.bytes) = (0, 0);
    }

    /// Closes the file, after what is still being done on it, with all of it on disk; later calls
    /// fail. If the disk does not answer, it is given up, and open until the process ends.
    pub(crate) async fn close(&self) {
        let shared = self.shared.clone();
        let close = move || {
            let mut unsynced = shared.writing();
            let open = shared.open.write().unwrap_or_else(PoisonError::into_inner).take();
            let Some(open) = open else { return Ok(()) };
            let synced = sync(&mut unsynced, &open.copy);
            open.copy.close();
            synced
        };
        if let Err(error) = self.executor.run_within(DISK_DEADLINE, close).await.flatten() {
            tracing::error!(%error, "the state was not closed in order");
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let shared = self.shared.clone();
        self.executor.run(move || work(&shared)).await.flatten()
    }

    async fn run_within<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl FnOnce(&Shared) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let shared = self.shared.clone();
        self.executor.run_within(deadline, move || work(&shared)).await.flatten()
    }
}

impl Shared {
    /// Returns the copy that there is now.
    fn copy(&self) -> Result<Arc<Copy>, StateError> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.as_ref().map(|open| open.copy.clone()).ok_or_else(closed)
    }

    /// Does something with the files, which others have once it is closed.
    pub(crate) fn files<T>(
        &self,
        work: impl FnOnce(&dyn Files) -> io::Result<T>,
    ) -> Result<T, StateError> {
        match &*self.open.read().unwrap_or_else(PoisonError::into_inner) {
            Some(open) => work(&*open.files).map_err(state_error),
            None => Err(closed()),
        }
    }

    fn count(&self, amount: Amount) {
        let mut since = self.since_snapshot();
        since.entries += amount.entries;
        since.bytes += amount.bytes;
    }

    fn since_snapshot(&self) -> MutexGuard<'_, SinceSnapshot> {
        self.since_snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Unsynced> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sending {
    pub(crate) fn begin(shared: &Arc<Shared>) -> Self {
        shared.since_snapshot().sending += 1;
        Self(shared.clone())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.0.since_snapshot().sending -= 1;
    }
}

impl Copy {
    /// Does something with the file, which is not closed meanwhile.
    pub(crate) fn read<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        match &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            Some(database) => work(database),
            None => Err(closed()),
        }
    }

    fn close(&self) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Debug for Copy {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("Copy")
    }
}

impl Executor {
    /// Does something for which the disk is waited so long and no longer. Later it may still be
    /// done.
    pub(crate) async fn run_within<T: Send + 'static>(
        self,
        deadline: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StateError> {
        let silent = |_| StateError(format!("the disk has not answered for {deadline:?}"));
        timeout(deadline, self.run(work)).await.map_err(silent).flatten()
    }

    pub(crate) async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StateError> {
        match self {
            #[cfg(test)]
            Self::Inline => Ok(work()),
            #[cfg(test)]
            Self::Late => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(..6))).await;
                Ok(work())
            }
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(state_error),
        }
    }
}

fn closed() -> StateError {
    StateError("it has been closed".into())
}

/// Makes the file of an empty state under a name of its own.
pub(crate) fn make(files: &dyn Files, name: &str) -> Result<Database, Error> {
    database::make(files, name, CACHE_BYTES, |transaction| {
        transaction.open_table(ROWS)?;
        let sealed = seal(META_APPLIED.as_bytes(), &SnapshotMeta::default().encode());
        transaction.open_table(META)?.insert(META_APPLIED, sealed.as_slice())?;
        Ok(())
    })
}

/// Opens the file of the state.
pub(crate) fn open(files: &dyn Files) -> Result<Database, Error> {
    database::open(files, STATE, CACHE_BYTES, false)
}

/// Syncs what was committed, if there is any.
fn sync(unsynced: &mut Unsynced, copy: &Copy) -> Result<(), StateError> {
    if unsynced.entries > 0 {
        copy.read(|database| write(database, Durability::Immediate, |_, _| Ok(())))?;
        *unsynced = Unsynced::default();
    }
    Ok(())
}

/// Returns the rows as they are now.
pub(crate) fn rows(database: &Database) -> Result<ReadRows, StateError> {
    let transaction = database.begin_read().map_err(state_error)?;
    Ok(RedbRows(transaction.open_table(ROWS).map_err(state_error)?))
}

/// Returns how much of the log the rows have now.
pub(crate) fn read_applied(database: &Database) -> Result<SnapshotMeta, StateError> {
    let transaction = database.begin_read().map_err(state_error)?;
    applied(&transaction.open_table(META).map_err(state_error)?)
}

fn applied(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<SnapshotMeta, StateError> {
    let damaged = |why: &str| StateError(format!("{STATE}: how much of the log it has {why}"));
    let Some(sealed) = meta.get(META_APPLIED).map_err(state_error)? else {
        return Err(damaged("is not there"));
    };
    let value = unseal(META_APPLIED.as_bytes(), sealed.value());
    let value = value.ok_or_else(|| damaged("is damaged"))?;
    SnapshotMeta::decode(Bytes::copy_from_slice(value)).map_err(state_error)
}

/// Changes the rows, and how much of the log they have, in one transaction.
pub(crate) fn write<T>(
    database: &Database,
    durability: Durability,
    work: impl FnOnce(&mut WriteRows<'_>, &mut SnapshotMeta) -> Result<T, StateError>,
) -> Result<T, StateError> {
    let mut transaction = database.begin_write().map_err(state_error)?;
    transaction.set_durability(durability).map_err(state_error)?;
    // So that an open after a kill does not walk the whole file.
    transaction.set_quick_repair(matches!(durability, Durability::Immediate));
    let done = work_on(&transaction, work)?;
    transaction.commit().map_err(state_error)?;
    Ok(done)
}

/// Changes the rows, and how much of the log they have, in a transaction.
pub(crate) fn work_on<T>(
    transaction: &WriteTransaction,
    work: impl FnOnce(&mut WriteRows<'_>, &mut SnapshotMeta) -> Result<T, StateError>,
) -> Result<T, StateError> {
    let mut meta = transaction.open_table(META).map_err(state_error)?;
    let before = applied(&meta)?;
    let mut applied = before.clone();
    let mut rows = RedbRows(transaction.open_table(ROWS).map_err(state_error)?);
    let done = work(&mut rows, &mut applied)?;
    if applied != before {
        let sealed = seal(META_APPLIED.as_bytes(), &applied.encode());
        meta.insert(META_APPLIED, sealed.as_slice()).map_err(state_error)?;
    }
    Ok(done)
}

#[cfg(test)]
mod tests;
