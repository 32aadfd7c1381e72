//! Registration: the bookie's addresses, rack and capacity in the metastore, under a lease.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use inkfast::catalog::{Catalog, Registration};
use inkfast_metastore::{Error as StoreError, LeaseId, Metastore};
use inkfast_protocol::BookieId;
use tokio::sync::{oneshot, watch};

use crate::Error;

/// How long the registration outlives the bookie.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often the lease is kept alive, and how long a failure is waited out.
const KEEP_ALIVE: Duration = Duration::from_secs(3);

/// What is registered.
pub(crate) struct Registrar {
    pub(crate) store: Arc<dyn Metastore>,
    pub(crate) bookie: BookieId,
    pub(crate) addresses: Vec<String>,
    pub(crate) rack: Option<String>,
    pub(crate) dir: PathBuf,
    /// Whether writers are refused now.
    pub(crate) read_only: watch::Receiver<bool>,
}

/// A registration that was made.
#[derive(Clone, Copy)]
struct Held {
    lease: LeaseId,
    /// What it says.
    read_only: bool,
}

impl Registrar {
    /// Registers the bookie, and says so once; then keeps the registration, and makes it anew
    /// when its lease was lost or it is no longer true, until told to stop. Then it ends the lease.
    pub(crate) async fn run(
        self,
        registered: oneshot::Sender<()>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut registered = Some(registered);
        let mut held = None;
        loop {
            let pause = match self.refresh(held).await {
                Ok(Some(now)) => {
                    held = Some(now);
                    if let Some(registered) = registered.take() {
                        let _ = registered.send(());
                    }
                    KEEP_ALIVE
                }
                // A lease that was lost is replaced at once.
                Ok(None) => {
                    held = None;
                    Duration::ZERO
                }
                Err(error) => {
                    tracing::warn!(%error, "the registration cannot be kept; trying again");
                    KEEP_ALIVE
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = &mut stop => break,
            }
        }
        if let Some(Held { lease, .. }) = held
            && let Err(error) = self.store.end_lease(lease).await
        {
            tracing::debug!(%error, "the registration ends by itself");
        }
    }

    /// Keeps the registration, or makes one; returns none when its lease was lost.
    async fn refresh(&self, held: Option<Held>) -> Result<Option<Held>, Error> {
        let read_only = *self.read_only.borrow();
        match held {
            Some(held) if held.read_only == read_only => {
                match self.store.keep_alive(held.lease).await {
                    Ok(()) => Ok(Some(held)),
                    Err(StoreError::LeaseNotFound) => Ok(None),
                    Err(error) => Err(inkfast::Error::from(error).into()),
                }
            }
            _ => self.register(read_only).await.map(Some),
        }
    }

    async fn register(&self, read_only: bool) -> Result<Held, Error> {
        let lease = self.store.grant_lease(LEASE_TTL).await.map_err(inkfast::Error::from)?;
        let (capacity_bytes, free_bytes) = space(&self.dir);
        let registration = Registration {
            addresses: self.addresses.clone(),
            rack: self.rack.clone(),
            capacity_bytes,
            free_bytes,
            read_only,
        };
        let catalog = Catalog::new(Arc::clone(&self.store));
        catalog.register(self.bookie, &registration, lease).await?;
        tracing::info!(bookie = %self.bookie, addresses = ?self.addresses, read_only, "registered");
        Ok(Held { lease, read_only })
    }
}

/// Returns size and free bytes of the file system that a directory is on; zeros when it does not
/// say.
fn space(dir: &std::path::Path) -> (u64, u64) {
    rustix::fs::statvfs(dir)
        .map_or((0, 0), |found| (found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize))
}
