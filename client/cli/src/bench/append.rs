//! Measuring appends.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use inkfast::{Append, Error, LedgerWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::pace::Pace;
use super::{Load, Measured, histogram, note};
use crate::Failure;

/// An append under way, with its place in the window.
pub(super) struct UnderWay {
    pub(super) append: Append,
    since: Instant,
    _place: OwnedSemaphorePermit,
}

/// Appends for as long as the load says and closes the ledgers.
pub(super) async fn measure(load: &Load, writers: Vec<LedgerWriter>) -> Result<Measured, Failure> {
    let payload = Bytes::from(vec![b'x'; load.entry_bytes]);
    for writer in &writers {
        // Has connections and streams in place before the clock starts.
        writer.append(payload.clone()).await?.await?;
    }
    let window = Arc::new(Semaphore::new(load.window));
    let begun = Instant::now();
    let pace = Pace::start(load.seconds(), load.rate);
    let ledgers = writers.iter().map(|writer| {
        let (begin, begin_end) = mpsc::channel(load.window);
        let appending = append(writer, &payload, &window, &pace, begin);
        async { tokio::try_join!(appending, confirm(begin_end)) }
    });
    let mut latencies_us = histogram();
    for ((), of_ledger) in try_join_all(ledgers).await? {
        latencies_us += of_ledger;
    }
    let elapsed = begun.elapsed();
    for writer in writers {
        writer.close().await?;
    }
    Ok(Measured { latencies_us, elapsed })
}

/// Appends until the time is over, as far as the window allows.
pub(super) async fn append(
    writer: &LedgerWriter,
    payload: &Bytes,
    window: &Arc<Semaphore>,
    pace: &Pace,
    under_way: mpsc::Sender<UnderWay>,
) -> Result<(), Error> {
    loop {
        let Ok(place) = Arc::clone(window).acquire_owned().await else { return Ok(()) };
        let Some(since) = pace.next().await else { return Ok(()) };
        let append = writer.append(payload.clone()).await?;
        // As many fit as the window allows.
        let _ = under_way.send(UnderWay { append, since, _place: place }).await;
    }
}

/// Notes the latency of each append, in the order in which a ledger's are confirmed.
async fn confirm(mut under_way: mpsc::Receiver<UnderWay>) -> Result<Histogram<u64>, Error> {
    let mut latencies_us = histogram();
    while let Some(UnderWay { append, since, _place }) = under_way.recv().await {
        append.await?;
        note(&mut latencies_us, since);
    }
    Ok(latencies_us)
}
