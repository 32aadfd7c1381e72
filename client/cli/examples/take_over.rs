//! Two writers of one log: the second takes over from the first, which may still be alive.
//!
//! A log that must go on when its writer dies is a chain of ledgers. Whoever takes it over
//! recovers the last ledger, which shuts its writer out for good, reads what is in it, and goes on
//! in a ledger of its own.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;

use futures::TryStreamExt;
use inkfast::{Client, CreateOptions, EntryId, LedgerId, LedgerWriter};
use inkfast_cli::cluster::Cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let cluster = Cluster::temporary(3, 1).await?;

    // The first writer counts, and is then cut off, or so it seems to everyone else.
    let first = cluster.client().await?.create_ledger(CreateOptions::default()).await?;
    for number in 0..10 {
        first.append(format!("{number}")).await?.await?;
    }

    // The second takes over. No lock and no timeout is needed: recovery fences the first writer
    // before it decides where the ledger ends.
    let second = take_over(&cluster.client().await?, first.id()).await?;
    second.append("10").await?.await?;
    println!("the second writer goes on in ledger {}", second.id());
    second.close().await?;

    // The first writer was only slow. Nothing that it appends now can be confirmed, and it is told
    // why.
    let late = match first.append("ten").await {
        Ok(append) => append.await,
        Err(error) => Err(error),
    };
    match late {
        Err(error @ inkfast::Error::Fenced(_)) => println!("the first writer is told: {error}"),
        other => return Err(format!("the first writer was not fenced: {other:?}").into()),
    }
    cluster.stop().await;
    Ok(())
}

/// Ends the ledger of another writer, goes through its entries, and opens the next ledger.
async fn take_over(client: &Client, ledger: LedgerId) -> Result<LedgerWriter, inkfast::Error> {
    let reader = client.recover_ledger(ledger).await?;
    let mut count = 0;
    if let Some(last) = reader.last_add_confirmed().await? {
        let mut entries = Box::pin(reader.read(EntryId::FIRST..=last));
        while entries.try_next().await?.is_some() {
            count += 1;
        }
    }
    println!("ledger {ledger} is closed with {count} entries");
    client.create_ledger(CreateOptions::default()).await
}

#[test]
fn runs() {
    main().unwrap();
}
