//! Measuring tails.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::future::try_join_all;
use futures::{Stream, TryStreamExt};
use hdrhistogram::Histogram;
use inkfast::{Append, Client, Entry, EntryId, Error, LedgerWriter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::pace::Pace;
use super::{Load, Measured, histogram, record};
use crate::Failure;

/// How many entries are due each second, unless one says otherwise.
const RATE_DEFAULT: u32 = 1000;
/// How many confirmations may be ahead of their delivery before the writer waits.
const AHEAD_MAX: usize = 1 << 16;

/// Appends for as long as the load says, follows the ledgers from their second entry on, and
/// closes them.
pub(super) async fn measure(
    load: &Load,
    client: &Client,
    writers: Vec<LedgerWriter>,
) -> Result<Measured, Failure> {
    let payload = Bytes::from(vec![b'x'; load.entry_bytes]);
    let mut ledgers = Vec::new();
    for writer in writers {
        // Has connections and streams in place before the clock starts.
        writer.append(payload.clone()).await?.await?;
        let reader = client.open_ledger(writer.id()).await?;
        ledgers.push((writer, Box::pin(reader.tail(EntryId::FIRST.next()))));
    }
    let window = Arc::new(Semaphore::new(load.window));
    let begun = Instant::now();
    let pace = Pace::start(load.seconds(), Some(load.rate.unwrap_or(RATE_DEFAULT)));
    let ledgers = ledgers.into_iter().map(|(writer, tail)| {
        let (begin, begin_end) = mpsc::channel(load.window);
        let (confirm, confirmed) = mpsc::channel(AHEAD_MAX);
        let (payload, window, pace) = (&payload, &window, &pace);
        let writing = async move {
            let appending = append(&writer, payload, window, pace, begin);
            tokio::try_join!(appending, tell(begin_end, confirm))?;
            writer.close().await
        };
        async { tokio::try_join!(writing, follow(tail, confirmed)) }
    });
    let mut latencies_us = histogram();
    for (_, of_ledger) in try_join_all(ledgers).await? {
        latencies_us += of_ledger;
    }
    Ok(Measured { latencies_us, elapsed: begun.elapsed() })
}

/// An append under way, with its place in the window.
struct UnderWay {
    append: Append,
    _place: OwnedSemaphorePermit,
}

/// Appends until the time is over, as far as the window allows.
async fn append(
    writer: &LedgerWriter,
    payload: &Bytes,
    window: &Arc<Semaphore>,
    pace: &Pace,
    under_way: mpsc::Sender<UnderWay>,
) -> Result<(), Error> {
    loop {
        let Ok(place) = Arc::clone(window).acquire_owned().await else { return Ok(()) };
        if pace.next().await.is_none() {
            return Ok(());
        }
        let append = writer.append(payload.clone()).await?;
        // As many fit as the window allows.
        let _ = under_way.send(UnderWay { append, _place: place }).await;
    }
}

/// Tells when each append was confirmed.
async fn tell(
    mut under_way: mpsc::Receiver<UnderWay>,
    confirm: mpsc::Sender<Instant>,
) -> Result<(), Error> {
    while let Some(UnderWay { append, .. }) = under_way.recv().await {
        append.await?;
        // The other end goes only with an error, which ends this too.
        let _ = confirm.send(Instant::now()).await;
    }
    Ok(())
}

/// Notes the latency of each entry. One that is delivered before the writer knows that it is
/// confirmed has none.
async fn follow(
    mut tail: Pin<Box<impl Stream<Item = Result<Entry, Error>>>>,
    mut confirmed: mpsc::Receiver<Instant>,
) -> Result<Histogram<u64>, Error> {
    let mut latencies_us = histogram();
    while tail.try_next().await?.is_some() {
        let delivered = Instant::now();
        if let Some(confirmed) = confirmed.recv().await {
            record(&mut latencies_us, delivered.saturating_duration_since(confirmed));
        }
    }
    Ok(latencies_us)
}
