//! How members and the log write things down: protobuf, so that fields can be added later.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::impls::leader_id_std;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    VoteRequest, VoteResponse,
};
use prost::{Message, Oneof};
use uuid::Uuid;

use super::types::{
    Address, CommittedLeaderId, Data, Entry, LogId, Membership, NodeId, SnapshotMeta,
    StoredMembership, Types, Vote,
};

/// Says what is wrong with something that was written down, or sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it cannot be read: {0}")]
pub(crate) struct Malformed(String);

/// Has a protobuf message.
pub(crate) trait Coded: Sized {
    /// The message.
    type Message: Message + Default;

    fn to_message(&self) -> Self::Message;

    fn from_message(message: Self::Message) -> Result<Self, Malformed>;

    fn encode(&self) -> Vec<u8> {
        self.to_message().encode_to_vec()
    }

    fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        Self::Message::decode(bytes)
            .map_err(|error| Malformed(error.to_string()))
            .and_then(Self::from_message)
    }
}

#[derive(Clone, Copy, PartialEq, Message)]
pub(crate) struct LogIdMessage {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    index: u64,
}

impl Coded for LogId {
    type Message = LogIdMessage;

    fn to_message(&self) -> LogIdMessage {
        LogIdMessage { term: self.leader_id.term, index: self.index }
    }

    fn from_message(LogIdMessage { term, index }: LogIdMessage) -> Result<Self, Malformed> {
        Ok(Self { leader_id: CommittedLeaderId::new(term), index })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteMessage {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(bytes = "bytes", tag = "2")]
    node: Bytes,
    #[prost(bool, tag = "3")]
    committed: bool,
}

impl Coded for Vote {
    type Message = VoteMessage;

    fn to_message(&self) -> VoteMessage {
        let leader_id_std::LeaderId { term, voted_for } = self.leader_id;
        VoteMessage { term, node: node_bytes(voted_for), committed: self.committed }
    }

    fn from_message(message: VoteMessage) -> Result<Self, Malformed> {
        let leader_id =
            leader_id_std::LeaderId { term: message.term, voted_for: node(&message.node)? };
        Ok(Self { leader_id, committed: message.committed })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct NodeMessage {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(string, tag = "2")]
    address: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VotersMessage {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    ids: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct MembershipMessage {
    #[prost(message, repeated, tag = "1")]
    configs: Vec<VotersMessage>,
    #[prost(message, repeated, tag = "2")]
    nodes: Vec<NodeMessage>,
}

impl Coded for Membership {
    type Message = MembershipMessage;

    fn to_message(&self) -> MembershipMessage {
        let voters = |ids: &BTreeSet<NodeId>| VotersMessage {
            ids: ids.iter().copied().map(node_bytes).collect(),
        };
        let node = |(id, Address(address)): (&NodeId, &Address)| NodeMessage {
            id: node_bytes(*id),
            address: address.clone(),
        };
        MembershipMessage {
            configs: self.get_joint_config().iter().map(voters).collect(),
            nodes: self.nodes().map(node).collect(),
        }
    }

    fn from_message(message: MembershipMessage) -> Result<Self, Malformed> {
        let voters = |voters: VotersMessage| voters.ids.iter().map(|id| node(id)).collect();
        let configs = message.configs.into_iter().map(voters);
        let configs = configs.collect::<Result<Vec<BTreeSet<NodeId>>, Malformed>>()?;
        let entry = |entry: NodeMessage| Ok((node(&entry.id)?, Address(entry.address)));
        let nodes = message.nodes.into_iter().map(entry);
        let nodes = nodes.collect::<Result<BTreeMap<NodeId, Address>, Malformed>>()?;
        if configs.is_empty() && nodes.is_empty() {
            return Ok(Self::default());
        }
        Self::new(configs, nodes).map_err(|error| Malformed(error.to_string()))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SnapshotMetaMessage {
    #[prost(message, optional, tag = "1")]
    last: Option<LogIdMessage>,
    #[prost(message, optional, tag = "2")]
    membership_at: Option<LogIdMessage>,
    #[prost(message, optional, tag = "3")]
    membership: Option<MembershipMessage>,
}

impl Coded for SnapshotMeta {
    type Message = SnapshotMetaMessage;

    fn to_message(&self) -> SnapshotMetaMessage {
        SnapshotMetaMessage {
            last: log_id_message(self.last_log_id),
            membership_at: log_id_message(*self.last_membership.log_id()),
            membership: Some(self.last_membership.membership().to_message()),
        }
    }

    fn from_message(message: SnapshotMetaMessage) -> Result<Self, Malformed> {
        let membership = Membership::from_message(message.membership.unwrap_or_default())?;
        Ok(Self {
            last_log_id: log_id(message.last)?,
            last_membership: StoredMembership::new(log_id(message.membership_at)?, membership),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct EntryMessage {
    #[prost(message, optional, tag = "1")]
    log_id: Option<LogIdMessage>,
    #[prost(oneof = "PayloadMessage", tags = "2, 3")]
    payload: Option<PayloadMessage>,
}

/// What an entry is about; nothing in a blank one.
#[derive(Clone, PartialEq, Oneof)]
enum PayloadMessage {
    #[prost(bytes = "bytes", tag = "2")]
    Data(Bytes),
    #[prost(message, tag = "3")]
    Membership(MembershipMessage),
}

impl Coded for Entry {
    type Message = EntryMessage;

    fn to_message(&self) -> EntryMessage {
        let payload = match &self.payload {
            EntryPayload::Blank => None,
            EntryPayload::Normal(Data(data)) => Some(PayloadMessage::Data(data.clone())),
            EntryPayload::Membership(membership) => {
                Some(PayloadMessage::Membership(membership.to_message()))
            }
        };
        EntryMessage { log_id: Some(self.log_id.to_message()), payload }
    }

    fn from_message(message: EntryMessage) -> Result<Self, Malformed> {
        let payload = match message.payload {
            None => EntryPayload::Blank,
            Some(PayloadMessage::Data(data)) => EntryPayload::Normal(Data(data)),
            Some(PayloadMessage::Membership(membership)) => {
                EntryPayload::Membership(Membership::from_message(membership)?)
            }
        };
        let missing = || Malformed("an entry without its log id".into());
        Ok(Self { log_id: log_id(message.log_id)?.ok_or_else(missing)?, payload })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteRequestMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    last: Option<LogIdMessage>,
    #[prost(bool, tag = "3")]
    leadership_transfer: bool,
}

impl Coded for VoteRequest<Types> {
    type Message = VoteRequestMessage;

    fn to_message(&self) -> VoteRequestMessage {
        VoteRequestMessage {
            vote: Some(self.vote.to_message()),
            last: log_id_message(self.last_log_id),
            leadership_transfer: self.leadership_transfer,
        }
    }

    fn from_message(message: VoteRequestMessage) -> Result<Self, Malformed> {
        Ok(Self {
            vote: vote(message.vote)?,
            last_log_id: log_id(message.last)?,
            leadership_transfer: message.leadership_transfer,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct VoteResponseMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(bool, tag = "2")]
    granted: bool,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdMessage>,
}

impl Coded for VoteResponse<Types> {
    type Message = VoteResponseMessage;

    fn to_message(&self) -> VoteResponseMessage {
        VoteResponseMessage {
            vote: Some(self.vote.to_message()),
            granted: self.vote_granted,
            last: log_id_message(self.last_log_id),
        }
    }

    fn from_message(message: VoteResponseMessage) -> Result<Self, Malformed> {
        let (vote, last) = (vote(message.vote)?, log_id(message.last)?);
        Ok(Self { vote, vote_granted: message.granted, last_log_id: last })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendRequestMessage {
    #[prost(message, optional, tag = "1")]
    vote: Option<VoteMessage>,
    #[prost(message, optional, tag = "2")]
    previous: Option<LogIdMessage>,
    #[prost(message, optional, tag = "3")]
    commit: Option<LogIdMessage>,
    #[prost(message, repeated, tag = "4")]
    entries: Vec<EntryMessage>,
}

impl Coded for AppendEntriesRequest<Types> {
    type Message = AppendRequestMessage;

    fn to_message(&self) -> AppendRequestMessage {
        AppendRequestMessage {
            vote: Some(self.vote.to_message()),
            previous: log_id_message(self.prev_log_id),
            commit: log_id_message(self.leader_commit),
            entries: self.entries.iter().map(Coded::to_message).collect(),
        }
    }

    fn from_message(message: AppendRequestMessage) -> Result<Self, Malformed> {
        let entries = message.entries.into_iter().map(Entry::from_message);
        Ok(Self {
            vote: vote(message.vote)?,
            prev_log_id: log_id(message.previous)?,
            leader_commit: log_id(message.commit)?,
            entries: entries.collect::<Result<_, _>>()?,
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct AppendResponseMessage {
    #[prost(oneof = "AppendedMessage", tags = "1, 2, 3, 4, 5")]
    appended: Option<AppendedMessage>,
}

#[derive(Clone, PartialEq, Oneof)]
enum AppendedMessage {
    #[prost(message, tag = "1")]
    All(()),
    #[prost(message, tag = "2")]
    UpTo(LogIdMessage),
    #[prost(message, tag = "3")]
    Conflict(()),
    #[prost(message, tag = "4")]
    HigherVote(VoteMessage),
    #[prost(message, tag = "5")]
    Nothing(()),
}

impl Coded for AppendEntriesResponse<Types> {
    type Message = AppendResponseMessage;

    fn to_message(&self) -> AppendResponseMessage {
        let appended = match self {
            Self::Success => AppendedMessage::All(()),
            Self::PartialSuccess(Some(last)) => AppendedMessage::UpTo(last.to_message()),
            Self::PartialSuccess(None) => AppendedMessage::Nothing(()),
            Self::Conflict => AppendedMessage::Conflict(()),
            Self::HigherVote(vote) => AppendedMessage::HigherVote(vote.to_message()),
        };
        AppendResponseMessage { appended: Some(appended) }
    }

    fn from_message(message: AppendResponseMessage) -> Result<Self, Malformed> {
        Ok(match message.appended {
            Some(AppendedMessage::All(())) => Self::Success,
            Some(AppendedMessage::UpTo(last)) => Self::PartialSuccess(log_id(Some(last))?),
            Some(AppendedMessage::Conflict(())) => Self::Conflict,
            Some(AppendedMessage::HigherVote(higher)) => Self::HigherVote(vote(Some(higher))?),
            Some(AppendedMessage::Nothing(())) => Self::PartialSuccess(None),
            None => return Err(Malformed("it does not say what was appended".into())),
        })
    }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TransferMessage {
    #[prost(message, optional, tag = "1")]
    from: Option<VoteMessage>,
    #[prost(bytes = "bytes", tag = "2")]
    to: Bytes,
    #[prost(message, optional, tag = "3")]
    last: Option<LogIdMessage>,
}

impl Coded for TransferLeaderRequest<Types> {
    type Message = TransferMessage;

    fn to_message(&self) -> TransferMessage {
        TransferMessage {
            from: Some(self.from_leader().to_message()),
            to: node_bytes(*self.to_node_id()),
            last: log_id_message(self.last_log_id().copied()),
        }
    }

    fn from_message(message: TransferMessage) -> Result<Self, Malformed> {
        Ok(Self::new(vote(message.from)?, node(&message.to)?, log_id(message.last)?))
    }
}

impl Coded for SnapshotResponse<Types> {
    type Message = VoteMessage;

    fn to_message(&self) -> VoteMessage {
        self.vote.to_message()
    }

    fn from_message(message: VoteMessage) -> Result<Self, Malformed> {
        Ok(Self::new(Vote::from_message(message)?))
    }
}

fn node_bytes(NodeId(id): NodeId) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

fn node(bytes: &[u8]) -> Result<NodeId, Malformed> {
    Uuid::from_slice(bytes).map(NodeId).map_err(|error| Malformed(error.to_string()))
}

fn log_id_message(id: Option<LogId>) -> Option<LogIdMessage> {
    id.map(|id| id.to_message())
}

fn log_id(message: Option<LogIdMessage>) -> Result<Option<LogId>, Malformed> {
    message.map(LogId::from_message).transpose()
}

fn vote(message: Option<VoteMessage>) -> Result<Vote, Malformed> {
    Vote::from_message(message.ok_or_else(|| Malformed("it says no vote".into()))?)
}

#[cfg(test)]
mod tests;
