//! Consensus: what is proposed to one member is applied by all, in one order.
//!
//! This is the seam to openraft, which nothing outside of this module knows. What is proposed is
//! opaque bytes; the [state machine](machine) applies them and gives the answer. `log` keeps what
//! is proposed on disk, `network` carries it to the other members, `codec` writes it down.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use inkfast_metastore::Error;
use inkfast_metastore::MemberInfo;
use inkfast_metastore::rows::StateError;
use inkfast_metastore::state::Answer;
use inkfast_wire::Frame;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, Fatal, LinearizableReadError, RaftError};
use openraft::{RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

pub(crate) mod codec;
pub(crate) mod log;
pub(crate) mod machine;
mod membership;
pub(crate) mod network;
mod peer;
pub(crate) mod types;

use crate::storage::Storage;
use machine::Machine;
use network::{Network, Peers};
use peer::Receiving;
use types::{Address, Data, LogId, NodeId, Raft, Types};

/// What a command is answered with.
pub(crate) type Outcome = Result<Answer, Error>;

/// How often a leader is heard of.
const HEARTBEAT_MS: u64 = 100;
/// A follower that has not heard of a leader for the longer time, and then for a time between the
/// two by chance, asks to be elected: within a second.
const ELECTION_MS: (u64, u64) = (250, 500);
/// A member makes its state durable and forgets log after so many entries. In tests there are few,
/// so that members also meet snapshots.
const SNAPSHOT_ENTRIES: u64 = if cfg!(test) { 200 } else { 20_000 };
/// How many entries are kept after that for followers that are a little behind.
const KEPT_ENTRIES: u64 = if cfg!(test) { 50 } else { 5_000 };
/// The same, whatever the count, after so many bytes, looked for now and then.
const SNAPSHOT_BYTES: usize = if cfg!(test) { 1 << 20 } else { 256 << 20 };
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// After so many bytes no log is kept any more for followers that take entries too slowly: they are
/// sent a snapshot.
const LOG_BYTES_MAX: usize = 4 * SNAPSHOT_BYTES;
/// How long is waited for a snapshot until it is asked for again.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(60);
/// The most entries in one call to a member.
const PAYLOAD_ENTRIES: u64 = 1024;
/// The most bytes of proposals that wait for their answer; more wait for room.
const PROPOSED_BYTES_MAX: usize = 64 << 20;
/// The most reads that wait for a round; more wait for room.
const CONFIRMING_MAX: usize = 16_384;
/// How long a leader may take to apply what was committed before a read came.
const CATCH_UP_DEADLINE: Duration = Duration::from_secs(5);

/// This member's part in the consensus. Clones are the same.
#[derive(Clone)]
pub(crate) struct Consensus(Arc<Inner>);

struct Inner {
    raft: Raft,
    network: Network,
    id: Uuid,
    room: Arc<Semaphore>,
    confirming: mpsc::Sender<oneshot::Sender<Result<(), Error>>>,
    /// Held while the members change, one change at a time.
    changing: Arc<tokio::sync::Mutex<()>>,
    receiving: Arc<Receiving>,
    /// What goes on beside: it ends with this.
    _beside: JoinSet<()>,
}

/// What a member knows of the consensus at a moment.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) term: u64,
    pub(crate) leader: Option<Uuid>,
    pub(crate) log: Option<u64>,
    pub(crate) applied: Option<u64>,
    pub(crate) members: Vec<MemberInfo>,
}

impl Consensus {
    /// Joins in, as far as the log and the state of this member say; `address` is where others
    /// reach it if it founds the cluster.
    pub(crate) async fn start(
        storage: &Storage,
        machine: Machine,
        peers: Arc<dyn Peers>,
        address: &str,
    ) -> Result<Self, StateError> {
        let id = storage.member.id;
        let config = Arc::new(config()?);
        let (log, network) = (storage.log.clone(), Network::new(peers));
        let raft =
            Raft::new(NodeId(id), config, network.clone(), log, machine).await.map_err(fatal)?;
        // Until it has begun to work, its metrics know of no members.
        raft.with_raft_state(|_| ()).await.map_err(fatal)?;
        if storage.founds() {
            let first = BTreeMap::from([(NodeId(id), Address(address.to_owned()))]);
            raft.initialize(first).await.map_err(|error| StateError(error.to_string()))?;
        } else if raft.voter_ids().eq([NodeId(id)]) {
            // There is nobody else to wait for.
            raft.trigger().elect(false).await.map_err(fatal)?;
        }
        let (confirming, waiting) = mpsc::channel(CONFIRMING_MAX);
        let mut beside = JoinSet::new();
        beside.spawn(confirm_all(raft.clone(), waiting));
        beside.spawn(bound_log(raft.clone(), storage.clone(), network.clone()));
        let changing = Arc::default();
        beside.spawn(membership::finish_changes(raft.clone(), Arc::clone(&changing)));
        let receiving = Arc::new(Receiving::new(storage.store.clone()));
        beside.spawn(receiving.clone().end_idle());
        Ok(Self(Arc::new(Inner {
            raft,
            network,
            id,
            room: Arc::new(Semaphore::new(PROPOSED_BYTES_MAX)),
            confirming,
            changing,
            receiving,
            _beside: beside,
        })))
    }

    /// Proposes, and returns the answer of the state machine once it has been applied: then a
    /// majority has it on disk.
    ///
    /// Fails with [`Error::NotLeader`] if nothing was done, and with [`Error::TimedOut`] if it is
    /// not known. Dropping the future takes nothing back.
    pub(crate) async fn propose(&self, data: Bytes) -> Outcome {
        let stopping = || Error::unavailable("it is stopping");
        let bytes = u32::try_from(data.len().min(PROPOSED_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = self.0.room.clone().acquire_many_owned(bytes).await.map_err(|_| stopping())?;
        let raft = self.0.raft.clone();
        // In a task, so that what nobody waits for any more counts until it is settled.
        let proposal = tokio::spawn(async move {
            let answer = raft.client_write(Data(data)).await;
            drop(room);
            answer
        });
        match proposal.await.map_err(|_| stopping())? {
            Ok(written) => written.data,
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(elsewhere))) => {
                Err(not_leader(elsewhere.leader_node))
            }
            Err(RaftError::APIError(error)) => Err(unknown(error.to_string())),
            Err(RaftError::Fatal(error)) => Err(unknown(error.to_string())),
        }
    }

    /// Returns when this member was found to lead at a moment after the call, and has applied all
    /// that was committed until then: a read after it is linearizable. Calls share the rounds in
    /// which the others are asked.
    pub(crate) async fn confirm(&self) -> Result<(), Error> {
        let (answer, confirmed) = oneshot::channel();
        let stopping = |_| Error::unavailable("it is stopping");
        self.0.confirming.send(answer).await.map_err(|_| Error::unavailable("it is stopping"))?;
        confirmed.await.map_err(stopping)?
    }

    /// Returns the term in which this member leads, if it does, as far as it knows.
    pub(crate) fn leading_term(&self) -> Option<u64> {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.state == ServerState::Leader).then_some(metrics.current_term)
    }

    /// Returns the error that says that this member does not lead, and who does.
    pub(crate) fn not_leader(&self) -> Error {
        not_leader(self.leader_address())
    }

    /// Returns what this member knows.
    pub(crate) fn standing(&self) -> Standing {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let info = |(id, Address(address)): (&NodeId, &Address)| MemberInfo {
            id: id.0,
            address: address.clone(),
            voter: voters.contains(id),
        };
        Standing {
            term: metrics.current_term,
            leader: metrics.current_leader.map(|NodeId(id)| id),
            log: metrics.last_log_index,
            applied: metrics.last_applied.map(|id| id.index),
            members: membership.nodes().map(info).collect(),
        }
    }

    /// Waits until this member cannot go on, and says why.
    pub(crate) async fn failed(&self) -> StateError {
        let mut metrics = self.0.raft.metrics();
        loop {
            if let Err(error) = &metrics.borrow_watched().running_state {
                return fatal(error.clone());
            }
            if metrics.changed().await.is_err() {
                return StateError("the consensus has ended".into());
            }
        }
    }

    /// Hands leadership over if it can, and ends.
    pub(crate) async fn stop(&self) {
        self.hand_over().await;
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "the consensus has not ended in order");
        }
    }

    fn metrics(&self) -> RaftMetrics<Types> {
        self.0.raft.metrics().borrow_watched().clone()
    }

    /// Answers another member.
    pub(crate) async fn answer(&self, frame: Frame) -> Frame {
        peer::answer(&self.0.raft, &self.0.receiving, frame).await
    }
}

fn config() -> Result<openraft::Config, StateError> {
    let config = openraft::Config {
        cluster_name: "inkfast".into(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS.0,
        election_timeout_max: ELECTION_MS.1,
        enable_pre_vote: Some(true),
        max_payload_entries: PAYLOAD_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        backoff: "20ms 50ms 100ms ..300ms".into(),
        // A restarted member leads only when it is elected anew. What it has applied may be older
        // than what it answered before, and it may have sent entries that it has not on disk.
        enable_leader_restore: Some(false),
        ..openraft::Config::default()
    };
    config.validate().map_err(|error| StateError(error.to_string()))
}

/// Cuts the log off behind the state when it has grown by many bytes.
async fn bound_log(raft: Raft, storage: Storage, network: Network) {
    loop {
        sleep(SNAPSHOT_INTERVAL).await;
        if storage.log.grown_bytes() < SNAPSHOT_BYTES || storage.store.keeps_log() {
            continue;
        }
        let done = raft.metrics().borrow_watched().snapshot;
        if raft.trigger().snapshot().await.is_err() {
            return;
        }
        let newer = raft.wait(Some(SNAPSHOT_DEADLINE));
        let newer = newer.metrics(|metrics| metrics.snapshot > done, "a snapshot").await;
        // If there is none yet, another try is made; if there is an end, it fails.
        let Ok(RaftMetrics { snapshot: Some(snapshot), .. }) = newer else { continue };
        if raft.trigger().purge_log(snapshot.index).await.is_err() {
            return;
        }
        let purged = raft.wait(Some(SNAPSHOT_INTERVAL));
        let purged = purged.metrics(|metrics| metrics.purged >= Some(snapshot), "a purge").await;
        if purged.is_err() && storage.log.grown_bytes() >= LOG_BYTES_MAX {
            break_off_slow(&raft, &network, snapshot);
        }
    }
}

/// Ends the sending of entries to followers that lack some of before a snapshot. As long as it goes
/// on, nothing is purged that they lack; when it has failed, openraft purges, and goes on with a
/// snapshot.
fn break_off_slow(raft: &Raft, network: &Network, snapshot: LogId) {
    let followers = raft.metrics().borrow_watched().replication.clone().unwrap_or_default();
    for (member, _) in followers.into_iter().filter(|(_, matched)| *matched < Some(snapshot)) {
        tracing::warn!(%member, "it takes entries too slowly, and is sent a snapshot");
        network.break_off(member);
    }
}

/// Asks the others whether this member leads: one round for all that have come meanwhile.
async fn confirm_all(raft: Raft, mut waiting: mpsc::Receiver<oneshot::Sender<Result<(), Error>>>) {
    let mut round = Vec::new();
    while waiting.recv_many(&mut round, CONFIRMING_MAX).await > 0 {
        let confirmed = confirm(&raft).await;
        for answer in round.drain(..) {
            // Whoever asked may be gone.
            let _ = answer.send(confirmed.clone());
        }
    }
}

async fn confirm(raft: &Raft) -> Result<(), Error> {
    let linearizer = match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
        Ok(linearizer) => linearizer,
        Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(elsewhere))) => {
            return Err(not_leader(elsewhere.leader_node));
        }
        Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
            return Err(not_leader(None));
        }
        Err(RaftError::Fatal(error)) => return Err(fatal(error).into()),
    };
    let last = linearizer.read_log_id().index();
    if linearizer.applied().is_some_and(|applied| applied.index >= last) {
        return Ok(());
    }
    let term = raft.metrics().borrow_watched().current_term;
    // An entry of a leader that is none any more may never be applied.
    let applied =
        |metrics: &RaftMetrics<Types>| metrics.last_applied.map(|id| id.index) >= Some(last);
    let settled = |metrics: &RaftMetrics<Types>| {
        let leads = metrics.state == ServerState::Leader && metrics.current_term == term;
        applied(metrics) || !leads
    };
    match raft.wait(Some(CATCH_UP_DEADLINE)).metrics(settled, "what a read has to see").await {
        Ok(metrics) if applied(&metrics) => Ok(()),
        Ok(_) => Err(not_leader(None)),
        Err(_) => Err(Error::unavailable("it has not applied yet what was committed before")),
    }
}

fn not_leader(leader: Option<Address>) -> Error {
    Error::NotLeader { leader: leader.map(|Address(address)| address) }
}

/// What was proposed may have been done, or may still be.
fn unknown(why: String) -> Error {
    Error::TimedOut { timeout: Duration::ZERO, why }
}

fn fatal(error: Fatal<Types>) -> StateError {
    StateError(error.to_string())
}

#[cfg(test)]
mod tests;
