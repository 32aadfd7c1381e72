//! The bookies of the cluster, as the client reaches them: over one shared connection for adds and
//! one for reads.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use inkfast_protocol::messages::{Fence, LedgerState, Refused, kind};
use inkfast_protocol::{BookieId, EntryId, LedgerId, Refusal};
use inkfast_wire::{Connection, Endpoint, Frame, Remote, Role, Stream, Target};
use tokio::time::sleep;

use crate::Deadlines;
use crate::adds::{Adder, Adds};
use crate::bell::Bell;
use crate::catalog::{Catalog, Registration};
use crate::outbox::Outlet;
use crate::registry::Registry;

/// Finds bookies by their id, wherever they are. Clones share everything.
#[derive(Clone)]
pub(crate) struct Bookies(Arc<Shared>);

struct Shared {
    endpoint: Endpoint,
    catalog: Catalog,
    registry: Registry,
    deadlines: Deadlines,
    remotes: Mutex<BTreeMap<(BookieId, Traffic), Remote>>,
    adds: Mutex<BTreeMap<BookieId, Adds>>,
    moving: AtomicU32,
}

/// What a connection is for. A reader that does not take what it asked for fills the window of its
/// connection, and must not hold up the answers to a writer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Traffic {
    Adds,
    Reads,
}

impl Bookies {
    pub(crate) fn new(endpoint: Endpoint, catalog: Catalog, deadlines: Deadlines) -> Self {
        let registry = Registry::start(catalog.clone());
        Self(Arc::new(Shared {
            endpoint,
            catalog,
            registry,
            deadlines,
            remotes: Mutex::default(),
            adds: Mutex::default(),
            moving: AtomicU32::new(0),
        }))
    }

    pub(crate) fn deadlines(&self) -> &Deadlines {
        &self.0.deadlines
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// Counts the ledgers whose writers have entries in flight, or something to tell the bookies.
    pub(crate) fn moving(&self) -> &AtomicU32 {
        &self.0.moving
    }

    /// Notes that a bookie takes no adds of some ledger. If that may be so for all ledgers, it is
    /// not chosen for any until it answers again, which is found out.
    pub(crate) fn refused(&self, bookie: BookieId, refusal: &Refusal) {
        if matches!(refusal, Refusal::Unknown(_) | Refusal::ReadOnly(_))
            && let Some(pause) = self.registry().failed(bookie)
        {
            tokio::spawn(probe(Arc::downgrade(&self.0), bookie, pause));
        }
    }

    /// Adds to a bookie what comes out of an outlet, which is to ring the bell.
    pub(crate) fn add(
        &self,
        bookie: BookieId,
        adder: Adder,
        outlet: impl FnOnce(Arc<Bell>) -> Outlet,
    ) {
        let mut all = self.0.adds.lock().unwrap_or_else(PoisonError::into_inner);
        let adds = all.entry(bookie).or_insert_with(|| Adds::start(self.clone(), bookie));
        if adds.has_ended() {
            *adds = Adds::start(self.clone(), bookie);
        }
        adds.add(adder, outlet);
    }

    /// Opens a stream to a bookie.
    pub(crate) async fn open(&self, bookie: BookieId, traffic: Traffic) -> Result<Stream, Refusal> {
        self.connection(bookie, traffic).await?.open().await.map_err(unreachable)
    }

    /// Asks a bookie for the highest last add confirmed that it knows of a ledger, and to fence
    /// the ledger first if so wanted.
    pub(crate) async fn last_add_confirmed(
        &self,
        bookie: BookieId,
        ledger: LedgerId,
        fence: bool,
    ) -> Result<Option<EntryId>, Refusal> {
        let request = Frame::message(kind::FENCE, &Fence { ledger: ledger.get(), fence });
        let answer = within(self.0.deadlines.add, async {
            let connection = self.connection(bookie, Traffic::Adds).await?;
            connection.request(request, self.0.deadlines.add).await.map_err(unreachable)
        });
        let answer = answer.await?;
        if answer.kind != kind::STATE {
            return Err(refusal(&answer));
        }
        let state: LedgerState = answer.decode().map_err(unreachable)?;
        if fence && !state.fenced {
            return Err(Refusal::Unknown("answered a fence without fencing".to_owned()));
        }
        let confirmed = state.last_add_confirmed.map(EntryId::new);
        if confirmed > Some(EntryId::MAX) {
            return Err(Refusal::Corrupt("its last add confirmed is impossible".to_owned()));
        }
        Ok(confirmed)
    }

    /// Returns the connection to a bookie. While it is sought where the bookie was, the
    /// registration tells whether it has moved.
    async fn connection(&self, bookie: BookieId, traffic: Traffic) -> Result<Connection, Refusal> {
        let known = self.lock().get(&(bookie, traffic)).cloned();
        let found = match known {
            Some(known) => tokio::select! {
                biased;
                connection = known.connection() => return connection.map_err(unreachable),
                moved = self.moved(bookie, known.target()) => moved,
            },
            None => self.registered(bookie).await?,
        };
        self.share(bookie, traffic, found).connection().await.map_err(unreachable)
    }

    /// Returns the one remote that all who want this bookie share, though many found it at once.
    fn share(&self, bookie: BookieId, traffic: Traffic, found: Remote) -> Remote {
        let mut remotes = self.lock();
        let shared = remotes.entry((bookie, traffic)).or_insert_with(|| found.clone());
        if shared.target().addresses != found.target().addresses {
            *shared = found;
        }
        shared.clone()
    }

    /// Waits until a bookie is registered elsewhere than where it was; forever if it is not.
    async fn moved(&self, bookie: BookieId, was: &Target) -> Remote {
        let mut changes = self.registry().changes();
        loop {
            let found = self.registry().registration(bookie);
            if let Some(found) = found.filter(|found| found.addresses != was.addresses) {
                return self.remote(bookie, found);
            }
            if changes.changed().await.is_err() {
                pending().await
            }
        }
    }

    /// Returns a bookie where it is registered.
    async fn registered(&self, bookie: BookieId) -> Result<Remote, Refusal> {
        if let Some(found) = self.registry().registration(bookie) {
            return Ok(self.remote(bookie, found));
        }
        // What was registered a moment ago may not be known yet.
        match self.0.catalog.registration(bookie).await {
            Ok(Some(found)) => Ok(self.remote(bookie, found)),
            Ok(None) => {
                Err(Refusal::Unknown("it is not registered, so it does not run".to_owned()))
            }
            Err(error) => Err(Refusal::Unknown(format!("its address cannot be read: {error}"))),
        }
    }

    fn remote(&self, bookie: BookieId, found: Registration) -> Remote {
        let addresses = found.addresses;
        let target = Target { role: Role::Bookie, instance: Some(bookie.0), addresses };
        Remote::new(&self.0.endpoint, target)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(BookieId, Traffic), Remote>> {
        self.0.remotes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a bookie that has failed until it answers. One that does not run is not asked: when it comes
/// back, that is as good as an answer.
async fn probe(bookies: Weak<Shared>, bookie: BookieId, pause: Duration) {
    // Any ledger will do, also one that there never was or is no more.
    let Some(ledger) = LedgerId::new(0) else { return };
    loop {
        sleep(pause).await;
        let Some(bookies) = bookies.upgrade().map(Bookies) else { return };
        let runs = bookies.registry().registration(bookie).is_some();
        let answers = async {
            let answer = bookies.last_add_confirmed(bookie, ledger, false).await;
            matches!(answer, Ok(_) | Err(Refusal::Deleted))
        };
        if !runs || answers.await {
            return bookies.registry().answered(bookie);
        }
    }
}

/// Takes the refusal out of a frame that is not the answer hoped for.
pub(crate) fn refusal(frame: &Frame) -> Refusal {
    if frame.kind != kind::REFUSED {
        return Refusal::Unknown(format!("answered with a frame of kind {}", frame.kind));
    }
    frame.decode::<Refused>().map_or_else(unreachable, Refusal::from_message)
}

/// A failure to reach a bookie decides nothing.
pub(crate) fn unreachable(error: inkfast_wire::Error) -> Refusal {
    Refusal::Unknown(error.to_string())
}

/// Bounds the wait for a bookie; silence decides nothing.
pub(crate) async fn within<T>(
    deadline: Duration,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let silent = || Refusal::Unknown(format!("no answer within {deadline:?}"));
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| Err(silent()))
}
