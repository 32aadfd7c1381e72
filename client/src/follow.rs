//! Following a ledger's metadata.

use std::time::Duration;

use inkfast_protocol::{LedgerId, MetadataVersion};
use tokio::sync::mpsc;

use crate::Error;
use crate::catalog::{Catalog, Versioned};

/// How often the metadata is read.
const READ_INTERVAL: Duration = Duration::from_secs(1);

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
                () = read(&catalog, ledger, known, &tell) => {}
                () = tell.closed() => {}
            }
        });
        Self { ledger, news }
    }

    /// Waits until the metadata is newer than what was told before. May be dropped at any time
    /// without losing anything.
    ///
    /// Waits for a metastore that is away. An error is the last thing that is told;
    /// [`Error::LedgerNotFound`] says that the ledger was deleted.
    pub(crate) async fn next(&mut self) -> Result<Versioned, Error> {
        self.news.recv().await.unwrap_or(Err(Error::Closed(self.ledger)))
    }
}

async fn read(
    catalog: &Catalog,
    ledger: LedgerId,
    mut known: MetadataVersion,
    tell: &mpsc::Sender<Result<Versioned, Error>>,
) {
    loop {
        tokio::time::sleep(READ_INTERVAL).await;
        let news = match catalog.ledger(ledger).await {
            Ok((version, _)) if version <= known => continue,
            Ok((version, metadata)) => {
                known = version;
                Ok((version, metadata))
            }
            Err(error) if error.is_metastore_away() => {
                tracing::debug!(%ledger, %error, "cannot read the metadata; going on without it");
                continue;
            }
            Err(error) => Err(error),
        };
        let is_last = news.is_err();
        if tell.send(news).await.is_err() || is_last {
            return;
        }
    }
}
