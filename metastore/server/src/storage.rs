//! All that a member keeps on disk: its log, and the state that the log has made so far.

use std::path::Path;
use std::sync::Arc;

use redb::Database;
use uuid::Uuid;

use crate::consensus::log::Log;
use crate::consensus::log::file::{Found, LogFile};
use crate::consensus::types::LogId;
use crate::directory::{Directory, Files, INCOMING, LOG, NEW_LOG, NEW_STATE, STATE};
use crate::error::Error;
use crate::member::{Member, StoredMember};
use crate::store::{self, Executor, Store};

/// What an empty directory becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// The first member of a new cluster.
    Found,
    /// A member that the members of a cluster have yet to take in.
    Join {
        /// The cluster.
        cluster: Uuid,
    },
}

/// The files of a member, open. Clones are handles of the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    pub(crate) member: Member,
    pub(crate) log: Log,
    pub(crate) store: Store,
    founder: bool,
    joining: bool,
}

impl Storage {
    /// Opens the member of a directory, or makes both; `beginning` is for an empty one only. It
    /// blocks, and must be called in a tokio runtime, where the task that writes the log runs.
    ///
    /// Refuses a directory of something else, files that are damaged or of a newer format, and a
    /// directory that another process has open.
    pub(crate) fn open_directory(dir: &Path, beginning: Beginning) -> Result<Self, Error> {
        Self::open(Directory::lock(dir)?, Executor::Threads, beginning)
    }

    /// Opens the member whose files these are, as [`Storage::open_directory`] does.
    pub(crate) fn open(
        files: impl Files,
        executor: Executor,
        beginning: Beginning,
    ) -> Result<Self, Error> {
        let files: Arc<dyn Files> = Arc::new(files);
        begin(&*files, beginning)?;
        let (file, found) = LogFile::open(&*files)?;
        let database = open_state(&*files, &found)?;
        let store = Store::new(database, files.clone(), executor);
        let (member, founder, joining) = (found.member.clone(), found.founder, found.joining);
        let log = Log::start(file, found, files, executor);
        Ok(Self { member, log, store, founder, joining })
    }

    /// Returns the member that lives in a directory; none if it is missing or empty. It blocks.
    ///
    /// Refuses what [`Storage::open_directory`] does.
    pub(crate) fn member_of(dir: &Path) -> Result<Option<Member>, Error> {
        if !Directory::has_member(dir)? {
            return Ok(None);
        }
        let (_, found) = LogFile::open(&Directory::lock(dir)?)?;
        Ok(Some(found.member))
    }

    /// Returns whether the cluster has yet to begin with this member.
    pub(crate) fn founds(&self) -> bool {
        self.founder && self.log.is_empty()
    }

    /// Returns whether, when it was opened, this member had yet to be made a voter for the first
    /// time: one that was and is none any more has been removed, and does not come back by itself.
    pub(crate) const fn joins(&self) -> bool {
        self.joining
    }

    /// Closes the files, after what is still being done on them, with all of the state on disk;
    /// whatever comes later fails. When it returns, another may open them.
    pub(crate) async fn close(self) {
        self.log.close().await;
        self.store.close().await;
    }
}

/// Makes the log of a new member, unless there is one. Made aside and renamed when it is whole: a
/// file that is there is never made anew, whatever it looks like.
fn begin(files: &dyn Files, beginning: Beginning) -> Result<(), Error> {
    if files.exists(LOG).map_err(|error| Error::database(LOG, error))? {
        return Ok(());
    }
    let (cluster, founder) = match beginning {
        Beginning::Found => (Uuid::new_v4(), true),
        Beginning::Join { cluster } => (cluster, false),
    };
    let mut member = StoredMember::new(&Member::new(cluster), founder);
    member.joining = !founder;
    drop(LogFile::make(files, NEW_LOG, &member, &[])?);
    files.rename(NEW_LOG, LOG).map_err(|error| Error::database(LOG, error))
}

/// Opens the state, which is made if there is none and the log begins at its beginning; and removes
/// what was left half done.
///
/// Refuses a state to which the log does not reach back.
pub(crate) fn open_state(files: &dyn Files, found: &Found) -> Result<Database, Error> {
    let failed = |error| Error::database(STATE, error);
    for left in [NEW_LOG, NEW_STATE, INCOMING] {
        files.remove(left).map_err(failed)?;
    }
    if !files.exists(STATE).map_err(failed)? && found.purged.is_none() {
        drop(store::make(files, NEW_STATE)?);
        files.rename(NEW_STATE, STATE).map_err(failed)?;
    }
    let applied = match files.exists(STATE).map_err(failed)? {
        true => {
            let database = store::open(files)?;
            let applied = store::read_applied(&database)?.last_log_id;
            if applied.map(|applied| applied.index) >= found.purged.map(|purged| purged.index) {
                return Ok(database);
            }
            applied
        }
        false => None,
    };
    let log_id = |id: Option<LogId>| id.map_or_else(|| "nothing".into(), |id| id.to_string());
    Err(Error::not_a_metastore(format!(
        "{STATE} is missing, or an old copy: it has the log up to {}, and {LOG} begins after {}",
        log_id(applied),
        log_id(found.purged)
    )))
}

#[cfg(test)]
mod tests;
