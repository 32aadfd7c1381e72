//! What members say to each other, and how it gets there.
//!
//! Each call is a frame that is answered by a frame. All of them come from the role `metastore`.
//!
//! | frame kind | message | answered by |
//! |---|---|---|
//! | 16 | a candidate asks for a vote | 24, the vote |
//! | 17 | the same, but would there be one: changes nothing | 24, the vote |
//! | 18 | the leader's entries, or none: then it is a heartbeat | 24, how far they were taken |
//! | 19 | the leader hands over | 24, nothing |
//! | 20 | a piece of a snapshot | 24, nothing |
//! | 21 | the end of a snapshot, to be installed now | 24, the vote |
//!
//! Each may be answered by 25 instead: words that say why not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use inkfast_wire::{Endpoint, Frame, Remote, Role, Target};
use openraft::entry::RaftEntry;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;
use uuid::Uuid;

use super::codec::{Coded, SnapshotMetaMessage, VoteMessage};
use super::types::{Address, Entry, NodeId, Snapshot, Types, Vote};
use crate::snapshot::{SnapshotData, View};

pub(crate) const KIND_VOTE: u8 = 16;
pub(crate) const KIND_PRE_VOTE: u8 = 17;
pub(crate) const KIND_APPEND: u8 = 18;
pub(crate) const KIND_TRANSFER: u8 = 19;
pub(crate) const KIND_SNAPSHOT_PIECE: u8 = 20;
pub(crate) const KIND_SNAPSHOT_END: u8 = 21;
pub(crate) const KIND_DONE: u8 = 24;
pub(crate) const KIND_REFUSED: u8 = 25;

/// Whether a frame is from one member to another.
pub(crate) fn is_of_members(kind: u8) -> bool {
    (KIND_VOTE..=KIND_SNAPSHOT_END).contains(&kind)
}

/// How much data goes into one call with entries; a larger entry goes alone.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// How long a call with entries may take. It includes a sync, also on a disk that is busy.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);
/// How long a piece of a snapshot may take.
const PIECE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a member may take to install a snapshot that it has.
const INSTALL_DEADLINE: Duration = Duration::from_secs(60);

/// Carries calls to other members.
#[async_trait]
pub(crate) trait Peers: Send + Sync + 'static {
    /// Calls the member of this id at this address; nobody else answers. Fails with words.
    async fn call(
        &self,
        id: Uuid,
        address: &str,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Frame, String>;

    /// Asks who is at an address, which only a metastore of this cluster answers. Fails with words.
    async fn who(&self, address: &str) -> Result<Uuid, String>;
}

/// Calls over the network, each member over one connection.
pub(crate) struct WirePeers {
    endpoint: Endpoint,
    remotes: Mutex<BTreeMap<Uuid, Remote>>,
}

impl WirePeers {
    pub(crate) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, remotes: Mutex::default() }
    }

    /// Gives the way to a member, a new one if it has moved. There are as many as members.
    fn remote(&self, id: Uuid, address: &str) -> Remote {
        let mut remotes = self.remotes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = remotes.get(&id).filter(|remote| remote.target().addresses == [address]);
        known.cloned().unwrap_or_else(|| {
            let addresses = vec![address.to_owned()];
            let target = Target { role: Role::Metastore, instance: Some(id), addresses };
            let remote = Remote::new(&self.endpoint, target);
            remotes.insert(id, remote.clone());
            remote
        })
    }
}

#[async_trait]
impl Peers for WirePeers {
    async fn call(
        &self,
        id: Uuid,
        address: &str,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Frame, String> {
        let remote = self.remote(id, address);
        remote.request(frame, deadline).await.map_err(|error| error.to_string())
    }

    async fn who(&self, address: &str) -> Result<Uuid, String> {
        let addresses = vec![address.to_owned()];
        let target = Target { role: Role::Metastore, instance: None, addresses };
        let connection = Remote::new(&self.endpoint, target).connection().await;
        connection.map(|connection| connection.peer().instance).map_err(|error| error.to_string())
    }
}

/// Makes what openraft calls a network: the way to one member. Clones are the same.
#[derive(Clone)]
pub(crate) struct Network {
    peers: Arc<dyn Peers>,
    /// Where the members are. A leader keeps its ways to them, and they may move meanwhile.
    addresses: Arc<Mutex<BTreeMap<NodeId, Address>>>,
    /// To whom the next entries do not get.
    broken_off: Arc<Mutex<BTreeSet<NodeId>>>,
}

impl Network {
    pub(crate) fn new(peers: Arc<dyn Peers>) -> Self {
        Self { peers, addresses: Arc::default(), broken_off: Arc::default() }
    }

    /// Lets all ways to a member lead to this address.
    pub(crate) fn set_address(&self, member: NodeId, address: &Address) {
        self.lock().insert(member, address.clone());
    }

    /// Returns where a member is; empty if there never was one of this id.
    pub(crate) fn address(&self, member: NodeId) -> String {
        self.lock().get(&member).map(|Address(address)| address.clone()).unwrap_or_default()
    }

    /// Lets the next call with entries to a member fail, once.
    pub(crate) fn break_off(&self, member: NodeId) {
        self.broken_off().insert(member);
    }

    fn broken_off(&self) -> MutexGuard<'_, BTreeSet<NodeId>> {
        self.broken_off.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Address>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: NodeId, address: &Address) -> Way {
        self.set_address(target, address);
        Way { network: self.clone(), target }
    }
}

/// The way to one member.
pub(crate) struct Way {
    network: Network,
    target: NodeId,
}

/// A piece of a snapshot, or with `meta` its end.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct PieceMessage {
    /// The leader that sends it.
    #[prost(message, optional, tag = "1")]
    pub(crate) vote: Option<VoteMessage>,
    /// Names the snapshot, made anew for each attempt.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) snapshot: Bytes,
    /// Which piece it is, beginning with 0.
    #[prost(uint64, tag = "3")]
    pub(crate) number: u64,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) data: Bytes,
    #[prost(message, optional, tag = "5")]
    pub(crate) meta: Option<SnapshotMetaMessage>,
}

impl Way {
    async fn call(&self, kind: u8, body: Vec<u8>, deadline: Duration) -> Result<Bytes, Unanswered> {
        let frame = Frame { kind, body: body.into() };
        let Self { network, target } = self;
        match network.peers.call(target.0, &network.address(*target), frame, deadline).await {
            Ok(Frame { kind: KIND_DONE, body }) => Ok(body),
            Ok(Frame { body, .. }) => Err(Unanswered(String::from_utf8_lossy(&body).into_owned())),
            Err(why) => Err(Unanswered(why)),
        }
    }

    async fn ask<A: Coded>(
        &self,
        kind: u8,
        request: &impl Coded,
        deadline: Duration,
    ) -> Result<A, Unanswered> {
        let body = self.call(kind, request.encode(), deadline).await?;
        A::decode(body).map_err(|error| Unanswered(error.to_string()))
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        meta: SnapshotMetaMessage,
        mut view: View,
    ) -> Result<SnapshotResponse<Types>, Unanswered> {
        let mut piece = PieceMessage {
            vote: Some(vote.to_message()),
            snapshot: Bytes::copy_from_slice(Uuid::new_v4().as_bytes()),
            ..PieceMessage::default()
        };
        while let Some(data) = view.next().await.map_err(|error| Unanswered(error.to_string()))? {
            piece.data = data;
            self.call(KIND_SNAPSHOT_PIECE, piece.encode_to_vec(), PIECE_DEADLINE).await?;
            // There is somebody who receives it, and will need the log after it.
            view.keep_log();
            piece.number += 1;
        }
        let end = PieceMessage { data: Bytes::new(), meta: Some(meta), ..piece };
        let body = self.call(KIND_SNAPSHOT_END, end.encode_to_vec(), INSTALL_DEADLINE).await?;
        SnapshotResponse::decode(body).map_err(|error| Unanswered(error.to_string()))
    }
}

/// A member has given no answer, or none that is one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unanswered(String);

impl From<Unanswered> for RPCError<Types> {
    /// A pause before the next call does no harm, whatever it was.
    fn from(error: Unanswered) -> Self {
        Self::Unreachable(Unreachable::new(&error))
    }
}

impl RaftNetworkV2<Types> for Way {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        mut rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let asked = rpc.entries.len();
        let fitting = fitting(&rpc.entries);
        rpc.entries.truncate(fitting);
        let heartbeat = rpc.entries.is_empty();
        if !heartbeat && self.network.broken_off().remove(&self.target) {
            return Err(Unanswered("it is too far behind to be sent entries".into()).into());
        }
        let deadline = if heartbeat { option.hard_ttl() } else { APPEND_DEADLINE };
        let answer = self.ask(KIND_APPEND, &rpc, deadline).await?;
        let last = rpc.entries.last().map(RaftEntry::log_id);
        Ok(match answer {
            AppendEntriesResponse::Success if fitting < asked => {
                AppendEntriesResponse::PartialSuccess(last)
            }
            other => other,
        })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Ok(self.ask(KIND_VOTE, &rpc, option.hard_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Ok(self.ask(KIND_PRE_VOTE, &rpc, option.hard_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotData::View(view) = snapshot.snapshot else {
            let why = Unanswered("a snapshot that was received is for installing".into());
            return Err(StreamingError::Network(NetworkError::new(&why)));
        };
        tokio::select! {
            biased;
            closed = cancel => Err(closed.into()),
            sent = self.send_snapshot(vote, snapshot.meta.to_message(), view) => {
                sent.map_err(|error| StreamingError::Unreachable(Unreachable::new(&error)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(KIND_TRANSFER, rpc.encode(), option.hard_ttl()).await?;
        Ok(Ok(()))
    }
}

/// Counts the entries that fit into one call: at least one, if there is one.
fn fitting(entries: &[Entry]) -> usize {
    let mut bytes = 0;
    let fitting = entries.iter().take_while(|entry| {
        bytes += super::types::entry_bytes(entry);
        bytes <= APPEND_BYTES_MAX
    });
    fitting.count().max(entries.len().min(1))
}
