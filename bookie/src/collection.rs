//! Garbage collection: what is here of ledgers that were deleted goes.
//!
//! A ledger is collected on one proof alone, the metastore's record that it was deleted. That it is
//! not listed there proves nothing: a metastore that was restored from a backup has forgotten some.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::try_join_all;
use inkfast::Error;
use inkfast::catalog::Catalog;
use inkfast_protocol::{LedgerId, Refusal};
use tokio::time::{sleep, timeout};

use crate::store::Store;

/// How often all records of deletions are read anew: something may have come after its ledger was
/// collected, to a bookie that had nothing of it.
const ROUND: Duration = Duration::from_secs(3600);
/// The pause after the metastore could not be asked.
const PAUSE: Duration = Duration::from_secs(5);
/// How many ledgers are deleted at once.
const BATCH_MAX: usize = 256;

/// Collects for as long as the store is there.
pub(crate) async fn run(catalog: Catalog, store: Store) {
    loop {
        match timeout(ROUND, follow(&catalog, &store)).await {
            // In time for the next round.
            Err(_) => {}
            Ok(Err(why)) => {
                tracing::warn!(why, "cannot collect what was deleted; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

/// Collects all that was deleted, and then what is.
async fn follow(catalog: &Catalog, store: &Store) -> Result<Infallible, String> {
    let words = |error: Error| error.to_string();
    let (mut page, read_at) = catalog.deleted(None).await.map_err(words)?;
    while let Some(&last) = page.last() {
        collect(store, &page).await.map_err(|refusal| refusal.to_string())?;
        (page, _) = catalog.deleted(Some(last)).await.map_err(words)?;
    }
    let mut deletions = catalog.follow_deletions(read_at).await.map_err(words)?;
    loop {
        let deleted = deletions.next().await.map_err(words)?;
        collect(store, &deleted).await.map_err(|refusal| refusal.to_string())?;
    }
}

/// Collects those of some deleted ledgers that the store knows.
async fn collect(store: &Store, deleted: &[LedgerId]) -> Result<(), Refusal> {
    for some in deleted.chunks(BATCH_MAX) {
        let here = store.of_use(some.to_vec()).await?;
        if !here.is_empty() {
            try_join_all(here.iter().map(|ledger| store.delete(*ledger))).await?;
            store.checkpoint().await?;
            tracing::info!(ledgers = here.len(), "collected deleted ledgers");
        }
    }
    Ok(())
}
