//! The state on disk: one redb file, and who this member is.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use inkfast_metastore::rows::StateError;
use prost::Message;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, Durability, ReadableDatabase, StorageBackend, TableDefinition, TableError,
};
use uuid::Uuid;

use crate::directory::Directory;
use crate::error::Error;
use crate::rows::{ReadRows, RedbRows, WriteRows, state_error};

/// The format of the file; a higher one is refused.
pub const FORMAT: u32 = 1;
/// The most memory that redb's cache takes.
const CACHE_BYTES: usize = 64 << 20;

/// What is of this file alone, not of the state that members share.
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// The state.
const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("state");
const META_FORMAT: &str = "format";
const META_MEMBER: &str = "member";

/// Where redb's calls run, which block.
#[derive(Clone, Copy, Debug)]
pub enum Executor {
    /// On tokio's threads for blocking calls.
    Threads,
    /// In the task that calls: for disks that do not block, and where there must be no threads.
    Inline,
}

/// The state of a metastore on disk. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
    executor: Executor,
}

#[derive(Debug)]
struct Shared {
    member: Member,
    /// None once it is closed.
    open: RwLock<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    database: Database,
    /// Keeps other processes away.
    _directory: Option<Directory>,
}

/// Who this member of the metastore is. Made once, when the file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The cluster's id.
    pub cluster: Uuid,
    /// This member's own id.
    pub id: Uuid,
    /// The key by which a peer notices a restart.
    pub reset_key: [u8; 64],
}

impl Store {
    /// Opens the store of a directory, or makes both.
    ///
    /// Refuses a directory of something else, a file of a newer format, and a directory that
    /// another process has open.
    pub fn open_directory(dir: &Path) -> Result<Self, Error> {
        let directory = Directory::lock(dir)?;
        if let Some(new) = directory.begin_file()? {
            // Made aside and renamed when it is whole: a file that is there is never made anew,
            // whatever it looks like.
            Self::open(FileBackend::new(new).map_err(Error::database)?, Executor::Threads)?;
            directory.finish_file()?;
        }
        let backend = FileBackend::new(directory.open_file()?).map_err(Error::database)?;
        Self::open_locked(backend, Some(directory), Executor::Threads)
    }

    /// Opens the store on any disk, or makes it on an empty one. Whoever calls sees to it that
    /// nobody else uses the disk meanwhile.
    pub fn open(backend: impl StorageBackend, executor: Executor) -> Result<Self, Error> {
        Self::open_locked(backend, None, executor)
    }

    fn open_locked(
        backend: impl StorageBackend,
        directory: Option<Directory>,
        executor: Executor,
    ) -> Result<Self, Error> {
        let database = Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(backend)
            .map_err(Error::database)?;
        let member = match read_member(&database)? {
            Some(member) => member,
            None => initialise(&database).map_err(Error::database)?,
        };
        let open = RwLock::new(Some(Open { database, _directory: directory }));
        Ok(Self { shared: Arc::new(Shared { member, open }), executor })
    }

    /// Returns who this member is.
    pub fn member(&self) -> &Member {
        &self.shared.member
    }

    /// Reads the state as all commits so far have left it.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&ReadRows) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        self.run(move |database| {
            let transaction = database.begin_read().map_err(state_error)?;
            work(&RedbRows(transaction.open_table(STATE).map_err(state_error)?))
        })
        .await
    }

    /// Changes the state: when it returns, all of it is on disk, or after an error nothing counts
    /// and nothing more may be written.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut WriteRows<'_>) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        self.run(move |database| {
            let mut transaction = database.begin_write().map_err(state_error)?;
            transaction.set_durability(Durability::Immediate).map_err(state_error)?;
            // So that an open after a kill does not walk the whole file.
            transaction.set_quick_repair(true);
            let table = transaction.open_table(STATE).map_err(state_error)?;
            let done = work(&mut RedbRows(table))?;
            transaction.commit().map_err(state_error)?;
            Ok(done)
        })
        .await
    }

    /// Closes the file, after what is still being done on it; later calls fail.
    pub(crate) async fn close(&self) {
        let shared = self.shared.clone();
        let close = move || {
            shared.open.write().unwrap_or_else(PoisonError::into_inner).take();
        };
        if let Err(error) = self.executor.run(close).await {
            tracing::error!(%error, "the store was not closed in order");
        }
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, StateError> + Send + 'static,
    ) -> Result<T, StateError> {
        let shared = self.shared.clone();
        let run = move || match &*shared.open.read().unwrap_or_else(PoisonError::into_inner) {
            Some(open) => work(&open.database),
            None => Err(StateError("it has been closed".into())),
        };
        self.executor.run(run).await?
    }
}

impl Executor {
    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, StateError> {
        match self {
            Self::Inline => Ok(work()),
            Self::Threads => tokio::task::spawn_blocking(work).await.map_err(state_error),
        }
    }
}

/// Reads who the member is; none if the file is new.
fn read_member(database: &Database) -> Result<Option<Member>, Error> {
    let transaction = database.begin_read().map_err(Error::database)?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            let mut tables = transaction.list_tables().map_err(Error::database)?;
            return match tables.next() {
                None => Ok(None),
                Some(_) => Err(Error::not_a_metastore("it is a redb file of something else")),
            };
        }
        Err(error) => return Err(Error::not_a_metastore(error.to_string())),
    };
    let row = |name| {
        let value = meta.get(name).map_err(Error::database)?;
        let value = value.ok_or_else(|| Error::not_a_metastore(format!("it has no {name}")))?;
        Ok::<_, Error>(value.value().to_vec())
    };
    let malformed = |_| Error::not_a_metastore("its meta table is malformed");
    let format = row(META_FORMAT)?.try_into().map(u32::from_le_bytes).map_err(malformed)?;
    if format > FORMAT {
        return Err(Error::NewerFormat { found: format });
    }
    let stored = StoredMember::decode(row(META_MEMBER)?.as_slice())
        .map_err(|error| Error::not_a_metastore(error.to_string()))?;
    Ok(Some(Member {
        cluster: Uuid::from_bytes(stored.cluster.try_into().map_err(malformed)?),
        id: Uuid::from_bytes(stored.id.try_into().map_err(malformed)?),
        reset_key: stored.reset_key.try_into().map_err(malformed)?,
    }))
}

/// Makes a new cluster's first member.
fn initialise(database: &Database) -> Result<Member, redb::Error> {
    let mut reset_key = [0; 64];
    for part in reset_key.chunks_mut(16) {
        part.copy_from_slice(Uuid::new_v4().as_bytes());
    }
    let member = Member { cluster: Uuid::new_v4(), id: Uuid::new_v4(), reset_key };
    let stored = StoredMember {
        cluster: member.cluster.as_bytes().to_vec(),
        id: member.id.as_bytes().to_vec(),
        reset_key: reset_key.to_vec(),
    };
    let transaction = database.begin_write()?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())?;
        meta.insert(META_MEMBER, stored.encode_to_vec().as_slice())?;
        transaction.open_table(STATE)?;
    }
    transaction.commit()?;
    Ok(member)
}

/// The member as it is stored.
#[derive(Clone, PartialEq, Message)]
struct StoredMember {
    #[prost(bytes, tag = "1")]
    cluster: Vec<u8>,
    #[prost(bytes, tag = "2")]
    id: Vec<u8>,
    #[prost(bytes, tag = "3")]
    reset_key: Vec<u8>,
}

#[cfg(test)]
mod tests;
