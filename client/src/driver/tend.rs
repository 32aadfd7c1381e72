//! What a writer does by the clock, and when bookies come: finds replacements, tells an idle
//! ledger's last add confirmed, gives up appends that have waited for too long.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, Weak};
use std::time::Duration;

use inkfast_protocol::BookieId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::{Driver, with};
use crate::placement::{self, Candidate, Lacking};

/// How long nothing is appended before the bookies are told the last add confirmed, which the next
/// entry would tell. For so long a tail waits for the last entry once that is confirmed; more often
/// than that, nothing is sent for it.
const IDLE: Duration = Duration::from_millis(2);

/// With more ledgers than these that move, each waits longer in proportion, and mostly until its
/// next entry tells it: all writers of a client tell, and look whether to tell, no more often than
/// these do.
const TOLD_SOON: u32 = 16;

/// How long a writer that gives up waits for the metadata, which may tell that it was fenced.
const LAST_WORD: Duration = Duration::from_secs(5);

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

/// Says whether a bookie may be chosen.
fn is_among(bookie: BookieId, candidates: &[Candidate]) -> bool {
    candidates.iter().any(|candidate| candidate.bookie == bookie)
}

impl Driver {
    /// Does what is due now.
    fn tend(&mut self) -> Next {
        let now = Instant::now();
        if self.writer.is_choosing() {
            self.choose();
        }
        if self.writer.is_untold() && self.idle_at() <= now {
            self.told_at = now;
            self.writer.on_idle();
        }
        if !self.waiting.is_empty() && self.overdue_at <= now {
            // Soon again, if the metastore does not answer before.
            self.overdue_at = now + LAST_WORD;
            self.writer.on_overdue();
        }
        // What this brings about must not wake us again.
        self.tended_at = Some(now);
        self.drain();
        self.tended_at = self.is_moving().then(|| self.look_at(now));
        Next { at: self.tended_at, choosing: self.writer.is_choosing() }
    }

    /// Has the driver tended from now on, if it has begun to move. To wake it for each entry would
    /// be dear.
    pub(super) fn see_to_tending(&mut self) {
        let moving = self.is_moving();
        self.count_moving(moving);
        let overdue_at = (!self.waiting.is_empty()).then_some(self.overdue_at);
        let in_time = |at| overdue_at.is_none_or(|overdue_at| at <= overdue_at);
        if moving && !self.tended_at.is_some_and(in_time) {
            self.tended_at = Some(self.appended_at);
            self.tend.send_replace(());
        }
    }

    /// Finds bookies for the places that lack one, if there are any.
    fn choose(&mut self) {
        let mut candidates = self.bookies.registry().candidates();
        candidates.retain(|candidate| !self.writer.refused().contains(&candidate.bookie));
        let metadata = self.writer.metadata();
        let ensemble = &metadata.last_fragment().ensemble;
        let mut places = self.writer.lacking();
        let mut chosen = BTreeMap::new();
        // To take a bookie back changes nothing in the metadata, and breaks no rule of placement.
        for place in places.iter().filter(|&place| is_among(ensemble[place], &candidates)) {
            chosen.insert(place, ensemble[place]);
        }
        chosen.keys().for_each(|place| places.remove(*place));
        let rack = |bookie: &BookieId| self.bookies.registry().rack(*bookie);
        let racks: Vec<_> = ensemble.iter().map(rack).collect();
        let lacking = Lacking { ensemble, racks: &racks, places };
        let (replication, strict) = (metadata.replication, self.strict_racks);
        chosen.extend(placement::replacements(&candidates, replication, &lacking, strict));
        tracing::debug!(ledger = %self.ledger(), ?chosen, "bookies for places that lack one");
        self.writer.on_chosen(&chosen);
    }

    /// Says whether something is in flight, or the bookies are to be told what was confirmed.
    fn is_moving(&self) -> bool {
        !self.waiting.is_empty() || self.writer.is_untold()
    }

    /// Tells when a driver that moves is tended after now.
    fn look_at(&self, now: Instant) -> Instant {
        let idle_at = self.idle_at();
        let at = if idle_at > now { idle_at } else { now + self.pause() };
        if self.waiting.is_empty() { at } else { at.min(self.overdue_at) }
    }

    fn idle_at(&self) -> Instant {
        self.appended_at.max(self.told_at) + self.pause()
    }

    fn pause(&self) -> Duration {
        IDLE * (1 + self.bookies.moving().load(Ordering::Relaxed) / TOLD_SOON)
    }

    /// Counts the ledger among those that move, or not any more.
    pub(super) fn count_moving(&mut self, moving: bool) {
        if self.moving != moving {
            self.moving = moving;
            let count = self.bookies.moving();
            let add = if moving { 1 } else { u32::MAX };
            count.fetch_add(add, Ordering::Relaxed);
        }
    }
}
