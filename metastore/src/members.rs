//! What a member of a replicated metastore says of itself and of the others.

use uuid::Uuid;

use crate::types::Version;

/// What one member says of itself, and what it believes of the others. It may be out of date, in
/// a member that is cut off by far: what the one with the highest term says holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its id, made with its directory.
    pub id: Uuid,
    /// Where others reach it, as `host:port`.
    pub address: String,
    /// Its term: a number that grows with each election.
    pub term: u64,
    /// Who leads in that term; none if it knows of nobody.
    pub leader: Option<Uuid>,
    /// The index of the last entry of its log; none if it has none yet.
    pub log: Option<u64>,
    /// The index of the last entry that it has applied to its state; none if none yet.
    pub applied: Option<u64>,
    /// The revision of its state.
    pub revision: Version,
    /// All members that it knows of, itself among them unless it is none.
    pub members: Vec<MemberInfo>,
}

/// A member of a metastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberInfo {
    /// Its id.
    pub id: Uuid,
    /// Where others reach it, as `host:port`.
    pub address: String,
    /// Whether it counts in majorities; one that does not only learns.
    pub voter: bool,
}

impl MemberStatus {
    /// Returns the address of the member that it believes to lead.
    pub fn leader_address(&self) -> Option<&str> {
        let leader = self.leader?;
        if leader == self.id {
            return Some(&self.address);
        }
        let member = self.members.iter().find(|member| member.id == leader)?;
        Some(&member.address)
    }
}
