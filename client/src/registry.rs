//! The bookies that run, as the metastore tells, and which of them have failed this client.
//!
//! The registrations are followed, not asked for: so bookies are found, and failed ones replaced,
//! by what was known last while the metastore is away.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use inkfast_protocol::BookieId;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::Error;
use crate::catalog::{Catalog, Registration};
use crate::placement::Candidate;

/// How long a bookie that has failed is chosen only where no other would do.
const FAILED_LATELY: Duration = Duration::from_secs(60);
/// The pause before a bookie that has failed is asked again.
const PROBE_PAUSE_MIN: Duration = Duration::from_secs(1);
/// Much shorter than writers wait, or they would give up while it is back already.
const PROBE_PAUSE_MAX: Duration = Duration::from_secs(4);
/// The pause before the registrations are read anew.
const PAUSE: Duration = Duration::from_millis(500);

/// Clones are the same registry. It follows the metastore until the last is dropped.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Tells that there may be other candidates.
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    running: BTreeMap<BookieId, Registration>,
    failures: BTreeMap<BookieId, Failure>,
}

struct Failure {
    /// When it failed, or answered again.
    at: Instant,
    /// It has not answered since it failed.
    silent: bool,
    /// How often it failed with less than [`FAILED_LATELY`] between.
    times: u32,
}

impl Registry {
    /// Begins to follow the registrations.
    pub(crate) fn start(catalog: Catalog) -> Self {
        let (state, changes) = (Mutex::default(), watch::Sender::new(()));
        let shared = Arc::new(Shared { state, changes });
        tokio::spawn(follow(Arc::downgrade(&shared), catalog));
        Self(shared)
    }

    /// Returns where a bookie is; none if it is not known to run.
    pub(crate) fn registration(&self, bookie: BookieId) -> Option<Registration> {
        self.0.lock().running.get(&bookie).cloned()
    }

    /// Returns the bookies that run, take writes and answer.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        let state = self.0.lock();
        let running = state
            .running
            .iter()
            .filter(|(bookie, _)| state.failures.get(bookie).is_none_or(|failure| !failure.silent));
        running.filter_map(|(bookie, found)| state.candidate(*bookie, found)).collect()
    }

    /// Makes candidates of bookies that were found otherwise: those that take writes.
    pub(crate) fn judge(&self, found: &[(BookieId, Registration)]) -> Vec<Candidate> {
        let state = self.0.lock();
        found.iter().filter_map(|(bookie, found)| state.candidate(*bookie, found)).collect()
    }

    /// Returns the rack of a bookie that runs.
    pub(crate) fn rack(&self, bookie: BookieId) -> Option<String> {
        self.registration(bookie).and_then(|found| found.rack)
    }

    /// Notes that a bookie has failed. Unless that is known, returns after what pause the caller
    /// is to find out whether it [answers](Self::answered) again; the pause doubles with each
    /// failure.
    pub(crate) fn failed(&self, bookie: BookieId) -> Option<Duration> {
        let mut state = self.0.lock();
        state.failures.retain(|_, failure| failure.is_of_late());
        let before = state.failures.get(&bookie);
        if before.is_some_and(|before| before.silent) {
            return None;
        }
        let times = before.map_or(0, |before| before.times) + 1;
        state.failures.insert(bookie, Failure { at: Instant::now(), silent: true, times });
        Some(PROBE_PAUSE_MIN.saturating_mul(1 << (times - 1).min(8)).min(PROBE_PAUSE_MAX))
    }

    /// Notes that a bookie which had failed answers, or is not worth asking any more.
    pub(crate) fn answered(&self, bookie: BookieId) {
        if let Some(failure) = self.0.lock().failures.get_mut(&bookie) {
            (failure.silent, failure.at) = (false, Instant::now());
        }
        self.0.changes.send_replace(());
    }

    /// Returns a receiver that tells whenever there may be other candidates.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.0.changes.subscribe()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, work: impl FnOnce(&mut State)) {
        work(&mut self.lock());
        self.changes.send_replace(());
    }
}

impl State {
    fn candidate(&self, bookie: BookieId, found: &Registration) -> Option<Candidate> {
        let failure = self.failures.get(&bookie);
        let failed_lately = failure.is_some_and(Failure::is_of_late);
        let (rack, free_bytes) = (found.rack.clone(), found.free_bytes);
        (!found.read_only).then_some(Candidate { bookie, rack, free_bytes, failed_lately })
    }
}

impl Failure {
    fn is_of_late(&self) -> bool {
        self.silent || self.at.elapsed() < FAILED_LATELY
    }
}

/// Follows the registrations until nobody wants them.
async fn follow(shared: Weak<Shared>, catalog: Catalog) {
    while shared.strong_count() > 0 {
        if let Err(error) = follow_on(&shared, &catalog).await {
            tracing::debug!(%error, "the registrations of bookies are read anew");
            sleep(PAUSE).await;
        }
    }
}

/// Reads all registrations, and then their changes as far as the metastore remembers them.
async fn follow_on(shared: &Weak<Shared>, catalog: &Catalog) -> Result<(), Error> {
    let (running, mut changes) = catalog.follow_registrations().await?;
    let Some(known) = shared.upgrade() else { return Ok(()) };
    known.change(|state| state.running = running.into_iter().collect());
    let mut dropped = known.changes.subscribe();
    drop(known);
    loop {
        let changed = tokio::select! {
            changed = changes.next() => changed,
            _ = gone(&mut dropped) => return Ok(()),
        };
        let changed = match changed {
            Ok(changed) => changed,
            Err(error) if error.is_metastore_away() => {
                tracing::debug!(%error, "the registrations are as they were known last");
                continue;
            }
            Err(error) => return Err(error),
        };
        let Some(known) = shared.upgrade() else { return Ok(()) };
        known.change(|state| {
            for (bookie, registration) in changed {
                match registration {
                    Some(registration) => state.running.insert(bookie, registration),
                    None => state.running.remove(&bookie),
                };
            }
        });
    }
}

/// Waits until the registry is dropped.
async fn gone(changes: &mut watch::Receiver<()>) {
    while changes.changed().await.is_ok() {}
}
