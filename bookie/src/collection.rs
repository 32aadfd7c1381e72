//! Garbage collection: what is here of ledgers that were deleted goes, and nothing more comes.
//!
//! A ledger is collected on one proof alone, the metastore's record that it was deleted. That it is
//! not listed there proves nothing: a metastore that was restored from a backup has forgotten some.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::try_join_all;
use inkfast::Error;
use inkfast::catalog::Catalog;
use inkfast::catalog::follow::Deleted;
use inkfast_protocol::{BookieId, LedgerId, Refusal};
use tokio::time::{sleep, timeout};

use crate::stores::Stores;

/// How often all records of deletions are read anew: something may have come after its ledger was
/// collected, to a bookie that had nothing of it.
const ROUND: Duration = Duration::from_secs(3600);
/// The pause after the metastore could not be asked.
const PAUSE: Duration = Duration::from_secs(5);
/// How many ledgers are deleted at once.
const BATCH_MAX: usize = 256;

/// Collects for as long as the bookie runs.
pub(crate) async fn run(catalog: Catalog, bookie: BookieId, stores: Stores) {
    let collector = Collector { catalog, bookie, stores };
    loop {
        match timeout(ROUND, collector.follow()).await {
            // In time for the next round.
            Err(_) => {}
            Ok(Err(why)) => {
                tracing::warn!(why, "cannot collect what was deleted; trying again");
                sleep(PAUSE).await;
            }
        }
    }
}

struct Collector {
    catalog: Catalog,
    bookie: BookieId,
    stores: Stores,
}

impl Collector {
    /// Collects all that was deleted, and then what is.
    async fn follow(&self) -> Result<Infallible, String> {
        let words = |error: Error| error.to_string();
        let (mut page, read_at) = self.catalog.deleted(None).await.map_err(words)?;
        while let Some(last) = page.last() {
            let last = last.ledger;
            self.collect(&page).await.map_err(|refusal| refusal.to_string())?;
            (page, _) = self.catalog.deleted(Some(last)).await.map_err(words)?;
        }
        let mut deletions = self.catalog.follow_deletions(read_at).await.map_err(words)?;
        loop {
            let deleted = deletions.next().await.map_err(words)?;
            self.collect(&deleted).await.map_err(|refusal| refusal.to_string())?;
        }
    }

    async fn collect(&self, deleted: &[Deleted]) -> Result<(), Refusal> {
        for some in deleted.chunks(BATCH_MAX) {
            let ledgers: Vec<LedgerId> = some.iter().map(|deleted| deleted.ledger).collect();
            for store in self.stores.all() {
                let here = store.of_use(ledgers.clone()).await?;
                if !here.is_empty() {
                    try_join_all(here.iter().map(|ledger| store.delete(*ledger))).await?;
                    store.checkpoint().await?;
                    tracing::info!(ledgers = here.len(), "collected deleted ledgers");
                }
            }
            let expected = some.iter().filter(|deleted| deleted.bookies.contains(&self.bookie));
            for Deleted { ledger, .. } in expected {
                if let Err(refusal) = self.refuse_late(*ledger).await {
                    // While a directory is missing, nothing that is not known is taken anyway.
                    tracing::debug!(%ledger, %refusal, "that it was deleted is not noted");
                }
            }
        }
        Ok(())
    }

    /// Sees to it that a deleted ledger of which nothing has come takes nothing when it comes.
    async fn refuse_late(&self, ledger: LedgerId) -> Result<(), Refusal> {
        let home = self.stores.home(ledger).await?;
        if home.store().knows(ledger).await? {
            return Ok(());
        }
        home.store().delete(ledger).await
    }
}
