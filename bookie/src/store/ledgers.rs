//! The ledgers that the store has in memory: those that something happened to lately. All others
//! are in the index alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use inkfast_protocol::gate::{Action, Gate, Record};
use inkfast_protocol::{EntryId, LedgerId};

use super::places::Places;
use crate::index::StoredLedger;
use crate::log::Place;

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
}

impl Known {
    /// Begins with what the index knows; nothing of an unknown ledger.
    pub(super) fn new(stored: Option<StoredLedger>) -> Self {
        Self { stored: stored.unwrap_or_default(), ..Self::default() }
    }

    /// Notes a record that is on disk, and where each of its entries is.
    pub(super) fn note(&mut self, record: &Record, places: &[Place]) {
        let Self { stored, recent, changed } = self;
        *changed = true;
        match record {
            Record::Writer { id, fragment } => {
                stored.writer.get_or_insert_with(|| (*id, fragment.clone()));
                stored.state_segments.extend(places.iter().map(|place| place.segment));
            }
            Record::Fence => {
                stored.fenced = true;
                stored.state_segments.extend(places.iter().map(|place| place.segment));
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
    }

    /// Takes out what the index does not have, if there is anything.
    pub(super) fn take_changes(&mut self) -> Option<(StoredLedger, Places)> {
        let changed = std::mem::take(&mut self.changed);
        changed.then(|| (self.stored.clone(), std::mem::take(&mut self.recent)))
    }
}

impl Ledger {
    /// Begins with what is on disk: from now on the gate decides.
    pub(super) fn new(known: Known) -> Self {
        let StoredLedger { fenced, writer, last_add_confirmed, .. } = &known.stored;
        let gate = Gate::new(*fenced, writer.as_ref().map(|(id, _)| *id), *last_add_confirmed);
        Self { gate, known, frozen: Arc::default(), used: true, written: false }
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

    /// Finds an entry that may not be in the index yet.
    pub(super) fn find(&self, entry: EntryId) -> Option<Place> {
        self.known.recent.get(entry).or_else(|| self.frozen.get(entry))
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

    /// Notes what is on disk of a ledger.
    pub(super) fn on_durable(&mut self, id: LedgerId, record: &Record, places: &[Place]) {
        if let Record::Entries(run) = record {
            self.recent += run.entries().len();
        }
        if let Some(ledger) = self.get_mut(id) {
            ledger.on_durable(record, places);
        }
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
    pub(super) fn freeze(&mut self) -> BTreeMap<LedgerId, (StoredLedger, Arc<Places>)> {
        self.recent = 0;
        let mut changes = BTreeMap::new();
        for (id, ledger) in &mut self.all {
            let told = ledger.gate.last_add_confirmed();
            if ledger.known.stored.last_add_confirmed < told {
                (ledger.known.stored.last_add_confirmed, ledger.known.changed) = (told, true);
            }
            ledger.used = false;
            if let Some((stored, entries)) = ledger.known.take_changes() {
                ledger.frozen = Arc::new(entries);
                changes.insert(*id, (stored, ledger.frozen.clone()));
            }
        }
        changes
    }

    /// Forgets what the index has now, and the ledgers with which nothing was done meanwhile.
    pub(super) fn forget(&mut self) {
        self.all.retain(|_, ledger| {
            ledger.frozen = Arc::default();
            ledger.used || !ledger.gate.is_idle()
        });
    }
}
