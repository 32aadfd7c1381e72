//! Clients that hold leases.

use std::time::Duration;

use fastrand::Rng;
use inkfast_metastore::{Error, Metastore, Scan, Transaction};
use tokio::time::{Instant, sleep};

use super::client::SimClient;
use super::record::Record;

const TTL: Duration = Duration::from_millis(1500);
const PAUSE: Duration = Duration::from_millis(200);
/// How often a lease that is not kept alive is looked for after it should have ended.
const LOOKS_MAX: usize = 30;
const PREFIX: &str = "lease/";

/// Grants leases, writes a key under each, and keeps it alive for a while: as long as that is
/// answered in time, the lease may not end. Some are let go, others ended.
pub(super) async fn hold(store: SimClient, record: Record, end: Instant, mut random: Rng) {
    while Instant::now() < end {
        let mut asked = Instant::now();
        let Ok(lease) = store.grant_lease(TTL).await else { continue };
        let key = format!("{PREFIX}{}", lease.get());
        let mut written = false;
        for _ in 0..random.usize(1..40) {
            let begun = Instant::now();
            let done = if written {
                store.keep_alive(lease).await
            } else {
                let put = Transaction::new().put_leased(&key, "", lease);
                store.commit(put).await.map(drop)
            };
            match done {
                Ok(()) if !written => written = true,
                Ok(()) => asked = begun,
                Err(Error::LeaseNotFound) => {
                    let since = asked.elapsed();
                    if since < TTL {
                        record.violation(format!("{lease} ended {since:?} after it was asked for"));
                    }
                    break;
                }
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
        if random.bool() {
            // Whatever comes of it: it ends anyway.
            let _ = store.end_lease(lease).await;
        }
    }
}

/// Checks that all leases end that nobody keeps alive.
pub(super) async fn have_ended(store: &SimClient) -> Result<(), String> {
    let mut left = Vec::new();
    for _ in 0..LOOKS_MAX {
        let page = store.scan(Scan::new(PREFIX)).await.map_err(|error| error.to_string())?;
        left = page.entries;
        if left.is_empty() {
            return Ok(());
        }
        sleep(PAUSE).await;
    }
    Err(format!("{left:?} should have ended"))
}
