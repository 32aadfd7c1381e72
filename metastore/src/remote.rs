//! The metastore as its clients reach it.
//!
//! [`leader`] believes that one member leads, and finds out who does when that turns out wrong;
//! [`ask`] takes requests there, again and again until there is an answer. [`members`] knows the
//! addresses.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use inkfast_wire::Endpoint;
use tokio::task::{JoinHandle, JoinSet};
use uuid::Uuid;

use crate::Metastore;
use crate::error::Error;
use crate::limits::{check_address, check_key, check_operation, check_scan};
use crate::members::MemberStatus;
use crate::messages::Request;
use crate::state::{Answer, Operation, REMEMBERED_MS};
use crate::types::{KeyValue, LeaseId, Page, Scan, Transaction, Version};
use crate::watch::{Source, Watch};

mod ask;
mod backup;
mod leader;
mod members;
mod watch;

pub use backup::Backup;
use leader::Leader;
use members::Members;
pub(crate) use watch::RemoteWatch;
use watch::Watching;

/// How long a change of the members is tried: a new one has to learn the whole state first.
const MEMBERSHIP_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a member has to say what it knows where that is what was asked for.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// The longest that a change is tried: half as long as its answer is remembered.
const CHANGE_TIMEOUT_MAX: Duration = Duration::from_millis(REMEMBERED_MS / 2);
/// How often those are asked that were named by those who were asked before.
const STATUS_ROUNDS: usize = 3;
/// A key that is read to have an answer of the leader.
const UNUSED_KEY: &str = "leader";
/// The pause before something is tried again, up to twice as long by chance so that those who wait
/// do not come back all at once.
const PAUSE: Duration = Duration::from_millis(50);
/// For how long refusals and nothing else are put up with: a member that is just stopping refuses
/// too.
const REFUSALS_MAX: Duration = Duration::from_secs(1);

/// A metastore of one or more members, of which some addresses are known.
///
/// One member leads, and requests go there. Which one it is, is found out by itself: members that
/// do not lead say who does, and when the leader is lost, or does not answer for 0.4 s, the others
/// are asked, once for all requests of the process. A request without an answer is sent
/// again, under the same request id, until the timeout (a change for 30 s at most); so a change is
/// made once however often it was sent. Members that are not in the list are learned from the others.
///
/// A watch goes on at the new leader, and says so only if there was none for the timeout. There
/// may be 10,000 of them. A process that has any asks the leader once a second or so whether it
/// still leads.
pub struct RemoteMetastore {
    endpoint: Endpoint,
    leader: Arc<Leader>,
    watching: Arc<Watching>,
    timeout: Duration,
}

impl RemoteMetastore {
    /// Makes a metastore of the members at these addresses (`host:port`), which need not be all;
    /// nothing is sent yet.
    pub fn new(endpoint: &Endpoint, addresses: Vec<String>, timeout: Duration) -> Self {
        let leader = Arc::new(Leader::new(Members::new(endpoint, addresses)));
        let watching = Arc::new(Watching::new(leader.clone(), timeout));
        Self { endpoint: endpoint.clone(), leader, watching, timeout }
    }

    /// Asks all members what they know of the cluster: those that are known here, and those that
    /// they name. Returns what each said, or why it did not answer within 2 s.
    pub async fn status(&self) -> Vec<(String, Result<MemberStatus, Error>)> {
        let mut all = Vec::<(String, Result<MemberStatus, Error>)>::new();
        for _ in 0..STATUS_ROUNDS {
            let heard = |address: &str| {
                all.iter().any(|(asked, answer)| {
                    asked == address || answer.as_ref().is_ok_and(|it| it.address == address)
                })
            };
            let mut asked = JoinSet::new();
            for member in self.leader.members().all() {
                if !heard(member.address()) {
                    asked.spawn(async move {
                        (member.address().to_owned(), member.status(STATUS_TIMEOUT).await)
                    });
                }
            }
            let mut answers = asked.join_all().await;
            answers.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (address, answer) in answers {
                if let Ok(status) = &answer {
                    self.leader.hear(status);
                }
                let unavailable =
                    |error: inkfast_wire::Error| Error::unavailable(error.to_string());
                all.push((address, answer.map_err(unavailable)));
            }
        }
        all
    }

    /// Makes the metastore at an address a voter: it has to be of this cluster, and learns the whole
    /// state first. Does nothing if it is one.
    ///
    /// Fails with [`Error::TimedOut`] if it has not learned the state within 60 s. It goes on
    /// learning, and another call goes on waiting.
    pub async fn add_member(&self, address: &str) -> Result<(), Error> {
        check_address(address)?;
        self.change_members(Request::AddMember { address: address.into(), id: None }).await
    }

    /// Does the same for the metastore of this id, and is refused if another answers there.
    pub async fn join(&self, id: Uuid, address: &str) -> Result<(), Error> {
        check_address(address)?;
        self.change_members(Request::AddMember { address: address.into(), id: Some(id) }).await
    }

    /// Tells the others that a member is reached at an address from now on, which is tried for 60 s
    /// if it does not answer there. Refused if it is no member, for example because it was removed.
    pub async fn move_member(&self, id: Uuid, address: &str) -> Result<(), Error> {
        check_address(address)?;
        self.change_members(Request::MoveMember { address: address.into(), id: Some(id) }).await
    }

    /// Removes a member, alive or not, within 60 s. The leader hands over first. The last voter
    /// cannot be removed, nor what is no member.
    pub async fn remove_member(&self, id: Uuid) -> Result<(), Error> {
        if !self.has_member(id).await? {
            return Err(Error::bad_request(format!(
                "no member has the id {id}; the status lists those that there are"
            )));
        }
        match self.change_members(Request::RemoveMember(id)).await {
            // It was there: an attempt whose answer was lost has removed it, or somebody else.
            Err(Error::BadRequest { .. }) if !self.has_member(id).await? => Ok(()),
            done => done,
        }
    }

    /// Makes a voter the leader, and returns when it is, within 60 s.
    pub async fn transfer_leader(&self, id: Uuid) -> Result<(), Error> {
        self.change_members(Request::TransferLeader(id)).await
    }

    /// Begins a backup of all there is at this moment.
    pub async fn backup(&self) -> Result<Backup, Error> {
        self.find_leader().await?;
        Backup::begin(&self.leader).await
    }

    async fn change_members(&self, request: Request) -> Result<(), Error> {
        self.find_leader().await?;
        self.leader.ask(request, MEMBERSHIP_TIMEOUT).await?.done()
    }

    /// Whether the leader knows of a member with this id.
    async fn has_member(&self, id: Uuid) -> Result<bool, Error> {
        self.find_leader().await?;
        let status = self.call(Request::Status).await?.status()?;
        Ok(status.members.iter().any(|member| member.id == id))
    }

    /// Fails after the usual time if nobody leads: what takes longer need not be begun then.
    async fn find_leader(&self) -> Result<(), Error> {
        self.get(UNUSED_KEY).await.map(|_| ())
    }

    async fn change(&self, operation: Operation) -> Result<Answer, Error> {
        check_operation(&operation)?;
        let request = Request::Change { request: Uuid::new_v4(), operation };
        self.leader.ask(request, self.timeout.min(CHANGE_TIMEOUT_MAX)).await
    }

    async fn call(&self, request: Request) -> Result<Answer, Error> {
        self.leader.ask(request, self.timeout).await
    }

    async fn call_anyone(&self, request: Request) -> Result<Answer, Error> {
        self.leader.ask_anyone(request, self.timeout).await
    }
}

#[async_trait]
impl Metastore for RemoteMetastore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        check_key(key)?;
        self.call(Request::Get { key: key.into(), stale: false }).await?.value()
    }

    async fn scan(&self, scan: Scan) -> Result<Page, Error> {
        check_scan(&scan)?;
        self.call(Request::Scan { scan, stale: false }).await?.page()
    }

    async fn get_stale(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        check_key(key)?;
        self.call_anyone(Request::Get { key: key.into(), stale: true }).await?.value()
    }

    async fn scan_stale(&self, scan: Scan) -> Result<Page, Error> {
        check_scan(&scan)?;
        self.call_anyone(Request::Scan { scan, stale: true }).await?.page()
    }

    async fn commit(&self, transaction: Transaction) -> Result<Version, Error> {
        self.change(Operation::Commit(transaction)).await?.committed()
    }

    async fn next_sequence(&self, name: &str, count: u64) -> Result<Range<u64>, Error> {
        self.change(Operation::NextSequence { name: name.into(), count }).await?.sequence()
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.change(Operation::GrantLease { ttl }).await?.granted()
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.call(Request::KeepAlive(lease)).await?.done()
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<(), Error> {
        self.change(Operation::EndLease(lease)).await?.done()
    }

    async fn watch(&self, prefix: &str, after: Version) -> Result<Watch, Error> {
        let watch = RemoteWatch::begin(&self.watching, prefix, after).await?;
        Ok(Watch(Source::Remote(Box::new(watch))))
    }

    async fn cluster(&self) -> Result<Uuid, Error> {
        if self.endpoint.cluster().is_none() {
            // Any answer will do: the handshake before it tells the cluster.
            self.call_anyone(Request::Status).await?.status()?;
        }
        self.endpoint.cluster().ok_or_else(|| Error::unavailable("its cluster is not known"))
    }
}

/// A task that ends when nobody holds it any more.
struct Held(JoinHandle<()>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Makes a pause up to twice as long, by chance.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + fastrand::f64())
}
