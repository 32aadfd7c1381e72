//! Answers requests: reads from the store, changes through the consensus, heartbeats in memory.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inkfast_metastore::MemberStatus;
use inkfast_metastore::leases::Leases;
use inkfast_metastore::limits::{check_address, check_key, check_operation, check_scan};
use inkfast_metastore::messages::{Request, answer_frame, decode_request, encode_command};
use inkfast_metastore::rows::StateError;
use inkfast_metastore::state::{self, Answer, Command, Operation, Told};
use inkfast_metastore::watches::{PROGRESS_INTERVAL, Watcher, Watches};
use inkfast_metastore::{Error, LeaseId, Version};
use inkfast_wire::{Error as WireError, Peer, Role, Service, Stream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use uuid::Uuid;

use crate::backup::Backup;
use crate::consensus::machine::Machine;
use crate::consensus::network::{Peers, is_of_members};
use crate::consensus::{Consensus, Outcome};
use crate::member::Member;
use crate::storage::Storage;
use crate::store::Store;

/// The most reads at a time; more wait.
const READS_MAX: usize = 64;
/// How often it is looked whether leases have run out: about how late they end.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);
/// How long a caller has to take a piece of a backup, which keeps the state of its moment on disk.
const PIECE_DEADLINE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 30 });
/// A member that stood still for so long lets its holders be heard before it ends leases.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// What answers requests. Clones answer from the same state.
#[derive(Clone)]
pub(crate) struct Front {
    me: Me,
    peers: Arc<dyn Peers>,
    store: Store,
    consensus: Consensus,
    leases: Arc<Mutex<Leases>>,
    watches: Watches,
    reads: Arc<Semaphore>,
    clock: Arc<Mutex<Clock>>,
}

/// This member, as others reach it.
#[derive(Clone)]
pub(crate) struct Me {
    pub(crate) member: Member,
    pub(crate) address: String,
}

/// The time of commands: how long there has been a leader, in milliseconds. Each leader goes on
/// from what the state says when its term begins, so no two clocks are ever compared.
struct Clock {
    term: u64,
    begun: Instant,
    begun_ms: u64,
}

impl Front {
    /// Joins in the consensus as this member, whose state it then answers from.
    pub(crate) async fn start(
        me: Me,
        storage: &Storage,
        peers: Arc<dyn Peers>,
    ) -> Result<(Self, Consensus), StateError> {
        let store = storage.store.clone();
        let leases =
            Arc::new(Mutex::new(store.read(|rows| Leases::all(rows, Instant::now())).await?));
        let watches = Watches::new(store.read(state::revision).await?);
        let machine = Machine::new(store.clone(), leases.clone(), watches.clone());
        let consensus = Consensus::start(storage, machine, peers.clone(), &me.address).await?;
        let reads = Arc::new(Semaphore::new(READS_MAX));
        // No term is 0: the first one sets the clock.
        let clock = Clock { term: 0, begun: Instant::now(), begun_ms: 0 };
        let clock = Arc::new(Mutex::new(clock));
        let front =
            Self { me, peers, store, consensus: consensus.clone(), leases, watches, reads, clock };
        Ok((front, consensus))
    }

    /// Ends leases that run out while this member leads, as long as it is not dropped.
    pub(crate) async fn expire_leases(self) {
        let mut ticks = interval(EXPIRY_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut led, mut last) = (None, Instant::now());
        // Each is there once, and those that end do not keep the others from being looked at.
        let mut ending = JoinSet::new();
        loop {
            ticks.tick().await;
            let (now, leads) = (Instant::now(), self.consensus.leading_term());
            let stood_still = now - last > STOOD_STILL;
            if leads.is_some() && (leads != led || stood_still) {
                self.leases().restart(now);
            } else if leads.is_some() {
                for lease in self.leases().take_expired(now) {
                    ending.spawn(self.clone().expire(lease));
                }
            }
            while ending.try_join_next().is_some() {}
            (led, last) = (leads, now);
        }
    }

    async fn expire(self, lease: LeaseId) {
        tracing::info!(%lease, "a lease has run out");
        // The same each time: a lease ends once, and its number is never given to another.
        let request = Uuid::from_u64_pair(0, lease.get());
        let ended = self.change(request, Operation::EndLease(lease)).await;
        let Err(error) = ended else { return };
        tracing::info!(%lease, %error, "a lease could not be ended, and goes on if it still is");
        let (leases, now) = (self.leases.clone(), Instant::now());
        let follow = move |rows: &_| {
            leases.lock().unwrap_or_else(PoisonError::into_inner).follow(rows, lease, now)
        };
        if let Err(error) = self.store.read(follow).await {
            tracing::warn!(%lease, %error, "a lease cannot be read");
        }
    }

    pub(crate) async fn answer(&self, request: Result<Request, Error>) -> Outcome {
        match request? {
            Request::Get { key, stale } => {
                check_key(&key)?;
                self.confirm_unless(stale).await?;
                let _permit = self.reads.acquire().await;
                let value = self.store.read(move |rows| state::get(rows, &key)).await?;
                Ok(Answer::Value(value))
            }
            Request::Scan { scan, stale } => {
                check_scan(&scan)?;
                self.confirm_unless(stale).await?;
                let _permit = self.reads.acquire().await;
                let page = self.store.read(move |rows| state::scan(rows, &scan)).await?;
                Ok(Answer::Page(page))
            }
            Request::KeepAlive(lease) => self.keep_alive(lease).await,
            Request::Watch { .. } | Request::More | Request::Backup => {
                let words = "a watch or backup needs a stream of its own, from its first request";
                Err(Error::bad_request(words))
            }
            Request::Change { request, operation } => {
                check_operation(&operation)?;
                self.change(request, operation).await
            }
            Request::Status => Ok(Answer::Status(self.status().await?)),
            Request::AddMember { address, id } => {
                check_address(&address)?;
                self.leading()?;
                let id = self.member_at(&address, id).await.map_err(Error::bad_request)?;
                self.consensus.add_member(id, &address).await?;
                Ok(Answer::Done)
            }
            Request::MoveMember { address, id } => {
                check_address(&address)?;
                self.leading()?;
                // It may yet be found there: it is tried again.
                let id = self.member_at(&address, id).await.map_err(Error::unavailable)?;
                self.consensus.move_member(id, &address).await?;
                Ok(Answer::Done)
            }
            Request::RemoveMember(id) => {
                self.leading()?;
                self.consensus.remove_member(id).await?;
                Ok(Answer::Done)
            }
            Request::TransferLeader(id) => {
                self.consensus.transfer_leader(id).await?;
                Ok(Answer::Done)
            }
        }
    }

    async fn confirm_unless(&self, stale: bool) -> Result<(), Error> {
        if stale { Ok(()) } else { self.consensus.confirm().await }
    }

    /// Moves the deadline first: who leads after that has given the lease its whole TTL anew.
    async fn keep_alive(&self, lease: LeaseId) -> Outcome {
        self.leases().keep_alive(lease, Instant::now());
        self.consensus.confirm().await?;
        // It may have ended since, or may not have been known here, if an earlier leader granted it.
        if self.leases().keep_alive(lease, Instant::now()) {
            return Ok(Answer::Done);
        }
        match self.store.read(move |rows| state::lease_ttl(rows, lease)).await? {
            Some(_) => Err(Error::unavailable("the lease has run out, and is about to end")),
            None => Err(Error::LeaseNotFound),
        }
    }

    async fn change(&self, request: Uuid, operation: Operation) -> Outcome {
        let time_ms = self.now_ms(self.leading()?).await?;
        let command = Command { request, time_ms, operation };
        self.consensus.propose(encode_command(command)).await
    }

    /// Returns the term in which this member leads, or an error that says who else does.
    fn leading(&self) -> Result<u64, Error> {
        self.consensus.leading_term().ok_or_else(|| self.consensus.not_leader())
    }

    async fn now_ms(&self, term: u64) -> Result<u64, Error> {
        if self.clock().term != term {
            let begun_ms = self.store.read(state::time_ms).await?;
            *self.clock() = Clock { term, begun: Instant::now(), begun_ms };
        }
        let clock = self.clock();
        let elapsed_ms = u64::try_from(clock.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(clock.begun_ms.saturating_add(elapsed_ms))
    }

    async fn status(&self) -> Result<MemberStatus, Error> {
        let revision = self.store.read(state::revision).await?;
        let standing = self.consensus.standing();
        Ok(MemberStatus {
            id: self.me.member.id,
            address: self.me.address.clone(),
            term: standing.term,
            leader: standing.leader,
            log: standing.log,
            applied: standing.applied,
            revision,
            members: standing.members,
        })
    }

    /// Asks who is at an address, which only a metastore of this cluster answers. Fails with words
    /// if it does not, or if it is known who should and that is another.
    async fn member_at(&self, address: &str, meant: Option<Uuid>) -> Result<Uuid, String> {
        let found = self.peers.who(address).await.map_err(|error| {
            format!("no metastore of this cluster answers at {address}: {error}")
        })?;
        match meant {
            Some(meant) if meant != found => Err(format!(
                "at {address} answers {found}, not {meant}: \
                 give it an address of its own with --advertise"
            )),
            _ => Ok(found),
        }
    }

    fn leases(&self) -> MutexGuard<'_, Leases> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the requests of a stream until it ends.
    async fn serve_requests(&self, peer: &Peer, stream: &mut Stream) -> Result<(), WireError> {
        while let Some(frame) = stream.receiver.next().await? {
            let answer = if is_of_members(frame.kind) && peer.name.role == Role::Metastore {
                self.consensus.answer(frame).await
            } else {
                match decode_request(&frame) {
                    Ok(Request::Watch { prefix, after }) => {
                        return self.serve_watch(&prefix, after, stream).await;
                    }
                    Ok(Request::Backup) => return self.serve_backup(stream).await,
                    request => answer_frame(&self.answer(request).await),
                }
            };
            stream.sender.send(&answer).await?;
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
                    told = self.more(watcher) => told.map(Answer::Told),
                    // The caller has gone, or does not wait for its answer.
                    _ = stream.receiver.next() => return Ok(()),
                },
                _ => Err(Error::bad_request("a watch's stream is for nothing else: open another")),
            };
        }
    }

    pub(crate) async fn begin_watch(&self, prefix: &str, after: Version) -> Result<Watcher, Error> {
        self.consensus.confirm().await?;
        let permit = self.reads.acquire().await;
        let revision = self.store.read(state::revision).await?;
        drop(permit);
        self.watches.watch(prefix, after, revision)
    }

    /// Waits for what a watcher has to tell, or until it should know that it is nothing: which
    /// only a leader may say.
    pub(crate) async fn more(&self, watcher: &mut Watcher) -> Result<Told, Error> {
        if let Ok(told) = timeout(PROGRESS_INTERVAL, watcher.next()).await {
            return told;
        }
        let seen = watcher.seen();
        self.consensus.confirm().await?;
        Ok(Told { changes: Vec::new(), seen })
    }

    /// Sends a backup, piece by piece, and an empty piece after the last.
    async fn serve_backup(&self, stream: &mut Stream) -> Result<(), WireError> {
        let begun = match self.consensus.confirm().await {
            Ok(()) => Backup::of(&self.store, self.me.member.cluster).await.map_err(Error::from),
            Err(error) => Err(error),
        };
        let mut backup = match begun {
            Ok(backup) => backup,
            Err(error) => return stream.sender.send(&answer_frame(&Err(error))).await,
        };
        loop {
            let piece = backup.next().await.map_err(Error::from);
            let ended = !matches!(&piece, Ok(Some(_)));
            let answer = piece.map(|piece| Answer::Piece(piece.unwrap_or_default()));
            let sent = timeout(PIECE_DEADLINE, stream.sender.send(&answer_frame(&answer))).await;
            sent.map_err(|_| WireError::TimedOut {
                what: format!("a piece of a backup was not taken within {PIECE_DEADLINE:?}"),
            })??;
            if ended {
                return Ok(());
            }
        }
    }
}

impl Service for Front {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        match self.serve_requests(&peer, &mut stream).await {
            Ok(()) => stream.sender.finish(),
            Err(error) => {
                tracing::debug!(peer = %peer.name, %error, "a stream of requests broke off");
            }
        }
    }
}

#[cfg(test)]
mod tests;
