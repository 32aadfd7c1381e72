//! What `inkfast metastore status` says.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde::Deserialize;

use crate::cluster::Client;

#[derive(Debug, Deserialize)]
pub(crate) struct Status {
    pub(crate) cluster: String,
    leader: Option<String>,
    pub(crate) term: u64,
    pub(crate) revision: Option<u64>,
    pub(crate) members: Vec<MemberStatus>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct MemberStatus {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    pub(crate) role: String,
    pub(crate) reachable: bool,
    pub(crate) term: Option<u64>,
    pub(crate) log: Option<u64>,
    pub(crate) applied: Option<u64>,
}

impl Status {
    /// Asks for it; none if nothing was told. Panics if the exit status does not go with it.
    pub(crate) fn ask(client: &Client) -> Option<Self> {
        let outcome = client.run(&["metastore", "status", "-o", "json"]);
        let status: Option<Self> = (!outcome.stdout.is_empty()).then(|| {
            serde_json::from_slice(&outcome.stdout)
                .unwrap_or_else(|error| panic!("{error}; {outcome}"))
        });
        let led = status.as_ref().is_some_and(|status| status.leader.is_some());
        assert_eq!(outcome.status, Some(i32::from(!led)), "{outcome}; {status:?}");
        if !led {
            outcome.failed(1);
        }
        status
    }

    /// The member that leads.
    pub(crate) fn leader(&self) -> Option<&MemberStatus> {
        let leader = self.leader.as_ref()?;
        let found = self.members.iter().find(|member| member.id == *leader);
        assert!(found.is_some(), "the leader is no member: {self:?}");
        found
    }

    /// The one member at this address.
    pub(crate) fn at(&self, address: SocketAddr) -> &MemberStatus {
        let mut found = self.members.iter().filter(|member| member.address == address);
        let (first, second) = (found.next(), found.next());
        assert!(second.is_none(), "two members are at {address}: {self:?}");
        first.unwrap_or_else(|| panic!("no member is at {address}: {self:?}"))
    }

    /// Whether these are the members, and all are well and have applied as much as this.
    pub(crate) fn is_settled(&self, addresses: &[SocketAddr], applied: Option<u64>) -> bool {
        let members: Vec<_> = self.members.iter().map(|member| member.address).collect();
        let has_vote = |role: &str| role == "leader" || role == "follower";
        let is_well = |member: &MemberStatus| {
            member.reachable && has_vote(&member.role) && member.applied >= applied
        };
        applied.is_some()
            && self.leader().is_some()
            && members.len() == addresses.len()
            && members.iter().collect::<BTreeSet<_>>() == addresses.iter().collect()
            && self.members.iter().all(is_well)
    }
}
