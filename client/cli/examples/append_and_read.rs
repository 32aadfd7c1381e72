//! Appends to a ledger, waits for the confirmations, and reads the ledger back.
#![expect(clippy::print_stdout, reason = "an example shows what it does")]

use std::error::Error;

use futures::TryStreamExt;
use inkfast::{CreateOptions, EntryId};
use inkfast_cli::cluster::Cluster;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // A metastore and three bookies in this process. A client of a real cluster connects with
    // `Client::connect` and the cluster's addresses and certificates.
    let cluster = Cluster::temporary(3, 1).await?;
    let client = cluster.client().await?;

    // Each entry goes to three bookies, and is confirmed when two have it on disk.
    let writer = client.create_ledger(CreateOptions::default()).await?;
    println!("ledger {}", writer.id());

    // An append returns when the entry has its number; the future that it gives ends when the
    // entry is confirmed. Many can be under way, and they are confirmed in order.
    let mut under_way = Vec::new();
    for word in ["write", "it", "down"] {
        under_way.push(writer.append(word).await?);
    }
    for append in under_way {
        println!("entry {} is confirmed", append.await?);
    }

    // Closing fixes the end of the ledger.
    let ledger = writer.id();
    let last = writer.close().await?;
    assert_eq!(last, Some(EntryId::new(2)));

    let reader = client.open_ledger(ledger).await?;
    let mut entries = Box::pin(reader.read(EntryId::FIRST..=EntryId::new(2)));
    while let Some(entry) = entries.try_next().await? {
        println!("entry {}: {}", entry.id(), String::from_utf8_lossy(&entry.payload()));
    }
    cluster.stop().await;
    Ok(())
}

#[test]
fn runs() {
    main().unwrap();
}
