//! Brings to the index what it does not have, while the store goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io;
use std::mem;
use std::sync::Arc;

use inkfast_protocol::{EntryId, LedgerId};
use tokio::task::JoinSet;
use tokio::time::{Duration, sleep};

use super::ledgers::Change;
use crate::disk::is_full;
use crate::executor::Executor;
use crate::index::{Checkpoint, Index, IndexError, SegmentInfo, StoredLedger};
use crate::log::{Mark, Place, SegmentNumber};

/// A checkpoint begins after so many bytes of the log. In tests there are few, so that they also
/// meet checkpoints.
const CHECKPOINT_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// A checkpoint begins after so many entries.
pub(super) const CHECKPOINT_ENTRIES: usize = if cfg!(test) { 40 } else { 500_000 };
/// A checkpoint begins with so many ledgers in memory: it lets those go that are not used.
const CHECKPOINT_LEDGERS: usize = 100_000;
/// The pause before a full disk is asked again.
const FULL_PAUSE: Duration = Duration::from_secs(1);
/// With so many entries that no checkpoint has taken, nothing more is let in.
pub(super) const RECENT_ENTRIES_MAX: usize = 4 * CHECKPOINT_ENTRIES;

/// What is to go to the index of each ledger that changed.
pub(super) type Changes = BTreeMap<LedgerId, Change>;

/// The log as far as it is durable.
pub(super) struct Durable {
    /// All segments, and where each ends.
    segments: BTreeMap<SegmentNumber, u32>,
    mark: Mark,
    /// Some of the log is lost.
    pub(super) damaged: bool,
}

impl Durable {
    /// Begins with what the index knows.
    pub(super) const fn new(
        segments: BTreeMap<SegmentNumber, u32>,
        mark: Mark,
        damaged: bool,
    ) -> Self {
        Self { segments, mark, damaged }
    }

    /// Has these segments, with their ends, and no others.
    pub(super) fn set(&mut self, segments: BTreeMap<SegmentNumber, u32>) {
        self.segments = segments;
    }

    /// Notes the moment after a batch, and returns how many bytes it has.
    pub(super) fn on_durable(&mut self, mark: Mark) -> u64 {
        self.mark = self.mark.max(mark);
        let end = self.segments.entry(mark.segment).or_default();
        let more = mark.offset.saturating_sub(*end);
        *end += more;
        more.into()
    }

    /// Makes a checkpoint of all changes up to the last batch.
    pub(super) fn checkpoint(&self, changes: Changes) -> Checkpoint {
        let (mut ledgers, mut entries) = (BTreeMap::new(), BTreeMap::new());
        let mut emptied = BTreeSet::new();
        for (id, change) in changes {
            ledgers.insert(id, change.stored);
            if change.entries.len() > 0 {
                entries.insert(id, change.entries.as_slice().to_vec());
            }
            if change.emptied {
                emptied.insert(id);
            }
        }
        let (mark, segments, damaged) = (self.mark, self.segments.clone(), self.damaged);
        Checkpoint { mark, segments, verified: BTreeMap::new(), damaged, ledgers, entries, emptied }
    }
}

/// What is known of each segment after a checkpoint, and the segment up to which it reached.
pub(super) struct Indexed {
    pub(super) segments: BTreeMap<SegmentNumber, SegmentInfo>,
    pub(super) growing: SegmentNumber,
}

/// Brings the index forward, one checkpoint at a time.
pub(super) struct Indexing {
    index: Index,
    durable: Durable,
    executor: Executor,
    /// The bytes of the log since the last checkpoint began.
    bytes: u64,
    /// At most one, which ends with this.
    running: JoinSet<Result<Indexed, IndexError>>,
    /// What was verified since the last checkpoint began.
    verified: BTreeMap<SegmentNumber, u64>,
}

impl Indexing {
    pub(super) fn new(index: Index, durable: Durable, executor: Executor) -> Self {
        Self {
            index,
            durable,
            executor,
            bytes: 0,
            running: JoinSet::new(),
            verified: BTreeMap::new(),
        }
    }

    /// Returns the index.
    pub(super) fn index(&self) -> Index {
        self.index.clone()
    }

    /// Notes the moment after a batch that is durable.
    pub(super) fn on_durable(&mut self, mark: Mark) {
        self.bytes += self.durable.on_durable(mark);
    }

    /// Notes that a segment was dropped.
    pub(super) fn on_dropped(&mut self, number: SegmentNumber) {
        self.durable.segments.remove(&number);
    }

    /// Notes when a segment was read and found whole, in milliseconds since 1970.
    pub(super) fn on_verified(&mut self, number: SegmentNumber, at_ms: u64) {
        self.verified.insert(number, at_ms);
    }

    /// Whether it is time for a checkpoint, with so many entries that are not in the index, and so
    /// many ledgers in memory.
    pub(super) fn is_due(&self, entries: usize, ledgers: usize) -> bool {
        let much = self.bytes >= CHECKPOINT_BYTES || entries >= CHECKPOINT_ENTRIES;
        (much || ledgers >= CHECKPOINT_LEDGERS) && !self.is_running()
    }

    pub(super) fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Begins a checkpoint of all changes up to the last batch that is durable. None may be running.
    pub(super) fn begin(&mut self, changes: Changes) {
        self.bytes = 0;
        let (index, executor) = (self.index.clone(), self.executor);
        let mut checkpoint = self.durable.checkpoint(changes);
        checkpoint.verified = mem::take(&mut self.verified);
        let commit = async move {
            let (growing, checkpoint) = (checkpoint.mark.segment, Arc::new(checkpoint));
            loop {
                let (index, checkpoint) = (index.clone(), checkpoint.clone());
                match executor.run(move || index.commit(&checkpoint)).await {
                    Err(IndexError::Io(error)) if is_full(&error) => {
                        tracing::warn!(%error, "the index waits for room");
                        sleep(FULL_PAUSE).await;
                    }
                    done => return Ok(Indexed { segments: done?, growing }),
                }
            }
        };
        self.running.spawn(commit);
    }

    /// Waits for the end of the checkpoint that is running; for ever if there is none. Safe to
    /// cancel.
    pub(super) async fn ended(&mut self) -> Result<Indexed, IndexError> {
        let Some(ended) = self.running.join_next().await else { return pending().await };
        ended.unwrap_or_else(|error| Err(IndexError::Io(io::Error::other(error))))
    }

    /// Returns what is known of a ledger.
    pub(super) async fn ledger(&self, id: LedgerId) -> Result<Option<StoredLedger>, IndexError> {
        let index = self.index.clone();
        self.executor.run(move || index.ledger(id)).await
    }

    /// Finds entries, which are asked for in ascending order.
    pub(super) async fn find(
        &self,
        ledger: LedgerId,
        entries: Vec<EntryId>,
    ) -> Result<Vec<Option<Place>>, IndexError> {
        let index = self.index.clone();
        self.executor.run(move || index.find(ledger, &entries)).await
    }
}
