//! The doctor: looks at the directory of a bookie that does not run.
//!
//! [`examine`], [`records`] and [`dump`] change nothing, whatever they find: files are open for
//! reading alone, so that a disk that takes no writes can be examined too, and what the log and the
//! index do when they are opened happens in memory. They see what a start of the bookie would see,
//! but read all of it. [`rebuild_index`] is the one that writes.
//!
//! All of them hold the directory's lock, and refuse one that is in use. Memory is bounded, however
//! much there is. Not here: mending a log. What it has lost other bookies have.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use inkfast_protocol::{BookieId, EntryId, LedgerId};
use uuid::Uuid;

use crate::Error;
use crate::disk::{Disk, OsDisk, Overlay};
use crate::executor::Executor;
use crate::identity::{self, BookieIdentity, Label};
use crate::index::Index;
use crate::log::{Cut, Mark, SegmentNumber};
use crate::memory::{DEFAULT_BYTES, Memory};
use crate::store::Store;

mod examination;
mod listing;
#[cfg(test)]
mod tests;

pub use listing::{Listed, What, dump, records};

/// The memory that the index takes for its pages.
const INDEX_CACHE_BYTES: usize = 64 << 20;
/// The most entries that are named of those that one trouble hits.
const NAMED_MAX: usize = 100;

/// What was found in a directory.
#[derive(Debug)]
pub struct Report {
    /// Whose it is.
    pub bookie: BookieId,
    /// The cluster that the bookie belongs to.
    pub cluster: Uuid,
    /// The name in its certificate.
    pub name: String,
    /// The log in the directory.
    pub log: Uuid,
    /// The logs that the bookie has in other directories.
    pub other_logs: Vec<Uuid>,
    /// The segments of the log, also those that are missing.
    pub segments: BTreeMap<SegmentNumber, SegmentReport>,
    /// How many files wait to become segments.
    pub spares: usize,
    /// How many entries the log has whole; one that was moved counts twice as long as both are there.
    pub entries: u64,
    /// How many records of any kind the next start brings to the index.
    pub unindexed: u64,
    /// What the index says of itself.
    pub index: IndexReport,
    /// What was being written when the bookie last stopped; the next start cuts it off. It was
    /// never acknowledged, and is no trouble.
    pub cut: Option<Cut>,
    /// All that is wrong.
    pub troubles: Vec<Trouble>,
}

/// What was found of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SegmentReport {
    /// How long its records are, as far as is known.
    pub bytes: u32,
    /// How much of it is needed, if the index says so.
    pub live_bytes: Option<u32>,
    /// When a running bookie last found it whole, in milliseconds since 1970.
    pub verified_at_ms: Option<u64>,
    /// Whether all of it was there and sound.
    pub is_whole: bool,
}

/// What was found of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexReport {
    /// It can be read, and knows the log up to a moment; none if it is new.
    Sound(Option<Mark>),
    /// There is none.
    Missing,
    /// It cannot be read, for this reason.
    Damaged(String),
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Whether the log has lost something; otherwise making the index anew helps.
    pub in_log: bool,
    /// What it is.
    pub what: String,
    /// Entries that are hit, as far as the index knows them; at most a hundred.
    pub entries: Vec<(LedgerId, EntryId)>,
    /// How many there are beyond those.
    pub beyond: u64,
}

/// What [`rebuild_index`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebuilt {
    /// How many ledgers the new index knows.
    pub ledgers: u64,
    /// How many entries it finds.
    pub entries: u64,
    /// How much of the log is damaged, in places.
    pub damages: usize,
}

/// Reads all of a directory, and tells what there is and what is wrong. Blocks.
///
/// Fails if it is in use, or not a bookie's as far as can be told.
pub fn examine(dir: &Path) -> Result<Report, Error> {
    Patient::open(dir).and_then(|patient| examination::examine(&patient))
}

/// Removes the index, and makes it anew from the log; all else stays as it is, but for what every
/// start does.
///
/// Refuses while the index can be read and the log is damaged: it may know what the log has lost.
pub async fn rebuild_index(dir: &Path) -> Result<Rebuilt, Error> {
    let report = examine(dir)?;
    let log_is_damaged = report.troubles.iter().any(|trouble| trouble.in_log);
    if log_is_damaged && matches!(report.index, IndexReport::Sound(_)) {
        let why = "its log is damaged and its index is not: the index knows more than could be \
                   made of the log, so it stays";
        return Err(Error::directory(dir, why));
    }
    if report.segments.is_empty() {
        return Err(Error::directory(dir, "it has no log of which an index could be made"));
    }
    let refused = |error: String| Error::directory(dir, error);
    let disk: Arc<dyn Disk> =
        Arc::new(OsDisk::open(dir).map_err(|error| refused(error.to_string()))?);
    Index::remove(&*disk).map_err(|error| refused(error.to_string()))?;
    let memory = Memory::share(DEFAULT_BYTES, 1);
    let opened = Store::open(Arc::clone(&disk), report.log, Executor::Threads, memory).await;
    let (store, replayed, task) = opened.map_err(|error| refused(error.to_string()))?;
    // It ends when all is in the index.
    drop(store);
    task.await.map_err(|error| refused(error.to_string()))?;
    let count = || {
        let index = Index::open(&*disk, report.log, INDEX_CACHE_BYTES)?;
        let mut rebuilt = Rebuilt { ledgers: 0, entries: 0, damages: replayed.damages.len() };
        let mut after = None;
        loop {
            let mut entries = 0;
            after = index.each_place(after, 1, &mut |_, _, _| entries += 1)?;
            if after.is_none() {
                return Ok(rebuilt);
            }
            rebuilt.ledgers += 1;
            rebuilt.entries += entries;
        }
    };
    count().map_err(|error: crate::index::IndexError| refused(error.to_string()))
}

/// A directory that is looked at.
struct Patient {
    disk: Arc<Overlay>,
    label: Label,
}

impl Patient {
    fn open(dir: &Path) -> Result<Self, Error> {
        let refused = |why: String| Error::directory(dir, why);
        if !fs::metadata(dir).is_ok_and(|it| it.is_dir()) {
            return Err(refused("there is no such directory".to_owned()));
        }
        let disk = OsDisk::open_to_read(dir).map_err(|error| refused(error.to_string()))?;
        Self::of(Arc::new(disk), dir)
    }

    fn of(disk: Arc<dyn Disk>, dir: &Path) -> Result<Self, Error> {
        let disk = Arc::new(Overlay::new(disk));
        let label = identity::load(&*disk, dir)?.ok_or_else(|| {
            let why = format!("it has no file '{}', so it is no bookie's", identity::FILE);
            Error::directory(dir, why)
        })?;
        Ok(Self { disk, label })
    }

    fn disk(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// Opens the index; none if there is no file of it.
    fn index(&self) -> Option<Result<Index, crate::index::IndexError>> {
        match self.disk.open(crate::index::FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            _ => Some(Index::open(&*self.disk, self.label.log, INDEX_CACHE_BYTES)),
        }
    }
}

impl Report {
    fn new(label: &Label) -> Self {
        let BookieIdentity { id, cluster, name, .. } = label.bookie.clone();
        Self {
            bookie: id,
            cluster,
            name,
            log: label.log,
            other_logs: label.logs.iter().copied().filter(|log| *log != label.log).collect(),
            segments: BTreeMap::new(),
            spares: 0,
            entries: 0,
            unindexed: 0,
            index: IndexReport::Missing,
            cut: None,
            troubles: Vec::new(),
        }
    }
}

impl Trouble {
    fn new(in_log: bool, what: impl Into<String>) -> Self {
        Self { in_log, what: what.into(), entries: Vec::new(), beyond: 0 }
    }

    fn hits(&mut self, ledger: LedgerId, entry: EntryId) {
        if self.entries.len() < NAMED_MAX {
            self.entries.push((ledger, entry));
        } else {
            self.beyond += 1;
        }
    }
}
