//! Measuring appends.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use futures::future::FutureExt;
use futures::stream::{FuturesUnordered, StreamExt, TryStreamExt, iter};
use hdrhistogram::Histogram;
use inkfast::{Append, Error, LedgerWriter};

use super::pace::Pace;
use super::{AT_ONCE, Load, Measured, histogram, record};
use crate::Failure;

/// Appends to the ledgers in turn for as long as the load says, and closes them. It is a task, as
/// those of applications mostly are: for any other thread each wake-up would cost as much as an
/// append.
pub(super) async fn measure(load: &Load, writers: Vec<LedgerWriter>) -> Result<Measured, Failure> {
    let measured = tokio::spawn(append_in_turn(load.clone(), writers)).await;
    measured.map_err(|error| Failure::Failed(format!("the bench has stopped: {error}")))?
}

async fn append_in_turn(load: Load, writers: Vec<LedgerWriter>) -> Result<Measured, Failure> {
    let payload = Bytes::from(vec![b'x'; load.entry_bytes]);
    // Has connections and streams in place before the clock starts.
    let begin = async |writer: &LedgerWriter| writer.append(payload.clone()).await?.await;
    iter(&writers).map(begin).buffer_unordered(AT_ONCE).try_for_each(async |_| Ok(())).await?;
    let mut latencies_us = histogram();
    let begun = Instant::now();
    let pace = Pace::start(load.seconds(), load.rate);
    let mut under_way = UnderWay::new(writers.len());
    let mut ledgers = (0..writers.len()).cycle();
    let mut over = false;
    while !over || under_way.count > 0 {
        tokio::select! {
            biased;
            ended = under_way.wait(&mut latencies_us), if under_way.count > 0 => ended?,
            since = pace.next(), if !over && under_way.count < load.window => {
                if let (Some(since), Some(ledger)) = (since, ledgers.next()) {
                    let append = writers[ledger].append(payload.clone()).await?;
                    under_way.begin(First { ledger, append, since });
                } else {
                    over = true;
                }
            }
        }
    }
    let elapsed = begun.elapsed();
    let close = async |writer: LedgerWriter| writer.close().await;
    iter(writers).map(close).buffer_unordered(AT_ONCE).try_for_each(async |_| Ok(())).await?;
    Ok(Measured { latencies_us, elapsed })
}

/// The appends that are not confirmed. Those of a ledger are confirmed in order, so that only the
/// first of each is waited for.
struct UnderWay {
    firsts: FuturesUnordered<First>,
    /// Those behind the first, by ledger; none if there is no first.
    behind: Vec<Option<VecDeque<First>>>,
    count: usize,
}

/// The first append of a ledger that is not confirmed.
struct First {
    ledger: usize,
    append: Append,
    since: Instant,
}

impl Future for First {
    type Output = (usize, Instant, Result<(), Error>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let confirmed = ready!(self.append.poll_unpin(context));
        Poll::Ready((self.ledger, self.since, confirmed.map(drop)))
    }
}

impl UnderWay {
    fn new(ledgers: usize) -> Self {
        let behind = (0..ledgers).map(|_| None).collect();
        Self { firsts: FuturesUnordered::new(), behind, count: 0 }
    }

    fn begin(&mut self, append: First) {
        self.count += 1;
        match &mut self.behind[append.ledger] {
            Some(behind) => behind.push_back(append),
            none => {
                *none = Some(VecDeque::new());
                self.firsts.push(append);
            }
        }
    }

    /// Waits until some of a ledger are confirmed, and notes their latencies.
    async fn wait(&mut self, latencies_us: &mut Histogram<u64>) -> Result<(), Error> {
        let Some((ledger, mut since, mut confirmed)) = self.firsts.next().await else {
            return Ok(());
        };
        let now = Instant::now();
        loop {
            confirmed?;
            self.count -= 1;
            record(latencies_us, now - since);
            let next = self.behind[ledger].as_mut().and_then(VecDeque::pop_front);
            let Some(mut next) = next else {
                self.behind[ledger] = None;
                return Ok(());
            };
            match (&mut next).now_or_never() {
                Some(ended) => (_, since, confirmed) = ended,
                None => {
                    self.firsts.push(next);
                    return Ok(());
                }
            }
        }
    }
}
