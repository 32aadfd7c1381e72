//! Changes who the members are, while they work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use inkfast_metastore::Error;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::{ChangeMembers, RaftMetrics, ServerState, async_runtime::watch::WatchReceiver};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use uuid::Uuid;

use super::types::{Address, Membership, NodeId, Raft, Types};
use super::{Consensus, not_leader, unknown};

/// How long a change of the members may take, catching up included.
const CHANGE_DEADLINE: Duration = Duration::from_secs(50);
/// How long whoever makes a change has for its second half, before the leader makes that by itself.
const HALF_DONE_PAUSE: Duration = Duration::from_millis(500);
/// How long the leader tries that before others may change the members again.
const HALF_DONE_DEADLINE: Duration = Duration::from_secs(5);
/// How long a member may take to become the leader.
const TRANSFER_DEADLINE: Duration = Duration::from_secs(5);
/// How long a leader that stops waits for another.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);
/// The pause before a change is tried again that another was in the way of.
const PAUSE: Duration = Duration::from_millis(50);
/// The most members: each takes its share of the leader's network.
const MEMBERS_MAX: usize = 9;

type Change = ChangeMembers<NodeId, Address>;

impl Consensus {
    /// Makes a member a voter, after it has caught up. Called again after [`Error::Unavailable`], it
    /// goes on: the member follows meanwhile.
    pub(crate) async fn add_member(&self, id: Uuid, address: &str) -> Result<(), Error> {
        let late = Instant::now() + CHANGE_DEADLINE;
        let (node, address) = (NodeId(id), Address(address.to_owned()));
        let changing = self.begin_change(late).await?;
        let membership = self.membership();
        if membership.get_node(&node).is_some() {
            self.set_address(node, address, late).await?;
        } else if membership.nodes().count() >= MEMBERS_MAX {
            let why = format!("there are {MEMBERS_MAX} members already: remove one first");
            return Err(Error::bad_request(why));
        } else {
            // Before the change, which may need it to be reached.
            self.0.network.set_address(node, &address);
            self.change(Change::AddNodes(BTreeMap::from([(node, address)])), late).await?;
        }
        if membership.voter_ids().any(|voter| voter == node) && !is_half_done(&membership) {
            return Ok(());
        }
        // That may take long, and others may have changes to make.
        drop(changing);
        if !self.caught_up(node, late).await? {
            let address = self.0.network.address(node);
            let why = "follows already and is still catching up: the same request goes on there";
            return Err(Error::unavailable(format!("{node} at {address} {why}")));
        }
        let _changing = self.begin_change(late).await?;
        self.change(Change::AddVoterIds(BTreeSet::from([node])), late).await
    }

    /// Lets the others know where a member is now; one that was removed stays so.
    pub(crate) async fn move_member(&self, id: Uuid, address: &str) -> Result<(), Error> {
        let late = Instant::now() + CHANGE_DEADLINE;
        let (node, address) = (NodeId(id), Address(address.to_owned()));
        if self.membership().get_node(&node).is_some() {
            // Before anything else, for what is under way may need it to be reached.
            self.0.network.set_address(node, &address);
        }
        let _changing = self.begin_change(late).await?;
        if self.membership().get_node(&node).is_none() {
            let why = format!("{id} was removed: an empty directory can join in its place");
            return Err(Error::bad_request(why));
        }
        self.set_address(node, address, late).await
    }

    /// Waits until nobody else changes the members.
    async fn begin_change(&self, late: Instant) -> Result<MutexGuard<'_, ()>, Error> {
        let changing = timeout_at(late, self.0.changing.lock()).await;
        changing.map_err(|_| Error::unavailable("another change of the members is under way"))
    }

    async fn set_address(&self, id: NodeId, address: Address, late: Instant) -> Result<(), Error> {
        // Before the change, which may need it to be reached.
        self.0.network.set_address(id, &address);
        if self.membership().get_node(&id) == Some(&address) {
            return Ok(());
        }
        self.change(Change::SetNodes(BTreeMap::from([(id, address)])), late).await
    }

    /// Takes a member out, dead or alive. If it is this one, which leads, another leads first and
    /// is named in the error [`Error::NotLeader`].
    pub(crate) async fn remove_member(&self, id: Uuid) -> Result<(), Error> {
        let late = Instant::now() + CHANGE_DEADLINE;
        let changing = self.begin_change(late).await?;
        let (node, membership) = (NodeId(id), self.membership());
        if membership.get_node(&node).is_none() {
            return Err(unknown_member(id));
        }
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        if voters == BTreeSet::from([node]) {
            return Err(only_voter());
        }
        if id == self.0.id {
            drop(changing);
            return Err(not_leader(self.hand_over().await));
        }
        let change = if voters.contains(&node) {
            Change::RemoveVoters(BTreeSet::from([node]))
        } else {
            Change::RemoveNodes(BTreeSet::from([node]))
        };
        self.change(change, late).await
    }

    /// Makes another voter the leader, and returns when it is.
    pub(crate) async fn transfer_leader(&self, id: Uuid) -> Result<(), Error> {
        let metrics = self.metrics();
        let membership = metrics.membership_config.membership();
        if membership.get_node(&NodeId(id)).is_none() {
            return Err(unknown_member(id));
        }
        if !membership.voter_ids().any(|voter| voter == NodeId(id)) {
            return Err(Error::bad_request(format!("{id} is no voter and cannot lead")));
        }
        if metrics.current_leader == Some(NodeId(id)) {
            return Ok(());
        }
        if metrics.current_leader != Some(NodeId(self.0.id)) {
            return Err(not_leader(self.leader_address()));
        }
        let late = Instant::now() + TRANSFER_DEADLINE;
        if !self.caught_up(NodeId(id), late).await? {
            return Err(self.late(id, "caught up"));
        }
        self.transferred(id, late).await
    }

    /// Lets another voter lead if there is one, and returns its address.
    pub(super) async fn hand_over(&self) -> Option<Address> {
        let metrics = self.metrics();
        let replication = metrics.replication.as_ref()?;
        let voters: BTreeSet<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        let others =
            replication.iter().filter(|(id, _)| voters.contains(id) && **id != NodeId(self.0.id));
        let (NodeId(best), _) = others.max_by_key(|(_, matched)| **matched)?;
        let late = Instant::now() + HAND_OVER_DEADLINE;
        if let Err(error) = self.transferred(*best, late).await {
            tracing::info!(%error, "nobody else leads yet");
        }
        self.leader_address()
    }

    async fn transferred(&self, id: Uuid, late: Instant) -> Result<(), Error> {
        let stopping = |_| Error::unavailable("it is stopping");
        self.0.raft.trigger().transfer_leader(NodeId(id)).await.map_err(stopping)?;
        let mut metrics = self.0.raft.metrics();
        let wait = async {
            while metrics.borrow_watched().current_leader != Some(NodeId(id)) {
                if metrics.changed().await.is_err() {
                    return Err(Error::unavailable("it is stopping"));
                }
            }
            Ok(())
        };
        timeout_at(late, wait).await.unwrap_or_else(|_| Err(self.late(id, "become the leader")))
    }

    pub(super) fn leader_address(&self) -> Option<Address> {
        let metrics = self.metrics();
        let leader = metrics.current_leader.filter(|leader| *leader != NodeId(self.0.id))?;
        metrics.membership_config.membership().get_node(&leader).cloned()
    }

    /// Waits until a member has nearly all of the log; false if it has not in time.
    async fn caught_up(&self, node: NodeId, late: Instant) -> Result<bool, Error> {
        /// How far it may be behind: what is written while one call is under way.
        const BEHIND_MAX: u64 = 1000;
        let mut metrics = self.0.raft.metrics();
        let wait = async {
            loop {
                let behind = {
                    let metrics = metrics.borrow_watched();
                    let Some(replication) = &metrics.replication else {
                        return Err(not_leader(None));
                    };
                    if metrics.membership_config.membership().get_node(&node).is_none() {
                        return Err(removed_meanwhile(node));
                    }
                    let matched = replication.get(&node).copied().flatten();
                    matched.map(|id| metrics.last_log_index.unwrap_or(0).saturating_sub(id.index))
                };
                if behind.is_some_and(|behind| behind <= BEHIND_MAX) {
                    return Ok(true);
                }
                if metrics.changed().await.is_err() {
                    return Err(Error::unavailable("it is stopping"));
                }
            }
        };
        timeout_at(late, wait).await.unwrap_or(Ok(false))
    }

    /// Says what a member has not done in time. There is no sense in trying that again at once.
    fn late(&self, id: Uuid, what: &str) -> Error {
        let address = self.0.network.address(NodeId(id));
        Error::bad_request(format!("{id} at {address} has not {what}: does it answer?"))
    }

    fn membership(&self) -> Membership {
        self.metrics().membership_config.membership().clone()
    }

    /// Commits a change of the members, after those that are under way; one that was left half
    /// done is finished by it.
    async fn change(&self, change: Change, late: Instant) -> Result<(), Error> {
        loop {
            let left = late.saturating_duration_since(Instant::now());
            let raft = self.0.raft.clone();
            let changed = timeout(left, raft.change_membership(change.clone(), false)).await;
            let Ok(changed) = changed else {
                return Err(unknown("no majority has taken the change of the members".into()));
            };
            match changed {
                Ok(_) => return Ok(()),
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(elsewhere))) => {
                    return Err(not_leader(elsewhere.leader_node));
                }
                Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(refusal))) => {
                    match refusal {
                        ChangeMembershipError::InProgress(_) => sleep(PAUSE).await,
                        ChangeMembershipError::EmptyMembership(_) => return Err(only_voter()),
                        ChangeMembershipError::LearnerNotFound(gone) => {
                            return Err(removed_meanwhile(gone.node_id));
                        }
                        other => return Err(Error::bad_request(other.to_string())),
                    }
                }
                Err(error) => return Err(unknown(error.to_string())),
            }
        }
    }
}

/// Finishes, while this member leads, the changes that were left half done: whoever made them may
/// have lost patience, or have led and died. It matters because until then nothing is committed
/// without majorities of both the voters before and those after.
pub(super) async fn finish_changes(raft: Raft, changing: Arc<Mutex<()>>) {
    let to_do = |metrics: &RaftMetrics<Types>| {
        metrics.state == ServerState::Leader && is_half_done(metrics.membership_config.membership())
    };
    let mut metrics = raft.metrics();
    loop {
        if !to_do(&metrics.borrow_watched()) {
            if metrics.changed().await.is_err() {
                return;
            }
            continue;
        }
        sleep(HALF_DONE_PAUSE).await;
        let _changing = changing.lock().await;
        if !to_do(&metrics.borrow_watched()) {
            continue;
        }
        // Any change does it, so one of nothing.
        let nothing = Change::AddVoterIds(BTreeSet::new());
        match timeout(HALF_DONE_DEADLINE, raft.change_membership(nothing, false)).await {
            Ok(Ok(_)) => tracing::info!("finished a change of the members that was half done"),
            Ok(Err(error)) => tracing::info!(%error, "a change of the members stays half done"),
            Err(_) => tracing::info!("no majority finishes a change of the members yet"),
        }
    }
}

/// Whether majorities of both the voters before a change and those after it are needed.
fn is_half_done(membership: &Membership) -> bool {
    membership.get_joint_config().len() > 1
}

fn only_voter() -> Error {
    Error::bad_request("it is the only voter: add another first")
}

fn removed_meanwhile(node: NodeId) -> Error {
    Error::bad_request(format!("{node} was removed meanwhile"))
}

fn unknown_member(id: Uuid) -> Error {
    Error::bad_request(format!("no member has the id {id}; the status lists those that there are"))
}

#[cfg(test)]
mod tests;
