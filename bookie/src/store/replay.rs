//! Reads what the index does not have from the log when the store is opened.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::mem;
use std::sync::Arc;

use inkfast_protocol::LedgerId;
use uuid::Uuid;

use super::StoreError;
use super::checkpoint::{CHECKPOINT_ENTRIES, Durable};
use super::ledgers::{self, Ledgers};
use crate::disk::Disk;
use crate::index::{Index, IndexError};
use crate::log::{self, Known, Mark, Place, Replayed, SEGMENT_BYTES_MAX, Settings, Shown, Tail};
use crate::record;

/// The memory that the index takes for its pages. In tests that is little, so that it reads them.
const INDEX_CACHE_BYTES: usize = if cfg!(test) { 16 << 10 } else { 64 << 20 };

/// How long a segment grows. In tests that is little, so that they also meet many.
const SEGMENT_BYTES: u32 = if cfg!(test) { 64 << 10 } else { SEGMENT_BYTES_MAX };

/// What a store begins with.
pub(super) struct Opened {
    pub(super) index: Index,
    pub(super) ledgers: Ledgers,
    pub(super) durable: Durable,
    pub(super) tail: Tail,
    pub(super) replayed: Replayed,
}

/// Opens the index and the log of a directory. An index that is damaged is made anew from the log.
/// Blocks.
pub(super) fn open(disk: Arc<dyn Disk>, log: Uuid) -> Result<Opened, StoreError> {
    match open_with(disk.clone(), log) {
        Err(StoreError::Index(IndexError::Damaged(why))) => {
            tracing::error!(why, "the index is damaged; it is made anew from the log");
            Index::remove(&*disk).map_err(IndexError::Io)?;
            open_with(disk, log)
        }
        opened => opened,
    }
}

fn open_with(disk: Arc<dyn Disk>, log: Uuid) -> Result<Opened, StoreError> {
    let index = Index::open(&*disk, log, INDEX_CACHE_BYTES)?;
    let known = index.known()?;
    let (mark, segments) = match known.clone() {
        Some(Known { mark, segments }) => (mark, segments),
        None => (Mark::BEGINNING, BTreeMap::new()),
    };
    let durable = Durable::new(segments, mark, index.is_damaged()?);
    let mut replay = Replay { index, durable, ledgers: BTreeMap::new(), entries: 0, failed: None };
    let settings = Settings { log, segment_bytes_max: SEGMENT_BYTES };
    let mut visit = |shown: Shown<'_>| match shown {
        Shown::Record(place, kind, payload) => replay.record(place, kind, payload),
        Shown::End { mark, segments, damaged } => {
            replay.durable.set(segments.clone());
            replay.durable.damaged |= damaged;
            replay.end(mark)
        }
    };
    let opened = log::open(disk, settings, known.as_ref(), &mut visit);
    if let Some(error) = replay.failed {
        return Err(error.into());
    }
    let (tail, replayed) = opened?;
    let Replay { index, mut durable, ledgers: known, .. } = replay;
    durable.on_durable(tail.mark());
    durable.set(tail.segments().clone());
    durable.damaged |= !replayed.damages.is_empty();
    let mut ledgers = Ledgers::default();
    for (id, known) in known {
        ledgers.insert(id, known);
    }
    Ok(Opened { index, ledgers, durable, tail, replayed })
}

struct Replay {
    index: Index,
    durable: Durable,
    /// What the index does not have.
    ledgers: BTreeMap<LedgerId, ledgers::Known>,
    /// How many entries are in that.
    entries: usize,
    /// Why the replay was ended.
    failed: Option<IndexError>,
}

impl Replay {
    fn record(&mut self, place: Place, kind: u8, payload: &[u8]) -> Result<(), String> {
        let (id, record) = record::decode(kind, payload)?;
        let known = match self.ledgers.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => match self.index.ledger(id) {
                Ok(stored) => unknown.insert(ledgers::Known::new(stored)),
                Err(error) => return Err(self.fail(error)),
            },
        };
        known.note(&record, &[place]);
        self.entries += 1;
        Ok(())
    }

    /// Brings to the index what has come together, so that a long log does not fill the memory.
    fn end(&mut self, mark: Mark) -> Result<(), String> {
        self.durable.on_durable(mark);
        if self.entries < CHECKPOINT_ENTRIES {
            return Ok(());
        }
        self.entries = 0;
        let changes = mem::take(&mut self.ledgers).into_iter();
        let changes = changes.filter_map(|(id, mut known)| Some((id, known.take_changes()?)));
        let checkpoint = self.durable.checkpoint(changes.collect());
        self.index.commit(&checkpoint).map(drop).map_err(|error| self.fail(error))
    }

    fn fail(&mut self, error: IndexError) -> String {
        let words = error.to_string();
        self.failed = Some(error);
        words
    }
}
