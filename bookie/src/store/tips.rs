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

/// Tells the tips of ledgers to whoever follows them. A ledger that nobody follows costs nothing
/// for long.
#[derive(Default)]
pub(super) struct Tips {
    told: BTreeMap<LedgerId, watch::Sender<Tip>>,
    /// How many there may be until it is looked who has gone.
    pruned_at: usize,
}

impl Tips {
    /// Lets somebody follow a ledger, which need not be known.
    pub(super) fn follow(&mut self, id: LedgerId, ledgers: &Ledgers) -> watch::Receiver<Tip> {
        // Those who do not follow any more leave no word, and a ledger may never move again.
        if self.told.len() >= self.pruned_at {
            self.told.retain(|_, tip| tip.receiver_count() > 0);
            self.pruned_at = self.told.len() * 2 + 1;
        }
        let now = ledgers.get(id).map(tip).unwrap_or_default();
        let tip = self.told.entry(id).or_insert_with(|| watch::Sender::new(now));
        // It may have been told nothing while the ledger was not in memory.
        tip.send_if_modified(|told| std::mem::replace(told, now) != now);
        tip.subscribe()
    }

    /// Says whether nobody follows any ledger.
    pub(super) fn is_empty(&self) -> bool {
        self.told.is_empty()
    }

    /// Tells those who follow a ledger how far it has come.
    pub(super) fn tell(&mut self, id: LedgerId, ledgers: &Ledgers) {
        let Some(sender) = self.told.get(&id) else { return };
        if sender.receiver_count() == 0 {
            self.told.remove(&id);
            return;
        }
        // One that is not in memory has not moved.
        let Some(ledger) = ledgers.get(id) else { return };
        let now = tip(ledger);
        sender.send_if_modified(|told| std::mem::replace(told, now) != now);
    }
}

fn tip(ledger: &Ledger) -> Tip {
    Tip { confirmed: ledger.gate.last_add_confirmed(), durable: ledger.last() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> LedgerId {
        LedgerId::new(number).unwrap()
    }

    #[test]
    fn ledgers_that_nobody_follows_any_more_are_forgotten() {
        let (mut tips, ledgers) = (Tips::default(), Ledgers::default());
        let followed = tips.follow(id(1), &ledgers);
        tips.tell(id(1), &ledgers);
        assert!(!tips.is_empty());
        drop(followed);
        tips.tell(id(1), &ledgers);
        assert!(tips.is_empty());

        // These never move.
        let kept: Vec<_> = (0..10).map(|number| tips.follow(id(number), &ledgers)).collect();
        (10..10_000).for_each(|number| drop(tips.follow(id(number), &ledgers)));
        assert!(tips.told.len() < 4 * kept.len(), "{}", tips.told.len());
        assert!((0..10).all(|number| tips.told.contains_key(&id(number))));
    }
}
