//! Following a ledger's metadata.

use std::time::Duration;

use inkfast_protocol::{LedgerId, MetadataVersion};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::Error;
use crate::catalog::{Catalog, Versioned};

/// The pause before the metadata is read anew.
const PAUSE: Duration = Duration::from_millis(500);

/// Tells how the metadata of a ledger changes.
pub(crate) struct Follow {
    ledger: LedgerId,
    news: mpsc::Receiver<Result<Versioned, Error>>,
}

impl Follow {
    /// Follows a ledger whose metadata is known up to a version, until it is dropped.
    pub(crate) fn start(catalog: Catalog, ledger: LedgerId, known: MetadataVersion) -> Self {
        let (tell, news) = mpsc::channel(1);
        tokio::spawn(async move {
            tokio::select! {
                () = follow_on(&catalog, ledger, known, &tell) => {}
                () = tell.closed() => {}
            }
        });
        Self { ledger, news }
    }

    /// Waits until the metadata is newer than what was told before. May be dropped at any time
    /// without losing anything.
    ///
    /// Waits for a metastore that is away. An error is the last thing that is told;
    /// [`Error::LedgerDeleted`] says that the ledger was deleted.
    pub(crate) async fn next(&mut self) -> Result<Versioned, Error> {
        self.news.recv().await.unwrap_or(Err(Error::Closed(self.ledger)))
    }
}

async fn follow_on(
    catalog: &Catalog,
    ledger: LedgerId,
    mut known: MetadataVersion,
    tell: &mpsc::Sender<Result<Versioned, Error>>,
) {
    loop {
        match follow(catalog, ledger, &mut known, tell).await {
            Ok(()) => return,
            Err(error) if error.is_metastore_away() || error.is_compacted() => {
                tracing::debug!(%ledger, %error, "the metadata is read anew");
                sleep(PAUSE).await;
            }
            Err(error) => {
                // It is the last word, also if nobody hears it.
                let _ = tell.send(Err(error)).await;
                return;
            }
        }
    }
}

/// Reads the metadata, and then its changes, until nobody wants them or for as long as the
/// metastore tells them.
async fn follow(
    catalog: &Catalog,
    ledger: LedgerId,
    known: &mut MetadataVersion,
    tell: &mpsc::Sender<Result<Versioned, Error>>,
) -> Result<(), Error> {
    let mut found = catalog.ledger(ledger).await?;
    let mut changes = catalog.follow_ledger(&found).await?;
    loop {
        if found.0 > *known {
            *known = found.0;
            if tell.send(Ok(found)).await.is_err() {
                return Ok(());
            }
        }
        found = changes.next().await?;
    }
}
