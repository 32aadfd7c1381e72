//! The types that openraft is made for here.

use std::fmt::{self, Debug, Display, Formatter};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::impls::leader_id_std;
use uuid::Uuid;

use crate::consensus::Outcome;
use crate::snapshot::SnapshotData;

openraft::declare_raft_types!(
    /// Standard Raft: one leader a term, whose log ids are term and index.
    pub(crate) Types:
        D = Data,
        R = Outcome,
        NodeId = NodeId,
        Node = Address,
        LeaderId = LeaderId,
        AsyncRuntime = Runtime,
);

/// What openraft runs on: in tests, something that does the same again for the same seed.
#[cfg(test)]
pub(crate) type Runtime =
    openraft_rt::deterministic_rng::DeterministicRng<crate::simulation::runtime::SimRuntime>;
/// What openraft runs on.
#[cfg(not(test))]
pub(crate) type Runtime = openraft::impls::TokioRuntime;

/// A term, and who leads in it.
pub(crate) type LeaderId = leader_id_std::LeaderId<u64, NodeId>;
pub(crate) type Raft = openraft::Raft<Types, super::machine::Machine>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type CommittedLeaderId = openraft::type_config::alias::CommittedLeaderIdOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<NodeId, Address>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type Snapshot = openraft::type_config::alias::SnapshotOf<Types, SnapshotData>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// What is replicated: opaque here, encoded once by whoever proposes it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Data(pub(crate) Bytes);

/// The id of a member, made with its directory: a wiped one comes back as another.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NodeId(pub(crate) Uuid);

/// Where a member is reached, as `host:port`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Address(pub(crate) String);

impl Debug for Data {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, f)
    }
}

impl Display for Data {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Debug for NodeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

impl Display for NodeId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// What an entry counts beside its data.
const ENTRY_BYTES: usize = 128;

/// Returns about how large an entry is, in memory and on its way.
pub(crate) fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(Data(data)) => data.len() + ENTRY_BYTES,
        EntryPayload::Blank | EntryPayload::Membership(_) => ENTRY_BYTES,
    }
}

/// openraft's own tests number their nodes.
#[cfg(test)]
impl From<u64> for NodeId {
    fn from(number: u64) -> Self {
        Self(Uuid::from_u128(number.into()))
    }
}
