//! Answers requests: reads from the store, changes through the commits, heartbeats in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use inkfast_metastore::leases::Leases;
use inkfast_metastore::limits::{check_key, check_operation, check_scan};
use inkfast_metastore::messages::{Request, answer_frame, decode_request};
use inkfast_metastore::state::{self, Answer, Command, Operation, Told};
use inkfast_metastore::watches::{PROGRESS_INTERVAL, Watcher, Watches};
use inkfast_metastore::{Error, MemberInfo, MemberStatus, Version};
use inkfast_wire::{Error as WireError, Peer, Service, Stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
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
    me: MemberInfo,
    store: Store,
    commits: Commits,
    leases: Arc<Mutex<Leases>>,
    watches: Watches,
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
    pub(crate) fn new(
        address: String,
        store: Store,
        commits: Commits,
        leases: Arc<Mutex<Leases>>,
        watches: Watches,
    ) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let clock = Clock { started: Instant::now(), started_ms: since_1970.as_millis() };
        let reads = Arc::new(Semaphore::new(READS_MAX));
        let me = MemberInfo { id: store.member().id, address, voter: true };
        Self { me, store, commits, leases, watches, reads, clock }
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

    async fn answer(&self, request: Result<Request, Error>, bytes: usize) -> Outcome {
        match request? {
            Request::Get { key, .. } => {
                check_key(&key)?;
                let _permit = self.reads.acquire().await;
                let value = self.store.read(move |rows| state::get(rows, &key)).await?;
                Ok(Answer::Value(value))
            }
            Request::Scan { scan, .. } => {
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
            Request::Watch { .. } | Request::More => {
                Err(Error::bad_request("a watch needs a stream of its own, from its first request"))
            }
            Request::Status => self.status().await.map(Answer::Status),
            Request::AddMember { .. }
            | Request::RemoveMember(_)
            | Request::TransferLeader(_)
            | Request::Backup => Err(Error::bad_request("this metastore has no other members")),
            Request::Change { request, operation } => {
                check_operation(&operation)?;
                let command = self.command(request, operation);
                let answer = self.commits.queue(command, bytes).await?;
                answer.await.unwrap_or_else(|_| Err(Error::unavailable("it is stopping")))
            }
        }
    }

    async fn status(&self) -> Result<MemberStatus, Error> {
        let MemberInfo { id, address, .. } = self.me.clone();
        let revision = self.store.read(state::revision).await?;
        let (log, applied, members) = (None, None, vec![self.me.clone()]);
        Ok(MemberStatus { id, address, term: 1, leader: Some(id), log, applied, revision, members })
    }

    fn command(&self, request: Uuid, operation: Operation) -> Command {
        let now_ms = self.clock.started_ms + self.clock.started.elapsed().as_millis();
        Command { request, time_ms: u64::try_from(now_ms).unwrap_or(u64::MAX), operation }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the requests of a stream until it ends.
    async fn serve_requests(&self, stream: &mut Stream) -> Result<(), WireError> {
        while let Some(frame) = stream.receiver.next().await? {
            let answer = match decode_request(&frame) {
                Ok(Request::Watch { prefix, after }) => {
                    return self.serve_watch(&prefix, after, stream).await;
                }
                request => self.answer(request, frame.body.len()).await,
            };
            stream.sender.send(&answer_frame(&answer)).await?;
        }
        Ok(())
    }

    /// Tells what a watch asks for until its stream ends, or there is nothing more to tell.
    async fn serve_watch(
        &self,
        prefix: &str,
        after: Version,
        stream: &mut Stream,
    ) -> Result<(), WireError> {
        let begun = self.begin_watch(prefix, after).await;
        let mut answer = begun.as_ref().map(|_| Answer::Done).map_err(Error::clone);
        let mut watcher = begun.ok();
        loop {
            stream.sender.send(&answer_frame(&answer)).await?;
            let (Some(watcher), true) = (&mut watcher, answer.is_ok()) else { return Ok(()) };
            let Some(frame) = stream.receiver.next().await? else { return Ok(()) };
            answer = match decode_request(&frame) {
                Ok(Request::More) => tokio::select! {
                    told = more(watcher) => told.map(Answer::Told),
                    // The caller has gone, or does not wait for its answer.
                    _ = stream.receiver.next() => return Ok(()),
                },
                _ => Err(Error::bad_request("a watch's stream is for nothing else: open another")),
            };
        }
    }

    async fn begin_watch(&self, prefix: &str, after: Version) -> Result<Watcher, Error> {
        let permit = self.reads.acquire().await;
        let revision = self.store.read(state::revision).await?;
        drop(permit);
        self.watches.watch(prefix, after, revision)
    }
}

/// Waits for what a watcher has to tell, or until it should know that it is nothing.
async fn more(watcher: &mut Watcher) -> Result<Told, Error> {
    match timeout(PROGRESS_INTERVAL, watcher.next()).await {
        Ok(told) => told,
        Err(_) => Ok(Told { changes: Vec::new(), seen: watcher.seen() }),
    }
}

impl Service for Front {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        match self.serve_requests(&mut stream).await {
            Ok(()) => stream.sender.finish(),
            Err(error) => {
                tracing::debug!(peer = %peer.name, %error, "a stream of requests broke off");
            }
        }
    }
}

#[cfg(test)]
mod tests;
