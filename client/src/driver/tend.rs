//! What a writer does by the clock, and when bookies come: finds replacements, tells an idle
//! ledger's last add confirmed, gives up appends that have waited for too long.

use std::sync::{Mutex, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Driver, with};
use crate::placement::{self, Lacking};

/// How long nothing is appended before the bookies are told the last add confirmed, which the next
/// entry would tell. For so long a tail waits for the last entry; more often than that, nothing is
/// sent for it.
const IDLE: Duration = Duration::from_millis(2);

/// Tends a driver until it is dropped.
pub(super) async fn run(
    driver: Weak<Mutex<Driver>>,
    mut woken: watch::Receiver<()>,
    mut bookies: watch::Receiver<()>,
) {
    loop {
        bookies.mark_unchanged();
        let Some(next) = driver.upgrade().map(|driver| with(&driver, Driver::tend)) else { return };
        let Next { at, choosing } = next;
        tokio::select! {
            woken = woken.changed() => if woken.is_err() {
                return;
            },
            () = sleep_until(at.unwrap_or_else(Instant::now)), if at.is_some() => {}
            // It is there as long as the driver is.
            _ = bookies.changed(), if choosing => {}
        }
    }
}

/// What a driver waits for.
struct Next {
    at: Option<Instant>,
    choosing: bool,
}

impl Driver {
    /// Does what is due now.
    fn tend(&mut self) -> Next {
        let now = Instant::now();
        if self.choosing {
            self.choose();
        }
        if self.idle_at().is_some_and(|at| at <= now) {
            self.writer.on_idle();
        }
        if self.overdue_at().is_some_and(|at| at <= now) {
            self.waiting_since = now;
            self.writer.on_overdue();
        }
        // What this brings about must not wake us again.
        self.tended_at = Some(now);
        self.drain();
        self.tended_at = self.due();
        Next { at: self.tended_at, choosing: self.choosing }
    }

    /// Has the driver tended earlier than it was to be, if that is needed now.
    pub(super) fn see_to_tending(&mut self) {
        if let Some(due) = self.due()
            && self.tended_at.is_none_or(|at| at > due)
        {
            self.tended_at = Some(due);
            self.tend.send_replace(());
        }
    }

    /// Finds bookies for the places that lack one, if there are any.
    fn choose(&mut self) {
        let registry = self.bookies.registry();
        let mut candidates = registry.candidates();
        candidates.retain(|candidate| !self.writer.refused().contains(&candidate.bookie));
        let metadata = self.writer.metadata();
        let ensemble = &metadata.last_fragment().ensemble;
        let racks: Vec<_> = ensemble.iter().map(|bookie| registry.rack(*bookie)).collect();
        let lacking = Lacking { ensemble, racks: &racks, places: self.writer.lacking() };
        let (replication, strict) = (metadata.replication, self.strict_racks);
        let chosen = placement::replacements(&candidates, replication, &lacking, strict);
        if !chosen.is_empty() {
            tracing::info!(ledger = %self.ledger(), ?chosen, "bookies are replaced");
            self.choosing = false;
            self.writer.on_chosen(&chosen);
        }
    }

    fn due(&self) -> Option<Instant> {
        self.idle_at().into_iter().chain(self.overdue_at()).min()
    }

    fn idle_at(&self) -> Option<Instant> {
        self.writer.is_untold().then(|| self.appended_at + IDLE)
    }

    fn overdue_at(&self) -> Option<Instant> {
        let quorum = self.bookies.deadlines().quorum;
        (!self.waiting.is_empty()).then(|| self.waiting_since + quorum)
    }
}
