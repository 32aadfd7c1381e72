//! Answers requests: reads from the store, changes through the commits, heartbeats in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use inkfast_metastore::Error;
use inkfast_metastore::leases::Leases;
use inkfast_metastore::limits::{check_key, check_operation, check_scan};
use inkfast_metastore::messages::{Request, answer_frame, decode_request};
use inkfast_metastore::state::{self, Answer, Command, Operation};
use inkfast_wire::{Frame, Peer, Service, Stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval};
use uuid::Uuid;

use crate::commits::{Commits, Outcome};
use crate::store::Store;

/// The most reads at a time; more wait.
const READS_MAX: usize = 64;
/// How often it is looked whether leases have run out: about how late they end.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// What answers requests. Clones answer from the same state.
#[derive(Clone)]
pub(crate) struct Front {
    store: Store,
    commits: Commits,
    leases: Arc<Mutex<Leases>>,
    reads: Arc<Semaphore>,
    clock: Clock,
}

/// The time of commands: the wall clock as it was at the start, moved on by tokio's.
#[derive(Clone, Copy)]
struct Clock {
    started: Instant,
    started_ms: u128,
}

impl Front {
    pub(crate) fn new(store: Store, commits: Commits, leases: Arc<Mutex<Leases>>) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = Clock { started: Instant::now(), started_ms: since_1970.as_millis() };
        Self { store, commits, leases, reads: Arc::new(Semaphore::new(READS_MAX)), clock }
    }

    /// Ends leases that run out, as long as it is not dropped.
    pub(crate) async fn expire_leases(self) {
        let mut ticks = interval(EXPIRY_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await;
            let expired = self.leases().take_expired(now);
            for lease in expired {
                tracing::info!(%lease, "a lease has run out");
                let command = self.command(Uuid::new_v4(), Operation::EndLease(lease));
                if let Err(error) = self.commits.queue(command, 0).await {
                    tracing::warn!(%lease, %error, "a lease cannot be ended");
                }
            }
        }
    }

    async fn answer(&self, frame: &Frame) -> Outcome {
        match decode_request(frame)? {
            Request::Get { key } => {
                check_key(&key)?;
                let _permit = self.reads.acquire().await;
                let value = self.store.read(move |rows| state::get(rows, &key)).await?;
                Ok(Answer::Value(value))
            }
            Request::Scan(scan) => {
                check_scan(&scan)?;
                let _permit = self.reads.acquire().await;
                let page = self.store.read(move |rows| state::scan(rows, &scan)).await?;
                Ok(Answer::Page(page))
            }
            Request::KeepAlive(lease) => {
                if self.leases().keep_alive(lease, Instant::now()) {
                    return Ok(Answer::Done);
                }
                Err(Error::LeaseNotFound)
            }
            Request::Watch { .. } | Request::More => Err(Error::unavailable("not there yet")),
            Request::Change { request, operation } => {
                check_operation(&operation)?;
                let command = self.command(request, operation);
                let answer = self.commits.queue(command, frame.body.len()).await?;
                answer.await.unwrap_or_else(|_| Err(Error::unavailable("it is stopping")))
            }
        }
    }

    fn command(&self, request: Uuid, operation: Operation) -> Command {
        let now_ms = self.clock.started_ms + self.clock.started.elapsed().as_millis();
        Command { request, time_ms: u64::try_from(now_ms).unwrap_or(u64::MAX), operation }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service for Front {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        let lost = loop {
            match stream.receiver.next().await {
                Ok(Some(frame)) => {
                    let answer = self.answer(&frame).await;
                    if let Err(error) = stream.sender.send(&answer_frame(&answer)).await {
                        break error;
                    }
                }
                Ok(None) => {
                    stream.sender.finish();
                    return;
                }
                Err(error) => break error,
            }
        };
        tracing::debug!(peer = %peer.name, error = %lost, "a stream of requests broke off");
    }
}
