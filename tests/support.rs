//! What the tests of the library share.

use bytes::Bytes;
use futures::TryStreamExt;
use inkfast::{Client, EntryId, LedgerReader};
use inkfast_cli::cluster::Cluster;

/// Starts a cluster in this process, with a client.
pub(crate) async fn cluster(bookies: usize) -> (Cluster, Client) {
    let cluster = Cluster::temporary(bookies, 1).await.unwrap();
    let client = cluster.client().await.unwrap();
    (cluster, client)
}

/// Reads all that is confirmed.
pub(crate) async fn payloads(reader: &LedgerReader) -> Vec<Bytes> {
    let Some(last) = reader.last_add_confirmed().await.unwrap() else { return Vec::new() };
    let entries = reader.read(EntryId::FIRST..=last);
    entries.map_ok(|entry| entry.payload()).try_collect().await.unwrap()
}
