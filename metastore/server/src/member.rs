//! Who a member is.

use prost::Message;
use uuid::Uuid;

/// Who this member of the metastore is. Made once, with its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The cluster's id.
    pub(crate) cluster: Uuid,
    /// This member's own id.
    pub(crate) id: Uuid,
    /// The key by which a peer notices a restart.
    pub(crate) reset_key: [u8; 64],
}

impl Member {
    /// Makes a new member of a cluster.
    pub(crate) fn new(cluster: Uuid) -> Self {
        let mut reset_key = [0; 64];
        for part in reset_key.chunks_mut(16) {
            part.copy_from_slice(Uuid::new_v4().as_bytes());
        }
        Self { cluster, id: Uuid::new_v4(), reset_key }
    }
}

/// A member as it is stored.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredMember {
    #[prost(bytes = "vec", tag = "1")]
    cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    reset_key: Vec<u8>,
    /// Whether the cluster begins with this member.
    #[prost(bool, tag = "4")]
    pub(crate) founder: bool,
    /// Whether it has yet to be made a voter for the first time.
    #[prost(bool, tag = "5")]
    pub(crate) joining: bool,
}

impl StoredMember {
    pub(crate) fn new(member: &Member, founder: bool) -> Self {
        Self {
            cluster: member.cluster.as_bytes().to_vec(),
            id: member.id.as_bytes().to_vec(),
            reset_key: member.reset_key.to_vec(),
            founder,
            joining: false,
        }
    }

    /// Returns the member; none if a field is not what it should be.
    pub(crate) fn member(&self) -> Option<Member> {
        Some(Member {
            cluster: Uuid::from_slice(&self.cluster).ok()?,
            id: Uuid::from_slice(&self.id).ok()?,
            reset_key: self.reset_key.as_slice().try_into().ok()?,
        })
    }
}
