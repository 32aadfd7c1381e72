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
    let (mut found, read_at) = catalog.ledger_at(ledger).await?;
    let mut changes = None;
    loop {
        if found.0 > *known {
            *known = found.0;
            if tell.send(Ok(found)).await.is_err() {
                return Ok(());
            }
        }
        // What was read is told also if it cannot be followed.
        let changes = match &mut changes {
            Some(changes) => changes,
            None => changes.insert(catalog.follow_ledger(ledger, read_at).await?),
        };
        found = changes.next().await?;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use inkfast_metastore::watches::RECENT_BYTES_MAX;
    use inkfast_metastore::{MemoryMetastore, Metastore, Transaction, VALUE_BYTES_MAX};
    use tokio::time::timeout;

    use super::*;
    use crate::catalog::{Replaced, example};

    /// How long a test waits for what must come.
    const PATIENCE: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_changed_before_all_that_is_remembered_is_told() {
        let store = Arc::new(MemoryMetastore::new());
        let catalog = Catalog::new(store.clone());
        let (created, metadata) = example::create_ledger(&catalog).await;
        let ledger = metadata.ledger;
        let replaced = catalog.replace(&(created, metadata.clone()), &metadata).await.unwrap();
        let Replaced::Won(changed) = replaced else { panic!("nobody else writes") };
        for _ in 0..=RECENT_BYTES_MAX / VALUE_BYTES_MAX {
            let other = Transaction::new().put("other", vec![0; VALUE_BYTES_MAX]);
            store.commit(other).await.unwrap();
        }

        let mut follow = Follow::start(catalog.clone(), ledger, created);
        let told = timeout(PATIENCE, follow.next()).await.unwrap().unwrap();
        assert_eq!(told, (changed, metadata.clone()));

        // And it can be followed from there, so that nobody has to ask again and again.
        let (_, read_at) = catalog.ledger_at(ledger).await.unwrap();
        catalog.follow_ledger(ledger, read_at).await.unwrap();
        let replaced = catalog.replace(&told, &metadata).await.unwrap();
        let Replaced::Won(changed) = replaced else { panic!("nobody else writes") };
        let told = timeout(PATIENCE, follow.next()).await.unwrap().unwrap();
        assert_eq!(told.0, changed);
        catalog.delete(ledger).await.unwrap();
        let told = timeout(PATIENCE, follow.next()).await.unwrap();
        assert!(matches!(told, Err(Error::LedgerDeleted(_))), "{told:?}");
    }
}
