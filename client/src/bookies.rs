//! The bookies of the cluster, as the client reaches them: one shared connection to each.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use inkfast_protocol::messages::{Fence, LedgerState, Refused, kind};
use inkfast_protocol::{BookieId, EntryId, LedgerId, Refusal};
use inkfast_wire::{Connection, Endpoint, Frame, Remote, Role, Stream, Target};

use crate::Deadlines;
use crate::catalog::Catalog;

/// Finds bookies by their id, wherever they are.
#[derive(Clone)]
pub(crate) struct Bookies {
    endpoint: Endpoint,
    catalog: Catalog,
    deadlines: Deadlines,
    remotes: Arc<Mutex<BTreeMap<BookieId, Remote>>>,
}

impl Bookies {
    pub(crate) fn new(endpoint: Endpoint, catalog: Catalog, deadlines: Deadlines) -> Self {
        Self { endpoint, catalog, deadlines, remotes: Arc::default() }
    }

    pub(crate) const fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    /// Opens a stream to a bookie.
    pub(crate) async fn open(&self, bookie: BookieId) -> Result<Stream, Refusal> {
        self.connection(bookie).await?.open().await.map_err(unreachable)
    }

    /// Asks a bookie for a ledger's state, and to fence it first if so wanted. Returns the highest
    /// last add confirmed that the bookie knows.
    pub(crate) async fn fence(
        &self,
        bookie: BookieId,
        ledger: LedgerId,
        fence: bool,
    ) -> Result<Option<EntryId>, Refusal> {
        let request = Frame::message(kind::FENCE, &Fence { ledger: ledger.get(), fence });
        let answer = within(self.deadlines.add, async {
            let connection = self.connection(bookie).await?;
            connection.request(request, self.deadlines.add).await.map_err(unreachable)
        });
        let answer = answer.await?;
        match answer.kind {
            kind::STATE => {
                let state: LedgerState = answer.decode().map_err(unreachable)?;
                if fence && !state.fenced {
                    return Err(Refusal::Unknown("answered a fence without fencing".to_owned()));
                }
                Ok(state.last_add_confirmed.map(EntryId::new))
            }
            _ => Err(refusal(&answer)),
        }
    }

    /// Returns the connection to a bookie. When it cannot be reached where it was, its
    /// registration is read again: its address may have changed.
    async fn connection(&self, bookie: BookieId) -> Result<Connection, Refusal> {
        let known = self.lock().get(&bookie).cloned();
        let failed = match &known {
            Some(remote) => match remote.connection().await {
                Ok(connection) => return Ok(connection),
                Err(error) => Some(unreachable(error)),
            },
            None => None,
        };
        let registration = self.catalog.registration(bookie).await;
        let registration = registration
            .map_err(|error| Refusal::Unknown(format!("its address cannot be read: {error}")))?
            .ok_or_else(|| Refusal::Unknown("it is not registered, so it does not run".to_owned()));
        let addresses = registration?.addresses;
        if let (Some(remote), Some(failed)) = (known, failed)
            && remote.target().addresses == addresses
        {
            return Err(failed);
        }
        let target = Target { role: Role::Bookie, instance: Some(bookie.0), addresses };
        let remote = Remote::new(&self.endpoint, target);
        self.lock().insert(bookie, remote.clone());
        remote.connection().await.map_err(unreachable)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<BookieId, Remote>> {
        self.remotes.lock().unwrap_or_else(PoisonError::into_inner)
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
