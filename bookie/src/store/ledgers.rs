//! The ledgers that the store has in memory: those that something happened to lately. All others
//! are in the index alone.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;

use inkfast_protocol::gate::{Action, Gate, Record};
use inkfast_protocol::{EntryId, LedgerId};

use super::places::Places;
use crate::index::StoredLedger;
use crate::log::{Place, SegmentNumber};

/// The ledgers in memory.
#[derive(Default)]
pub(super) struct Ledgers {
    all: BTreeMap<LedgerId, Ledger>,
    /// How many entries there are that no checkpoint has taken.
    recent: usize,
}

/// A ledger in memory.
pub(super) struct Ledger {
    pub(super) gate: Gate,
    known: Known,
    /// The entries that a checkpoint is bringing to the index.
    frozen: Arc<Places>,
    /// Something was done with it since the last checkpoint began.
    used: bool,
    /// How many writes are under way that the gate does not know of.
    writes: usize,
    /// A record of it was given to the log, which has it for certain only once it is durable.
    written: bool,
}

/// What the log says of a ledger.
#[derive(Default)]
pub(super) struct Known {
    /// All of it but for the entries.
    pub(super) stored: StoredLedger,
    /// The entries that are not in the index, nor on their way there.
    pub(super) recent: Places,
    /// The index does not have all of it.
    changed: bool,
    /// The entries that the index has are to go.
    emptied: bool,
}

/// What is to go to the index of a ledger.
pub(super) struct Change {
    pub(super) stored: StoredLedger,
    /// Sorted.
    pub(super) entries: Arc<Places>,
    /// The entries that the index has are to go.
    pub(super) emptied: bool,
}

impl Known {
    /// Begins with what the index knows; nothing of an unknown ledger.
    pub(super) fn new(stored: Option<StoredLedger>) -> Self {
        Self { stored: stored.unwrap_or_default(), ..Self::default() }
    }

    /// Notes a record that is on disk, and where each of its entries is; also one that was written
    /// again somewhere else.
    pub(super) fn note(&mut self, record: &Record, places: &[Place]) {
        let Self { stored, recent, changed, emptied } = self;
        let segments = places.iter().map(|place| place.segment);
        match record {
            Record::Tombstone if !stored.deleted => {
                // All else is of no use any more.
                *stored = StoredLedger { deleted: true, ..StoredLedger::default() };
                stored.state_segments.extend(segments);
                *recent = Places::default();
                *emptied = true;
            }
            Record::Tombstone => stored.state_segments.extend(segments),
            // Of a deleted ledger nothing comes back.
            _ if stored.deleted => return,
            Record::Writer { id, fragment } => {
                stored.writer.get_or_insert_with(|| (*id, fragment.clone()));
                stored.state_segments.extend(segments);
            }
            Record::Fence => {
                stored.fenced = true;
                stored.state_segments.extend(segments);
            }
            Record::Entries(run) => {
                for (entry, place) in run.entries().iter().zip(places) {
                    let confirmed = entry.header().last_add_confirmed;
                    stored.last_add_confirmed = stored.last_add_confirmed.max(confirmed);
                    recent.insert(entry.id(), *place);
                }
                let (first, last) = (run.first().id(), run.last().id());
                stored.first = Some(stored.first.map_or(first, |lowest| lowest.min(first)));
                stored.last = stored.last.max(Some(last));
            }
        }
        *changed = true;
    }

    /// Notes that entries are on disk somewhere else too.
    pub(super) fn moved(&mut self, entries: &[EntryId], places: &[Place]) {
        if !self.stored.deleted {
            let moved = entries.iter().zip(places);
            moved.for_each(|(entry, place)| self.recent.insert(*entry, *place));
            self.changed = true;
        }
    }

    /// Takes out what the index does not have, if there is anything.
    pub(super) fn take_changes(&mut self) -> Option<Change> {
        let emptied = mem::take(&mut self.emptied);
        let changed = mem::take(&mut self.changed);
        changed.then(|| {
            let mut entries = mem::take(&mut self.recent);
            entries.sort();
            Change { stored: self.stored.clone(), entries: Arc::new(entries), emptied }
        })
    }
}

impl Ledger {
    /// Begins with what is on disk: from now on the gate decides.
    pub(super) fn new(known: Known) -> Self {
        let StoredLedger { fenced, writer, last_add_confirmed, .. } = &known.stored;
        let gate = if known.stored.deleted {
            Gate::deleted()
        } else {
            Gate::new(*fenced, writer.as_ref().map(|(id, _)| *id), *last_add_confirmed)
        };
        Self { gate, known, frozen: Arc::default(), used: true, writes: 0, written: false }
    }

    /// Returns the next thing that the gate wants.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        let action = self.gate.next_action();
        self.written |= matches!(action, Some(Action::Write(_)));
        action
    }

    /// Says whether the log has something of it, or may have.
    pub(super) fn is_known(&self) -> bool {
        self.written || self.known.stored != StoredLedger::default()
    }

    /// Returns the highest entry that is on disk.
    pub(super) const fn last(&self) -> Option<EntryId> {
        self.known.stored.last
    }

    /// Returns what is on disk, but for the entries.
    pub(super) const fn stored(&self) -> &StoredLedger {
        &self.known.stored
    }

    /// Says whether something is on disk, or on its way there, that is of use as long as the ledger
    /// is not deleted.
    pub(super) fn is_of_use(&self) -> bool {
        self.is_known() && !self.known.stored.deleted
    }

    /// Finds an entry that may not be in the index yet. None is found of a deleted ledger.
    pub(super) fn find(&self, entry: EntryId) -> Option<Place> {
        let found = || self.known.recent.get(entry).or_else(|| self.frozen.get(entry));
        if self.known.stored.deleted { None } else { found() }
    }

    /// Notes a record that is on disk, and where each of its entries is.
    pub(super) fn on_durable(&mut self, record: &Record, places: &[Place]) {
        self.known.note(record, places);
        self.gate.on_durable(record);
    }
}

impl Ledgers {
    pub(super) fn get(&self, id: LedgerId) -> Option<&Ledger> {
        self.all.get(&id)
    }

    /// Returns a ledger to do something with it.
    pub(super) fn get_mut(&mut self, id: LedgerId) -> Option<&mut Ledger> {
        let ledger = self.all.get_mut(&id)?;
        ledger.used = true;
        Some(ledger)
    }

    pub(super) fn insert(&mut self, id: LedgerId, known: Known) {
        self.recent += known.recent.len();
        self.all.insert(id, Ledger::new(known));
    }

    /// Notes what is on disk of a ledger, and returns it.
    pub(super) fn on_durable(
        &mut self,
        id: LedgerId,
        record: &Record,
        places: &[Place],
    ) -> Option<&mut Ledger> {
        if let Record::Entries(run) = record {
            self.recent += run.entries().len();
        }
        let ledger = self.get_mut(id)?;
        ledger.on_durable(record, places);
        Some(ledger)
    }

    /// Notes that something of a ledger is being written that its gate does not know of: it stays
    /// in memory until that is on disk.
    pub(super) fn on_write(&mut self, id: LedgerId) {
        if let Some(ledger) = self.get_mut(id) {
            ledger.writes += 1;
        }
    }

    /// Notes that entries of a ledger are on disk somewhere else too.
    pub(super) fn on_moved(&mut self, id: LedgerId, entries: &[EntryId], places: &[Place]) {
        self.recent += entries.len();
        if let Some(ledger) = self.get_mut(id) {
            ledger.writes -= 1;
            ledger.known.moved(entries, places);
        }
    }

    /// Notes that a record of a ledger that is no entry is on disk again; after the last of them,
    /// those in a segment are not needed.
    pub(super) fn on_restated(
        &mut self,
        id: LedgerId,
        is_at: impl Iterator<Item = SegmentNumber>,
        instead_of: Option<SegmentNumber>,
    ) {
        if let Some(ledger) = self.get_mut(id) {
            ledger.writes -= 1;
            let Known { stored, changed, .. } = &mut ledger.known;
            stored.state_segments.extend(is_at);
            if let Some(segment) = instead_of {
                stored.state_segments.remove(&segment);
            }
            *changed = true;
        }
    }

    /// Returns how many ledgers are in memory.
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Returns how many entries no checkpoint has taken.
    pub(super) const fn recent(&self) -> usize {
        self.recent
    }

    pub(super) fn ids(&self) -> Vec<LedgerId> {
        self.all.keys().copied().collect()
    }

    /// Takes what is to go to the index. The entries can be found here until
    /// [`forget`](Self::forget).
    pub(super) fn freeze(&mut self) -> BTreeMap<LedgerId, Change> {
        self.recent = 0;
        let mut changes = BTreeMap::new();
        for (id, ledger) in &mut self.all {
            let told = ledger.gate.last_add_confirmed();
            let Known { stored, changed, .. } = &mut ledger.known;
            if stored.last_add_confirmed < told && !stored.deleted {
                (stored.last_add_confirmed, *changed) = (told, true);
            }
            ledger.used = false;
            if let Some(change) = ledger.known.take_changes() {
                ledger.frozen = change.entries.clone();
                changes.insert(*id, change);
            }
        }
        changes
    }

    /// Forgets what the index has now, and the ledgers with which nothing was done meanwhile.
    pub(super) fn forget(&mut self) {
        self.all.retain(|_, ledger| {
            ledger.frozen = Arc::default();
            ledger.used || ledger.writes > 0 || !ledger.gate.is_idle()
        });
    }
}
