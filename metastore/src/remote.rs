//! The metastore as its clients reach it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use inkfast_wire::{Endpoint, Frame, Remote, Role, Target};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use uuid::Uuid;

use crate::Metastore;
use crate::error::Error;
use crate::limits::{check_key, check_operation, check_scan};
use crate::messages::{Request, answer_from_frame, encode_request};
use crate::state::{Answer, Operation};
use crate::types::{KeyValue, LeaseId, Page, Scan, Transaction, Version};
use crate::watch::{Source, Watch};

mod watch;

pub(crate) use watch::RemoteWatch;

/// How long one member has for an answer before the next is asked.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// The pause between two attempts, up to twice as long by chance so that clients do not come back
/// all at once.
const PAUSE: Duration = Duration::from_millis(50);
/// For how long refusals and nothing else are put up with: a member that is just stopping refuses
/// too.
const REFUSALS_MAX: Duration = Duration::from_secs(1);
/// The most watches at a time: each has a stream, of which requests need some as well.
const WATCHES_MAX: usize = 10_000;

/// A metastore at known addresses.
///
/// A request whose answer is lost is sent again, to the next address, under the same request id,
/// until the timeout; so a change is made once however often it was sent. A watch whose member is
/// lost goes on at the next, and says so only after the timeout. There may be 10,000 of them.
pub struct RemoteMetastore {
    endpoint: Endpoint,
    members: Arc<Members>,
}

/// The members, shared with watches.
struct Members {
    list: Vec<Member>,
    /// The member to ask first: the last one that answered.
    favourite: AtomicUsize,
    timeout: Duration,
    watches: Arc<Semaphore>,
}

struct Member {
    address: String,
    remote: Remote,
}

impl Members {
    /// Returns the member whose turn it is; none if there are no members.
    fn at(&self, turn: usize) -> Option<&Member> {
        self.list.get(turn.checked_rem(self.list.len())?)
    }
}

impl RemoteMetastore {
    /// Makes a metastore of the members at these addresses (`host:port`); nothing is sent yet.
    pub fn new(endpoint: &Endpoint, addresses: Vec<String>, timeout: Duration) -> Self {
        let member = |address: String| {
            let addresses = vec![address.clone()];
            let target = Target { role: Role::Metastore, instance: None, addresses };
            Member { address, remote: Remote::new(endpoint, target) }
        };
        let members = Members {
            list: addresses.into_iter().map(member).collect(),
            favourite: AtomicUsize::new(0),
            timeout,
            watches: Arc::new(Semaphore::new(WATCHES_MAX)),
        };
        Self { endpoint: endpoint.clone(), members: Arc::new(members) }
    }

    async fn change(&self, operation: Operation) -> Result<Answer, Error> {
        check_operation(&operation)?;
        self.call(Request::Change { request: Uuid::new_v4(), operation }).await
    }

    async fn call(&self, request: Request) -> Result<Answer, Error> {
        let frame = encode_request(request);
        let mut tried = Tried::default();
        let limit = self.members.timeout;
        match timeout(limit, self.retry(&frame, &mut tried)).await {
            Ok(Some(answer)) => answer,
            Ok(None) | Err(_) => Err(tried.into_error(limit)),
        }
    }

    /// Asks one member after the other until one answers; none if there is no sense in going on.
    async fn retry(&self, frame: &Frame, tried: &mut Tried) -> Option<Result<Answer, Error>> {
        let mut favourite = self.members.favourite.load(Ordering::Relaxed);
        while let Some(member) = self.members.at(favourite)
            && !tried.only_refused()
        {
            if let Some(answer) = attempt(member, frame, tried).await {
                self.members.favourite.store(favourite, Ordering::Relaxed);
                return Some(answer);
            }
            favourite = favourite.wrapping_add(1);
            sleep(pause()).await;
        }
        None
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
        self.call(Request::Get { key: key.into(), stale: true }).await?.value()
    }

    async fn scan_stale(&self, scan: Scan) -> Result<Page, Error> {
        check_scan(&scan)?;
        self.call(Request::Scan { scan, stale: true }).await?.page()
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
        let watch = RemoteWatch::begin(&self.members, prefix, after).await?;
        Ok(Watch(Source::Remote(Box::new(watch))))
    }

    async fn cluster(&self) -> Result<Uuid, Error> {
        if self.endpoint.cluster().is_none() {
            // Any request will do: the handshake before it tells the cluster.
            self.get("cluster").await?;
        }
        self.endpoint.cluster().ok_or_else(|| Error::unavailable("its cluster is not known"))
    }
}

/// Sends the request to one member; none if it has to be sent again.
async fn attempt(
    member: &Member,
    frame: &Frame,
    tried: &mut Tried,
) -> Option<Result<Answer, Error>> {
    tried.connecting(member);
    let connection = match member.remote.connection().await {
        Ok(connection) => connection,
        Err(error) => return tried.failed(member, &error),
    };
    tried.sending(member);
    let answer = match connection.request(frame.clone(), ATTEMPT_TIMEOUT).await {
        Ok(answer) => answer,
        Err(error) => return tried.failed(member, &error),
    };
    match answer_from_frame(answer) {
        Ok(Err(Error::Unavailable { why })) | Err(why) => tried.note(member, why),
        Ok(answer) => Some(answer),
    }
}

fn pause() -> Duration {
    PAUSE.mul_f64(1.0 + fastrand::f64())
}

/// What became of the attempts so far.
#[derive(Default)]
struct Tried {
    /// The last word on each address.
    notes: BTreeMap<String, String>,
    /// Whether any member may have seen the request.
    sent: bool,
    /// Since when there were refusals and nothing else.
    refused_since: Option<Instant>,
}

impl Tried {
    fn connecting(&mut self, member: &Member) {
        self.notes.entry(member.address.clone()).or_insert_with(|| "no connection yet".into());
    }

    fn sending(&mut self, member: &Member) {
        self.sent = true;
        self.notes.insert(member.address.clone(), "no answer yet".into());
    }

    fn failed<T>(&mut self, member: &Member, error: &inkfast_wire::Error) -> Option<T> {
        use inkfast_wire::Error::{Refused, WrongPeer};
        let refused_since = self.refused_since;
        self.note::<T>(member, error.to_string());
        if matches!(error, Refused { .. } | WrongPeer { .. }) {
            self.refused_since = Some(refused_since.unwrap_or_else(Instant::now));
        }
        None
    }

    fn note<T>(&mut self, member: &Member, why: String) -> Option<T> {
        tracing::debug!(address = member.address, why, "the metastore gave no answer");
        self.notes.insert(member.address.clone(), why);
        self.refused_since = None;
        None
    }

    fn only_refused(&self) -> bool {
        self.refused_since.is_some_and(|since| since.elapsed() >= REFUSALS_MAX)
    }

    fn into_error(self, timeout: Duration) -> Error {
        let sent = self.sent;
        let why = self.into_words();
        if sent { Error::TimedOut { timeout, why } } else { Error::Unavailable { why } }
    }

    fn into_words(self) -> String {
        let notes = self.notes.iter().map(|(address, why)| format!("{address}: {why}"));
        let notes = notes.collect::<Vec<_>>().join("; ");
        if notes.is_empty() { "no address is known".into() } else { notes }
    }
}
