//! The index: where each entry of each ledger is in the log, and what is known of the ledgers.
//!
//! The log alone is the truth: the index can be made anew from it. It spares memory and the reading
//! of the whole log at each start. It knows all that the log had up to a [`Mark`], and is never on
//! the path of an add: a [`Checkpoint`] brings it forward now and then, all of it or not at all.
//!
//! It is a redb database on a file that checks every page (`pages`), with the entries in *runs* of
//! many to a row (`runs`). A changed bit anywhere in the file gives an error when it is read, never
//! "not found": [`IndexError::Damaged`] says that the file is to be removed and made anew.
//!
//! Every call blocks, and so does dropping the last handle.
//!
//! Not here: what becomes durable after the last checkpoint, which its owner has in memory; and
//! making the index from the log.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use inkfast_protocol::{EntryId, LedgerId, WriterId};
use redb::{Builder, Database, ReadTransaction, ReadableDatabase, WriteTransaction};
use tokio::sync::Notify;
use uuid::Uuid;

use crate::disk::{Disk, DiskFile};
use crate::log::{Known, Mark, Place, SegmentNumber};

mod needs;
mod pages;
mod rows;
mod runs;
#[cfg(test)]
mod tests;

use needs::Needs;
use pages::{Backend, Pages};
use rows::{LEDGERS, META, SEGMENTS};
use runs::RUNS;

pub(crate) const FILE: &str = "index.redb";
/// One that is not whole yet.
const NEW_FILE: &str = "index.redb.new";
/// How many places are read at once where all are looked at.
const PLACES_AT_ONCE: usize = if cfg!(test) { 100 } else { 4096 };

/// The index of one log. Clones are handles of the same one; the last that is dropped closes it.
#[derive(Clone)]
pub(crate) struct Index(Arc<Shared>);

struct Shared {
    file: Arc<dyn DiskFile>,
    log: Uuid,
    cache_bytes: usize,
    /// None after an error of the disk: redb does nothing more then, until it is opened again.
    open: RwLock<Option<Open>>,
    /// Is told when damage is found.
    damage: Notify,
}

struct Open {
    database: Database,
    pages: Arc<Pages>,
}

/// What the index is to know next.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    /// Up to where the log is known then. It never goes back.
    pub(crate) mark: Mark,
    /// All segments of the log that there are at the mark, and where each ends.
    pub(crate) segments: BTreeMap<SegmentNumber, u32>,
    /// When segments were read and found whole, in milliseconds since 1970.
    pub(crate) verified: BTreeMap<SegmentNumber, u64>,
    /// Some of the log is lost. That stays so.
    pub(crate) damaged: bool,
    /// What is known of the ledgers of which something has changed.
    pub(crate) ledgers: BTreeMap<LedgerId, StoredLedger>,
    /// Where entries are that are new or were moved, ascending and each once in its ledger.
    pub(crate) entries: BTreeMap<LedgerId, Vec<(EntryId, Place)>>,
    /// Ledgers whose entries go: all that are there, and those in `entries`.
    pub(crate) emptied: BTreeSet<LedgerId>,
}

/// What is known of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SegmentInfo {
    /// Where it ends.
    pub(crate) bytes: u32,
    /// How many bytes the records of those entries take that the index finds there.
    pub(crate) live_bytes: u32,
    /// How many ledgers have records there that are no entries and are needed.
    pub(crate) states: u32,
    /// When all of it was last read and found whole, in milliseconds since 1970.
    pub(crate) verified_at_ms: Option<u64>,
}

impl SegmentInfo {
    /// Says whether nothing in it is needed.
    pub(crate) const fn is_dead(&self) -> bool {
        self.live_bytes == 0 && self.states == 0
    }
}

/// What is known of a ledger but for its entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StoredLedger {
    /// Its writer, and the fragment in brief that it came with.
    pub(crate) writer: Option<(WriterId, Bytes)>,
    pub(crate) fenced: bool,
    pub(crate) deleted: bool,
    /// The highest that an entry told.
    pub(crate) last_add_confirmed: Option<EntryId>,
    /// The lowest entry that is here.
    pub(crate) first: Option<EntryId>,
    /// The highest entry that is here.
    pub(crate) last: Option<EntryId>,
    /// Where its latest records are that are no entries: they must not go with their segments.
    pub(crate) state_segments: BTreeSet<SegmentNumber>,
}

/// Why the index could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    /// What is in the file is not what was written: the index is to be made anew from the log.
    #[error("the index ({FILE}) is damaged: {0}")]
    Damaged(String),
    /// The file, or what is to be written, must not be taken.
    #[error("the index ({FILE}) is refused: {0}")]
    Refused(String),
    /// The disk refused.
    #[error("cannot read or write the index ({FILE}): {0}")]
    Io(#[from] io::Error),
}

impl Index {
    /// Opens the index of a log; makes an empty one if there is none. It takes about `cache_bytes`
    /// of memory, and 1 MiB more for each GiB of its file.
    ///
    /// After an error of the disk, each call tries anew.
    pub(crate) fn open(disk: &dyn Disk, log: Uuid, cache_bytes: usize) -> Result<Self, IndexError> {
        match disk.open(FILE) {
            Ok(file) => {
                let pages = Pages::open(file.clone(), log)?;
                Self::new(file, log, cache_bytes, pages)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::make(disk, log, cache_bytes)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the index, if there is one, so that the next that is opened is empty.
    pub(crate) fn remove(disk: &dyn Disk) -> io::Result<()> {
        remove(disk, FILE)?;
        disk.sync_names()
    }

    /// Waits until the file turns out to be damaged.
    pub(crate) async fn damaged(&self) {
        self.0.damage.notified().await;
    }

    /// Returns what is known of the log; none if no checkpoint was ever committed.
    pub(crate) fn known(&self) -> Result<Option<Known>, IndexError> {
        self.read(|rows| {
            let segments = rows::segments(&rows.open_table(SEGMENTS)?)?;
            let segments = segments.into_iter().map(|(it, info)| (it, info.bytes)).collect();
            let mark = rows::mark(&rows.open_table(META)?)?;
            Ok(mark.map(|mark| Known { mark, segments }))
        })
    }

    /// Returns the segments that there were at the mark.
    pub(crate) fn segments(&self) -> Result<BTreeMap<SegmentNumber, SegmentInfo>, IndexError> {
        self.read(|rows| rows::segments(&rows.open_table(SEGMENTS)?))
    }

    /// Returns what is known of a ledger.
    pub(crate) fn ledger(&self, id: LedgerId) -> Result<Option<StoredLedger>, IndexError> {
        self.read(|rows| {
            let row = rows.open_table(LEDGERS)?.get(id.get())?;
            let ledger = row.map(|row| rows::ledger(id.get(), row.value())).transpose()?;
            Ok(ledger.map(|(_, ledger)| ledger))
        })
    }

    /// Returns what is known of the next ledgers behind one, at most so many.
    pub(crate) fn ledgers(
        &self,
        after: Option<LedgerId>,
        max: usize,
    ) -> Result<Vec<(LedgerId, StoredLedger)>, IndexError> {
        let from = after.map_or(0, |after| after.get() + 1);
        self.read(|rows| {
            let ledgers = rows.open_table(LEDGERS)?.range(from..)?.take(max).map(|row| {
                let (id, row) = row?;
                rows::ledger(id.value(), row.value())
            });
            ledgers.collect()
        })
    }

    /// Finds entries of a ledger, which are asked for in ascending order: the place of each, or
    /// none if the log did not have it before the mark.
    pub(crate) fn find(
        &self,
        ledger: LedgerId,
        entries: &[EntryId],
    ) -> Result<Vec<Option<Place>>, IndexError> {
        assert!(entries.is_sorted(), "entries are asked for out of order");
        self.read(|rows| {
            let runs = rows.open_table(RUNS)?;
            let mut places = Vec::with_capacity(entries.len());
            while let Some(&next) = entries.get(places.len()) {
                let Some(run) = runs::at_or_behind(&runs, ledger, next)? else { break };
                let asked = &entries[places.len()..];
                let here = asked.partition_point(|entry| *entry <= run.last());
                places.extend(asked[..here].iter().map(|entry| run.find(*entry)));
            }
            places.resize(entries.len(), None);
            Ok(places)
        })
    }

    /// Returns the places of the next entries of a ledger behind one, at most so many.
    pub(crate) fn places(
        &self,
        ledger: LedgerId,
        after: Option<EntryId>,
        max: usize,
    ) -> Result<Vec<(EntryId, Place)>, IndexError> {
        self.read(|rows| {
            let runs = rows.open_table(RUNS)?;
            let mut places = Vec::new();
            let mut next = EntryId::after(after);
            while places.len() < max
                && let Some(run) = runs::at_or_behind(&runs, ledger, next)?
            {
                let wanted = run.entries.iter().filter(|(entry, _)| *entry >= next);
                places.extend(wanted.take(max - places.len()));
                next = run.last().next();
            }
            Ok(places)
        })
    }

    /// Shows where the entries of the next ledgers behind one are, of at most so many ledgers, and
    /// returns the last of those; none if there are no more.
    pub(crate) fn each_place(
        &self,
        after: Option<LedgerId>,
        max: usize,
        visit: &mut dyn FnMut(LedgerId, EntryId, Place),
    ) -> Result<Option<LedgerId>, IndexError> {
        let ledgers = self.ledgers(after, max)?;
        for &(ledger, _) in &ledgers {
            let mut last = None;
            loop {
                let places = self.places(ledger, last, PLACES_AT_ONCE)?;
                places.iter().for_each(|(entry, place)| visit(ledger, *entry, *place));
                last = places.last().map(|(entry, _)| *entry);
                if places.len() < PLACES_AT_ONCE {
                    break;
                }
            }
        }
        Ok(ledgers.last().map(|(ledger, _)| *ledger))
    }

    /// Says whether some of the log was lost once.
    pub(crate) fn is_damaged(&self) -> Result<bool, IndexError> {
        self.read(|rows| rows::is_damaged(&rows.open_table(META)?))
    }

    /// Brings the index forward: all that the checkpoint says is durable when this returns, and
    /// after an error all of it or nothing is. Refuses a mark before the one that there is.
    /// Returns what is known of the segments then.
    ///
    /// Memory is bounded by the size of the checkpoint.
    pub(crate) fn commit(
        &self,
        checkpoint: &Checkpoint,
    ) -> Result<BTreeMap<SegmentNumber, SegmentInfo>, IndexError> {
        self.write(|rows| {
            let mut meta = rows.open_table(META)?;
            match rows::mark(&meta)? {
                Some(mark) if checkpoint.mark < mark => {
                    let new = checkpoint.mark;
                    let why = format!("its mark would go back, from {mark:?} to {new:?}");
                    return Err(IndexError::Refused(why));
                }
                _ => rows::set_mark(&mut meta, checkpoint.mark)?,
            }
            if checkpoint.damaged {
                rows::set_damaged(&mut meta)?;
            }
            let mut needs = Needs::default();
            let mut ledgers = rows.open_table(LEDGERS)?;
            for (id, ledger) in &checkpoint.ledgers {
                rows::set_ledger(&mut ledgers, *id, ledger, &mut needs)?;
            }
            let mut runs = rows.open_table(RUNS)?;
            for ledger in &checkpoint.emptied {
                runs::remove(&mut runs, *ledger, &mut needs)?;
            }
            for (ledger, entries) in &checkpoint.entries {
                let ascending = entries.is_sorted_by(|(a, _), (b, _)| a < b);
                assert!(ascending, "entries are checkpointed out of order");
                if !checkpoint.emptied.contains(ledger) {
                    runs::add(&mut runs, *ledger, entries, &mut needs)?;
                }
            }
            rows::set_segments(&mut rows.open_table(SEGMENTS)?, checkpoint, &needs)
        })
    }

    /// Makes an empty index. It gets its name when it is whole.
    fn make(disk: &dyn Disk, log: Uuid, cache_bytes: usize) -> Result<Self, IndexError> {
        remove(disk, NEW_FILE)?;
        let file = disk.create(NEW_FILE)?;
        let pages = Pages::create(file.clone(), log);
        let index = Self::new(file, log, cache_bytes, pages)?;
        index.write(|rows| {
            rows.open_table(META)?;
            rows.open_table(SEGMENTS)?;
            rows.open_table(LEDGERS)?;
            rows.open_table(RUNS)?;
            Ok(())
        })?;
        disk.rename(NEW_FILE, FILE)?;
        disk.sync_names()?;
        Ok(index)
    }

    fn new(
        file: Arc<dyn DiskFile>,
        log: Uuid,
        cache_bytes: usize,
        pages: Pages,
    ) -> Result<Self, IndexError> {
        let open = RwLock::new(Some(Open::new(pages, cache_bytes)?));
        let damage = Notify::new();
        Ok(Self(Arc::new(Shared { file, log, cache_bytes, open, damage })))
    }

    fn read<T>(
        &self,
        work: impl FnOnce(&ReadTransaction) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.0.run(|database| work(&database.begin_read()?))
    }

    fn write<T>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        self.0.run(|database| {
            let mut rows = database.begin_write()?;
            // Or all of the file would be read after a crash.
            rows.set_quick_repair(true);
            let done = work(&rows)?;
            rows.commit()?;
            Ok(done)
        })
    }
}

impl Shared {
    fn run<T>(
        &self,
        work: impl FnOnce(&Database) -> Result<T, IndexError>,
    ) -> Result<T, IndexError> {
        let mut open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            drop(open);
            self.open_again()?;
            open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        }
        let Some(Open { database, pages }) = &*open else { return Err(failed_before()) };
        let done = work(database).map_err(|error| pages.damaged_or(error));
        if matches!(done, Err(IndexError::Damaged(_))) {
            self.damage.notify_one();
        }
        if matches!(done, Err(IndexError::Io(_))) {
            drop(open);
            // Waits for all who use it: two must not write the same file.
            *self.open.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
        done
    }

    fn open_again(&self) -> Result<(), IndexError> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.is_none() {
            // The very file: another of its name, or a new one, would not have what it has.
            let pages = Pages::open(self.file.clone(), self.log)?;
            *open = Some(Open::new(pages, self.cache_bytes)?);
        }
        Ok(())
    }
}

impl Open {
    fn new(pages: Pages, cache_bytes: usize) -> Result<Self, IndexError> {
        let pages = Arc::new(pages);
        let database = Builder::new()
            .set_cache_size(cache_bytes)
            .create_with_backend(Backend(pages.clone()))
            .map_err(|error| pages.damaged_or(error.into()))?;
        Ok(Self { database, pages })
    }
}

fn remove(disk: &dyn Disk, name: &str) -> io::Result<()> {
    match disk.remove(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn failed_before() -> IndexError {
    IndexError::Io(io::Error::other("an earlier access failed"))
}

impl From<redb::Error> for IndexError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => Self::Io(error),
            redb::Error::PreviousIo => failed_before(),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// redb has an error type for each step.
macro_rules! from_redb {
    ($($step:ident)*) => {$(
        impl From<redb::$step> for IndexError {
            fn from(error: redb::$step) -> Self {
                redb::Error::from(error).into()
            }
        }
    )*};
}

from_redb!(StorageError TableError TransactionError CommitError DatabaseError);
