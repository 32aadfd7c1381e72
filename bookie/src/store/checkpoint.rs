//! Brings to the index what it does not have, while the store goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::io;
use std::sync::Arc;

use inkfast_protocol::{EntryId, LedgerId};
use tokio::task::JoinHandle;

use super::places::Places;
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
pub(super) type Changes = BTreeMap<LedgerId, (StoredLedger, Arc<Places>)>;

/// The segments of a log, up to the last batch that is durable.
pub(super) struct Segments {
    infos: BTreeMap<SegmentNumber, SegmentInfo>,
    mark: Mark,
}

impl Segments {
    pub(super) const fn new(infos: BTreeMap<SegmentNumber, SegmentInfo>, mark: Mark) -> Self {
        Self { infos, mark }
    }

    /// Has these segments, with their ends, and no others.
    pub(super) fn set(&mut self, there: &BTreeMap<SegmentNumber, u32>) {
        self.infos.retain(|number, _| there.contains_key(number));
        for (number, end) in there {
            self.grow(*number, *end);
        }
    }

    /// Notes how far a segment goes, and returns how much that is more than before.
    fn grow(&mut self, number: SegmentNumber, end: u32) -> u32 {
        let nothing = SegmentInfo { bytes: 0, live_bytes: 0, verified_at_ms: None };
        let info = self.infos.entry(number).or_insert(nothing);
        let more = end.saturating_sub(info.bytes);
        info.bytes += more;
        info.live_bytes += more;
        more
    }

    /// Notes the moment after a batch, and returns how many bytes it has.
    pub(super) fn on_durable(&mut self, mark: Mark) -> u64 {
        self.mark = self.mark.max(mark);
        self.grow(mark.segment, mark.offset).into()
    }

    /// Makes a checkpoint of all changes up to the last batch that is durable.
    pub(super) fn checkpoint(&self, changes: Changes) -> Checkpoint {
        let mut ledgers = BTreeMap::new();
        let mut entries = BTreeMap::new();
        for (id, (stored, places)) in changes {
            ledgers.insert(id, stored);
            if places.len() > 0 {
                entries.insert(id, places.as_slice().to_vec());
            }
        }
        let (mark, segments) = (self.mark, self.infos.clone());
        Checkpoint { mark, segments, ledgers, entries, emptied: BTreeSet::new() }
    }
}

/// Brings the index forward, one checkpoint at a time.
pub(super) struct Indexing {
    index: Index,
    segments: Segments,
    executor: Executor,
    /// The bytes of the log since the last checkpoint began.
    bytes: u64,
    running: Option<JoinHandle<Result<(), IndexError>>>,
}

impl Indexing {
    pub(super) const fn new(index: Index, segments: Segments, executor: Executor) -> Self {
        Self { index, segments, executor, bytes: 0, running: None }
    }

    /// Notes the moment after a batch that is durable.
    pub(super) fn on_durable(&mut self, mark: Mark) {
        self.bytes += self.segments.on_durable(mark);
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
        let checkpoint = self.segments.checkpoint(changes);
        let commit = move || index.commit(&checkpoint);
        self.running = Some(tokio::spawn(executor.run(commit)));
    }

    /// Waits for the end of the checkpoint that is running; for ever if there is none. Safe to
    /// cancel.
    pub(super) async fn ended(&mut self) -> Result<(), IndexError> {
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
