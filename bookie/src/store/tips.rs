//! The tips of those ledgers that somebody follows.

use std::collections::BTreeMap;

use inkfast_protocol::{EntryId, LedgerId};
use tokio::sync::watch;

use super::ledgers::{Ledger, Ledgers};

/// How far a ledger has come on this bookie.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The highest last add confirmed that the writer has told.
    pub(crate) confirmed: Option<EntryId>,
    /// The highest entry on disk; some below it may not be here.
    pub(crate) durable: Option<EntryId>,
}

/// Tells the tips of ledgers to whoever follows them. A ledger that nobody follows costs nothing.
#[derive(Default)]
pub(super) struct Tips(BTreeMap<LedgerId, watch::Sender<Tip>>);

impl Tips {
    /// Lets somebody follow a ledger, which need not be known.
    pub(super) fn follow(&mut self, id: LedgerId, ledgers: &Ledgers) -> watch::Receiver<Tip> {
        // Those who do not follow any more leave no word.
        self.0.retain(|_, tip| tip.receiver_count() > 0);
        let tip = self.0.entry(id).or_insert_with(|| watch::Sender::new(tip(ledgers.get(id))));
        tip.subscribe()
    }

    /// Says whether nobody follows any ledger.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Tells those who follow a ledger how far it has come.
    pub(super) fn tell(&self, id: LedgerId, ledgers: &Ledgers) {
        let Some(sender) = self.0.get(&id) else { return };
        let now = tip(ledgers.get(id));
        sender.send_if_modified(|told| std::mem::replace(told, now) != now);
    }
}

fn tip(ledger: Option<&Ledger>) -> Tip {
    ledger.map_or_else(Tip::default, |ledger| Tip {
        confirmed: ledger.gate.last_add_confirmed(),
        durable: ledger.entries.last_key_value().map(|(entry, _)| *entry),
    })
}
