//! The store: all ledgers of one data directory, their gates, their index and their log.
//!
//! One task owns everything and takes commands in order, so that a fence, an add and what the
//! disk says of them are never seen in two orders. It waits for the log and for commands, and for
//! nothing else that a client could delay.

use std::mem;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use inkfast_protocol::gate::Adder;
use inkfast_protocol::{EntryId, LedgerId, Refusal, Run};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::disk::Disk;
use crate::executor::Executor;
use crate::index::{Index, IndexError, StoredLedger};
use crate::log::{LogError, Place, Reader, Replayed};
use crate::memory::Memory;

use keeper::Keeper;

pub(crate) use reading::Wanted;
pub(crate) use tips::Tip;

mod checkpoint;
pub(crate) mod compaction;
mod effects;
mod keeper;
mod ledgers;
mod owner;
mod places;
mod reading;
mod replay;
pub(crate) mod scrub;
#[cfg(test)]
mod tests;
mod tips;
mod upkeep;

/// The least that an entry counts for, so that the number of entries is bounded too.
const ENTRY_ROOM_MIN: usize = 1 << 10;
/// How many commands may wait for the owner; past it the callers wait.
const COMMANDS_MAX: usize = 1024;

/// A handle to the store. Clones are of the same store.
#[derive(Clone)]
pub(crate) struct Store {
    commands: mpsc::Sender<Command>,
    /// For entries that wait for the disk, or for their answers to be sent.
    room: Arc<Semaphore>,
    room_bytes: usize,
    reader: Reader,
    /// None while it is made anew.
    index: watch::Receiver<Option<Index>>,
    executor: Executor,
    read_only: watch::Receiver<bool>,
    damaged: Arc<AtomicBool>,
    /// What was found damaged while it was open.
    decayed: Arc<scrub::Damaged>,
}

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The log could not be opened.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The index could not be opened.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// What came in together of one adder.
pub(crate) struct Batch {
    pub(crate) ledger: LedgerId,
    pub(crate) by: Arc<Adder>,
    /// The number of the adder on its stream.
    pub(crate) adder: u32,
    pub(crate) add: Option<Add>,
    /// The highest entry of which the writer has said that it is confirmed.
    pub(crate) confirmed: Option<EntryId>,
}

/// Entries on their way in.
pub(crate) struct Add {
    /// Those that can be written by one append to the log.
    pub(crate) run: Run,
    /// How many entries of their adder came before them.
    pub(crate) sequence: u64,
}

/// What became of entries of an adder.
pub(crate) struct Outcome {
    /// The number of the adder on its stream.
    pub(crate) adder: u32,
    pub(crate) result: Result<Written, Refusal>,
    /// The room is given back when the outcome is dropped, that is, when it was sent.
    _room: Room,
}

/// Entries that are on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Written {
    /// The lowest and the highest of them.
    pub(crate) entries: (EntryId, EntryId),
    /// How many entries of their adder came before them, and how many with the last of them.
    pub(crate) sequences: Range<u64>,
}

/// Where outcomes go. As many wait there as there is room for.
pub(crate) type Outcomes = mpsc::UnboundedSender<Outcome>;

/// What outcomes take until they are sent.
pub(crate) type Room = Arc<OwnedSemaphorePermit>;

impl Outcome {
    /// Refuses an adder whose entries have not come so far.
    pub(crate) const fn refused(adder: u32, refusal: Refusal, room: Room) -> Self {
        Self { adder, result: Err(refusal), _room: room }
    }
}

impl Batch {
    /// Tells how much room its entries take.
    fn room_bytes(&self) -> usize {
        let entries = self.add.iter().flat_map(|add| add.run.entries());
        entries.map(|entry| entry.bytes().len().max(ENTRY_ROOM_MIN)).sum()
    }
}

enum Command {
    Add {
        lot: Vec<Batch>,
        outcomes: Outcomes,
        room: Room,
    },
    Fence {
        ledger: LedgerId,
        fenced: oneshot::Sender<Result<Option<EntryId>, Refusal>>,
    },
    State {
        ledger: LedgerId,
        /// The index if only that knows.
        state: oneshot::Sender<Result<State, Index>>,
    },
    Knows {
        ledger: LedgerId,
        /// The index if only that can tell.
        known: oneshot::Sender<Option<Index>>,
    },
    Locate {
        ledger: LedgerId,
        entries: Vec<EntryId>,
        located: oneshot::Sender<Located>,
    },
    Follow {
        ledger: LedgerId,
        tip: oneshot::Sender<Result<watch::Receiver<Tip>, Refusal>>,
    },
    Upkeep(upkeep::Command),
}

impl Command {
    /// Refuses it because the index is made anew. Who waits for an answer is told by the end of the
    /// channel.
    fn refuse(self) {
        if let Self::Add { lot, outcomes, room } = self {
            for batch in lot.into_iter().filter(|batch| batch.add.is_some()) {
                let refusal = Refusal::Unknown(keeper::MAKING.to_owned());
                // The stream may be gone.
                let _ = outcomes.send(Outcome::refused(batch.adder, refusal, Arc::clone(&room)));
            }
        }
    }
}

/// Entries that may not be in the index yet.
struct Located {
    places: Vec<Option<Place>>,
    /// What is to be said of those that are in neither.
    missing: Refusal,
    /// The index that has all the others: one that was made anew since may not have them yet.
    index: Index,
}

/// What the store knows of a ledger.
pub(crate) struct State {
    /// The highest last add confirmed that the writer has told.
    pub(crate) last_add_confirmed: Option<EntryId>,
    /// Whether its fence is on disk.
    pub(crate) fenced: bool,
    deleted: bool,
}

impl Store {
    /// Opens the store of a log, reads what the index does not have, and starts the task that owns
    /// it. The task ends when all handles are dropped and all is written.
    pub(crate) async fn open(
        disk: Arc<dyn Disk>,
        log: Uuid,
        executor: Executor,
        memory: Memory,
    ) -> Result<(Self, Replayed, JoinHandle<()>), StoreError> {
        let reader = Reader::new(Arc::clone(&disk), log, executor, memory.recent_bytes);
        let (opening, index_bytes) = (Arc::clone(&disk), memory.index_bytes);
        let mut opened = executor.run(move || replay::open(opening, log, index_bytes)).await?;
        let replayed = mem::take(&mut opened.replayed);
        let damaged = Arc::new(AtomicBool::new(opened.durable.damaged));
        let (index_now, index) = watch::channel(Some(opened.index.clone()));
        let (read_only_now, read_only) = watch::channel(opened.durable.damaged);
        let keeper = Keeper {
            disk,
            log,
            executor,
            index_bytes,
            reader: reader.clone(),
            index: index_now,
            read_only: read_only_now,
            damaged: damaged.clone(),
        };
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let task = tokio::spawn(keeper.run(opened, received));
        let room = Arc::new(Semaphore::new(memory.room_bytes));
        let room_bytes = memory.room_bytes;
        let store = Self {
            commands,
            room,
            room_bytes,
            reader,
            index,
            executor,
            read_only,
            damaged,
            decayed: Arc::default(),
        };
        Ok((store, replayed, task))
    }

    /// Hands batches to the owner, as soon as there is room for all of them. The outcomes of their
    /// adds come when the entries are on disk, or refused. Until it is done it takes none of them,
    /// also if it is dropped.
    pub(crate) async fn add(
        &self,
        lot: &mut Vec<Batch>,
        outcomes: &Outcomes,
    ) -> Result<(), Refusal> {
        let bytes = lot.iter().map(Batch::room_bytes).sum::<usize>().min(self.room_bytes);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.map_err(|_| stopped())?;
        let place = self.commands.reserve().await.map_err(|_| stopped())?;
        let (lot, outcomes) = (mem::take(lot), outcomes.clone());
        place.send(Command::Add { lot, outcomes, room: Arc::new(room) });
        Ok(())
    }

    /// Fences a ledger, durably, and returns the highest last add confirmed that is
    /// known.
    pub(crate) async fn fence(&self, ledger: LedgerId) -> Result<Option<EntryId>, Refusal> {
        self.ask(|fenced| Command::Fence { ledger, fenced }).await?
    }

    /// Returns what is known of a ledger that was not deleted.
    pub(crate) async fn state(&self, ledger: LedgerId) -> Result<State, Refusal> {
        let state = match self.ask(|state| Command::State { ledger, state }).await? {
            Ok(state) => state,
            Err(index) => {
                let stored = self.indexed(index, move |index| index.ledger(ledger)).await?;
                let StoredLedger { last_add_confirmed, fenced, deleted, .. } =
                    stored.unwrap_or_default();
                State { last_add_confirmed, fenced, deleted }
            }
        };
        if state.deleted { Err(Refusal::Deleted) } else { Ok(state) }
    }

    /// Says whether anything of a ledger is here, or was ever on its way into the log: a log that
    /// has failed may have it.
    pub(crate) async fn knows(&self, ledger: LedgerId) -> Result<bool, Refusal> {
        match self.ask(|known| Command::Knows { ledger, known }).await? {
            None => Ok(true),
            Some(index) => {
                Ok(self.indexed(index, move |index| index.ledger(ledger)).await?.is_some())
            }
        }
    }

    /// Finds entries: where each is, or why that cannot be said, in the order of the ids. Only
    /// [`Absent`](Refusal::Absent) says that it was never stored, and
    /// [`Deleted`](Refusal::Deleted) that its ledger was deleted.
    pub(crate) async fn locate(
        &self,
        ledger: LedgerId,
        entries: Vec<EntryId>,
    ) -> Result<Vec<Result<Place, Refusal>>, Refusal> {
        let asked = entries.clone();
        let located = self.ask(|located| Command::Locate { ledger, entries, located }).await?;
        let Located { places, missing, index } = located;
        // What is not in memory now has been in the index since before.
        let others = asked.iter().zip(&places).filter(|(_, place)| place.is_none());
        let mut others: Vec<EntryId> = others.map(|(entry, _)| *entry).collect();
        others.sort_unstable();
        others.dedup();
        let mut found = Vec::new();
        let mut deleted = missing == Refusal::Deleted;
        if !others.is_empty() && !deleted {
            let find = move |index: &Index| {
                let found = index.find(ledger, &others)?;
                // Asked afterwards: one that was found before may be deleted.
                let deleted = found.contains(&None)
                    && index.ledger(ledger)?.is_some_and(|stored| stored.deleted);
                Ok((others.into_iter().zip(found).collect(), deleted))
            };
            (found, deleted) = self.indexed(index, find).await?;
        }
        let missing = if deleted { Refusal::Deleted } else { missing };
        let place = |(entry, place): (EntryId, Option<Place>)| {
            let indexed = || found.binary_search_by_key(&entry, |(entry, _)| *entry).ok();
            let place = place.or_else(|| found[indexed()?].1);
            place.ok_or_else(|| missing.clone())
        };
        Ok(asked.into_iter().zip(places).map(place).collect())
    }

    /// Tells, and tells again when it moves, how far a ledger has come here. It ends with the
    /// store.
    pub(crate) async fn follow(&self, ledger: LedgerId) -> Result<watch::Receiver<Tip>, Refusal> {
        self.ask(|tip| Command::Follow { ledger, tip }).await?
    }

    /// Tells, and tells again when it changes, whether writers are refused.
    pub(crate) fn read_only(&self) -> watch::Receiver<bool> {
        self.read_only.clone()
    }

    /// Tells whether the log has lost something, now or before: it may have lost ledgers.
    pub(crate) fn damaged(&self) -> Arc<AtomicBool> {
        self.damaged.clone()
    }

    /// Returns the index as it is now, which has not all.
    fn index(&self) -> Result<Index, Refusal> {
        let index = self.index.borrow().clone();
        index.ok_or_else(|| Refusal::Unknown(keeper::MAKING.to_owned()))
    }

    /// Asks an index, which proves nothing if it cannot be read.
    async fn indexed<T: Send + 'static>(
        &self,
        index: Index,
        ask: impl FnOnce(&Index) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.executor.run(move || ask(&index)).await.map_err(unsure)
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())
    }
}

/// An index that cannot be read is no proof of anything.
fn unsure(error: IndexError) -> Refusal {
    Refusal::Unknown(error.to_string())
}

fn stopped() -> Refusal {
    Refusal::Unknown("the store is stopping, or takes no more writes".to_owned())
}
