//! The ledgers of a log: a gate each, and an index of their entries.

use std::collections::BTreeMap;

use inkfast_protocol::gate::{Gate, Record};
use inkfast_protocol::{EntryId, LedgerId, WriterId};

use super::places::Places;
use crate::log::Place;
use crate::record;

/// The ledgers that the log knows. They are in memory, and made from the log at each start.
pub(super) struct Ledgers(BTreeMap<LedgerId, Ledger>);

pub(super) struct Ledger {
    pub(super) gate: Gate,
    /// Where the entries are that are on disk.
    pub(super) entries: Places,
}

/// Gathers what the log says of each ledger while it is replayed.
#[derive(Default)]
pub(super) struct Replay(BTreeMap<LedgerId, Said>);

#[derive(Default)]
struct Said {
    fenced: bool,
    writer: Option<WriterId>,
    last_add_confirmed: Option<EntryId>,
    entries: Places,
}

impl Replay {
    /// Takes a record of the log.
    pub(super) fn visit(&mut self, place: Place, kind: u8, payload: &[u8]) -> Result<(), String> {
        let (id, record) = record::decode(kind, payload)?;
        let ledger = self.0.entry(id).or_default();
        match record {
            Record::Writer { id, .. } => ledger.writer = ledger.writer.or(Some(id)),
            Record::Fence => ledger.fenced = true,
            Record::Entries(run) => {
                // A record is of one.
                let entry = run.first();
                let confirmed = entry.header().last_add_confirmed;
                ledger.last_add_confirmed = ledger.last_add_confirmed.max(confirmed);
                ledger.entries.insert(entry.id(), place);
            }
        }
        Ok(())
    }

    /// Ends the replay: from now on the gates decide.
    pub(super) fn finish(self) -> Ledgers {
        let ledger = |said: Said| Ledger {
            gate: Gate::new(said.fenced, said.writer, said.last_add_confirmed),
            entries: said.entries,
        };
        Ledgers(self.0.into_iter().map(|(id, said)| (id, ledger(said))).collect())
    }
}

impl Ledgers {
    pub(super) fn get(&self, id: LedgerId) -> Option<&Ledger> {
        self.0.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: LedgerId) -> Option<&mut Ledger> {
        self.0.get_mut(&id)
    }

    /// Returns a ledger, which is new if nothing is known of it.
    pub(super) fn entry(&mut self, id: LedgerId) -> &mut Ledger {
        self.0.entry(id).or_insert_with(|| Ledger {
            gate: Gate::new(false, None, None),
            entries: Places::default(),
        })
    }

    pub(super) fn ids(&self) -> Vec<LedgerId> {
        self.0.keys().copied().collect()
    }
}
