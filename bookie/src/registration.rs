//! Registration: the bookie's addresses, rack and capacity in the metastore, under a lease.

use std::sync::Arc;
use std::time::Duration;

use inkfast::catalog::{Catalog, Registration};
use inkfast_metastore::{Error as StoreError, LeaseId, Metastore};
use inkfast_protocol::BookieId;
use tokio::sync::{oneshot, watch};

use crate::Error;
use crate::disk::Space;

/// How long the registration outlives the bookie.
const LEASE_TTL: Duration = Duration::from_secs(10);
/// How often the lease is kept alive, and how long a failure is waited out.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// The part of the disk that must have been filled or freed to be told: a sixteenth.
const NOTABLE: u64 = 16;
/// The part of the disk below which it is nearly full, which is told in any case: a sixty-fourth.
const NEARLY_FULL: u64 = 64;

/// What is registered.
pub(crate) struct Registrar {
    pub(crate) store: Arc<dyn Metastore>,
    pub(crate) bookie: BookieId,
    pub(crate) addresses: Vec<String>,
    pub(crate) rack: Option<String>,
    /// How much room there is now.
    pub(crate) space: watch::Receiver<Space>,
    /// Whether new ledgers are refused now.
    pub(crate) read_only: watch::Receiver<bool>,
}

/// A registration that was made.
struct Held {
    lease: LeaseId,
    says: Registration,
}

impl Registrar {
    /// Registers the bookie, and says so once; then keeps the registration and its words true,
    /// and makes it anew when its lease was lost, until told to stop. Then it ends the lease.
    pub(crate) async fn run(
        mut self,
        registered: oneshot::Sender<()>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let mut registered = Some(registered);
        let mut held = None;
        loop {
            let pause = match self.refresh(&mut held).await {
                Ok(()) if held.is_some() => {
                    if let Some(registered) = registered.take() {
                        let _ = registered.send(());
                    }
                    KEEP_ALIVE
                }
                // A lease that was lost is replaced at once.
                Ok(()) => Duration::ZERO,
                Err(error) => {
                    tracing::warn!(%error, "the registration cannot be kept; trying again");
                    KEEP_ALIVE
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                Ok(()) = self.read_only.changed() => {}
                _ = &mut stop => break,
            }
        }
        if let Some(Held { lease, .. }) = held
            && let Err(error) = self.store.end_lease(lease).await
        {
            tracing::debug!(%error, "the registration ends by itself");
        }
    }

    /// Keeps the registration, or makes one, and sees to it that it is true. It is none afterwards
    /// if its lease was lost.
    async fn refresh(&mut self, held: &mut Option<Held>) -> Result<(), Error> {
        let kept = match held {
            Some(held) => self.store.keep_alive(held.lease).await.map(|()| held.lease),
            None => self.store.grant_lease(LEASE_TTL).await,
        };
        let written = match kept {
            Ok(lease) => self.write(held, lease).await,
            Err(error) => Err(error.into()),
        };
        match written {
            Err(inkfast::Error::Metastore(StoreError::LeaseNotFound)) => {
                *held = None;
                Ok(())
            }
            written => Ok(written?),
        }
    }

    /// Registers under a lease what is true now, unless that is what is registered, or nearly so.
    async fn write(
        &mut self,
        held: &mut Option<Held>,
        lease: LeaseId,
    ) -> Result<(), inkfast::Error> {
        let Space { capacity_bytes, free_bytes, .. } = *self.space.borrow();
        let now = Registration {
            addresses: self.addresses.clone(),
            rack: self.rack.clone(),
            capacity_bytes,
            free_bytes,
            read_only: *self.read_only.borrow_and_update(),
        };
        if held.as_ref().is_some_and(|held| !differs_notably(&held.says, &now)) {
            return Ok(());
        }
        // Under the same lease, so that it is never absent in between.
        Catalog::new(Arc::clone(&self.store)).register(self.bookie, &now, lease).await?;
        tracing::info!(bookie = %self.bookie, registration = ?now, "registered");
        *held = Some(Held { lease, says: now });
        Ok(())
    }
}

/// Says whether placement should know of the difference.
fn differs_notably(before: &Registration, now: &Registration) -> bool {
    let is_nearly_full = |r: &Registration| r.free_bytes < r.capacity_bytes / NEARLY_FULL;
    before.read_only != now.read_only
        || before.capacity_bytes != now.capacity_bytes
        || before.free_bytes.abs_diff(now.free_bytes) > now.capacity_bytes / NOTABLE
        || is_nearly_full(before) != is_nearly_full(now)
}

#[cfg(test)]
mod tests {
    use inkfast_metastore::{KeyValue, MemoryMetastore};
    use tokio::time::{Instant, timeout};
    use uuid::Uuid;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn read_only_is_told_at_once_under_the_same_lease() {
        let store: Arc<dyn Metastore> = Arc::new(MemoryMetastore::new());
        let bookie = BookieId(Uuid::new_v4());
        let read_only = watch::Sender::new(false);
        let registrar = Registrar {
            store: Arc::clone(&store),
            bookie,
            addresses: vec!["127.0.0.1:1".to_owned()],
            rack: Some("r1".to_owned()),
            space: watch::Sender::new(Space::default()).subscribe(),
            read_only: read_only.subscribe(),
        };
        let key = format!("registrations/{bookie}");
        let (registered, is_registered) = oneshot::channel();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(registrar.run(registered, stopped));
        is_registered.await.unwrap();
        let before = store.get(&key).await.unwrap().unwrap();

        let began = Instant::now();
        read_only.send_replace(true);
        let after = timeout(KEEP_ALIVE, changed(&*store, &before)).await.unwrap();
        assert!(began.elapsed() < KEEP_ALIVE / 2, "it waited for the next keep-alive");
        assert_eq!(after.lease, before.lease);
        let registrations = Catalog::new(Arc::clone(&store)).registrations().await.unwrap();
        assert!(registrations[0].1.read_only);

        // Whoever would tell it of a change is gone, and it goes on.
        drop(read_only);
        tokio::time::sleep(3 * LEASE_TTL).await;
        assert_eq!(store.get(&key).await.unwrap().unwrap().lease, before.lease);
        store.end_lease(before.lease.unwrap()).await.unwrap();
        tokio::time::sleep(2 * KEEP_ALIVE).await;
        let anew = store.get(&key).await.unwrap().expect("it is registered anew");
        assert_ne!(anew.lease, before.lease);

        stop.send(()).unwrap();
        running.await.unwrap();
        assert_eq!(store.get(&key).await.unwrap(), None);
    }

    /// Waits until a key, which is there all the time, was written again.
    async fn changed(store: &dyn Metastore, before: &KeyValue) -> KeyValue {
        loop {
            let found = store.get(&before.key).await.unwrap().expect("it is never absent");
            if found.version != before.version {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn small_differences_of_free_space_are_not_told() {
        let with = |capacity_bytes, free_bytes| Registration {
            capacity_bytes,
            free_bytes,
            ..Registration::default()
        };
        for (before, now, notable) in [
            (with(1600, 1000), with(1600, 900), false),
            (with(1600, 1000), with(1600, 899), true),
            (with(1600, 1000), with(1600, 1101), true),
            (with(1600, 30), with(1600, 25), false),
            (with(1600, 30), with(1600, 24), true),
            (with(1600, 0), with(1600, 24), false),
            (with(1600, 0), with(1600, 25), true),
            (with(1600, 1000), with(3200, 1000), true),
            (with(0, 0), with(0, 0), false),
        ] {
            assert_eq!(differs_notably(&before, &now), notable, "{before:?} {now:?}");
        }
    }
}
