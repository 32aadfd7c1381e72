//! Brings to the index what it does not have, while the store goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io;
use std::mem;

use inkfast_protocol::{EntryId, LedgerId};
use tokio::task::JoinHandle;

use super::ledgers::Change;
use crate::executor::Executor;
use crate::index::{Checkpoint, Index, IndexError, SegmentInfo, StoredLedger};
use crate::log::{Mark, Place, SegmentNumber};

/// A checkpoint begins after so many bytes of the log. In tests there are few, so that they also
/// meet checkpoints.
const CHECKPOINT_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 64 << 20 };
/// A checkpoint begins after so many entries.
pub(super) const CHECKPOINT_ENTRIES: usize = if cfg!(test) { 40 } else { 500_000 };
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
    running: Option<JoinHandle<Result<Indexed, IndexError>>>,
    /// What was verified since the last checkpoint began.
    verified: BTreeMap<SegmentNumber, u64>,
}

impl Indexing {
    pub(super) const fn new(index: Index, durable: Durable, executor: Executor) -> Self {
        Self { index, durable, executor, bytes: 0, running: None, verified: BTreeMap::new() }
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

    /// Whether it is time for a checkpoint, with so many entries that are not in the index.
    pub(super) const fn is_due(&self, entries: usize) -> bool {
        let much = self.bytes >= CHECKPOINT_BYTES || entries >= CHECKPOINT_ENTRIES;
        much && self.running.is_none()
    }

    pub(super) const fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Begins a checkpoint of all changes up to the last batch that is durable. None may be running.
    pub(super) fn begin(&mut self, changes: Changes) {
        self.bytes = 0;
        let (index, executor) = (self.index.clone(), self.executor);
        let mut checkpoint = self.durable.checkpoint(changes);
        checkpoint.verified = mem::take(&mut self.verified);
        let commit = move || {
            let segments = index.commit(&checkpoint)?;
            Ok(Indexed { segments, growing: checkpoint.mark.segment })
        };
        self.running = Some(tokio::spawn(executor.run(commit)));
    }

    /// Waits for the end of the checkpoint that is running; for ever if there is none. Safe to
    /// cancel.
    pub(super) async fn ended(&mut self) -> Result<Indexed, IndexError> {
        let Some(running) = &mut self.running else { return pending().await };
        let ended = running.await;
        self.running = None;
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
