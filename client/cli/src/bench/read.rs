//! Measuring reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use inkfast::{Client, EntryId, Error, LedgerReader, LedgerWriter};
use tokio::task::JoinSet;

use super::pace::Pace;
use super::{Load, Measured, histogram, note};
use crate::Failure;

/// How much is written to be read, over all ledgers together.
const WRITTEN_BYTES: u64 = 64 << 20;
const WRITTEN_ENTRIES_MAX: u64 = 65_536;

/// What all readers share.
struct Shared {
    readers: Vec<LedgerReader>,
    /// How many entries each ledger has.
    entries: u64,
    pace: Pace,
    next: AtomicU64,
}

/// Fills the ledgers and closes them, and then reads their entries in turn, again and again, for
/// as long as the load says.
pub(super) async fn measure(
    load: &Load,
    client: &Client,
    writers: Vec<LedgerWriter>,
) -> Result<Measured, Failure> {
    let entry_bytes = load.entry_bytes.max(1) as u64;
    let entries = (WRITTEN_BYTES / entry_bytes).min(WRITTEN_ENTRIES_MAX);
    let entries = (entries / writers.len() as u64).max(1);
    let payload = Bytes::from(vec![b'x'; load.entry_bytes]);
    let filling = writers.into_iter().map(|writer| fill(client, writer, entries, &payload));
    let readers = try_join_all(filling).await?;

    let begun = Instant::now();
    let pace = Pace::start(load.seconds(), load.rate);
    let shared = Arc::new(Shared { readers, entries, pace, next: AtomicU64::new(0) });
    let mut reading = JoinSet::new();
    for _ in 0..load.window {
        reading.spawn(read(Arc::clone(&shared)));
    }
    let mut latencies_us = histogram();
    while let Some(read) = reading.join_next().await {
        let of_reader = read.map_err(|error| Failure::Failed(error.to_string()))??;
        latencies_us += of_reader;
    }
    Ok(Measured { latencies_us, elapsed: begun.elapsed() })
}

/// Fills a ledger, closes it, and opens it for reading.
async fn fill(
    client: &Client,
    writer: LedgerWriter,
    entries: u64,
    payload: &Bytes,
) -> Result<LedgerReader, Error> {
    for _ in 0..entries {
        drop(writer.append(payload.clone()).await?);
    }
    writer.flush().await?;
    let ledger = writer.id();
    writer.close().await?;
    client.open_ledger(ledger).await
}

/// Reads one entry after another until the time is over.
async fn read(shared: Arc<Shared>) -> Result<Histogram<u64>, Error> {
    let mut latencies_us = histogram();
    while let Some(since) = shared.pace.next().await {
        let turn = shared.next.fetch_add(1, Ordering::Relaxed);
        let ledgers = shared.readers.len() as u64;
        let reader = &shared.readers[usize::try_from(turn % ledgers).unwrap_or(0)];
        let entry = EntryId::new(turn / ledgers % shared.entries);
        let mut stream = Box::pin(reader.read(entry..=entry));
        while stream.try_next().await?.is_some() {}
        note(&mut latencies_us, since);
    }
    Ok(latencies_us)
}
