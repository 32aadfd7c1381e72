//! Members that are told what to answer, over real QUIC.

use std::collections::BTreeSet;
use std::future::pending;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use inkfast_metastore::messages::{Request, answer_frame, decode_request};
use inkfast_metastore::state::{Answer, Operation, Told};
use inkfast_metastore::watches::PROGRESS_INTERVAL;
use inkfast_metastore::{
    Error, MemberInfo, MemberStatus, MemoryMetastore, Metastore, RemoteMetastore, Version, Watch,
};
use inkfast_wire::{
    Authority, Endpoint, Error as WireError, Identity, Net, Peer, Role, Server, Service, Stream,
    serve,
};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::timeout;
use uuid::Uuid;

use super::LONG;

const CLUSTER: Uuid = Uuid::from_u128(1);

/// A cluster of fake members, all over the same store.
pub(crate) struct Cluster {
    certs: TempDir,
    pub(crate) store: Arc<MemoryMetastore>,
    /// The requests for changes that were carried out.
    done: Arc<Mutex<BTreeSet<Uuid>>>,
    /// The members that were removed.
    pub(crate) removed: watch::Sender<BTreeSet<Uuid>>,
    pub(crate) members: Vec<Member>,
}

/// A fake member. Clones are the same.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: Uuid,
    pub(crate) address: String,
    pub(crate) endpoint: Endpoint,
    store: Arc<MemoryMetastore>,
    done: Arc<Mutex<BTreeSet<Uuid>>>,
    removed: watch::Sender<BTreeSet<Uuid>>,
    says: watch::Sender<Says>,
    statuses: watch::Sender<usize>,
    requests: watch::Sender<usize>,
    watches: watch::Sender<usize>,
}

/// What a member is to answer.
#[derive(Clone)]
pub(crate) struct Says {
    pub(crate) requests: Requests,
    /// What it says of the cluster; none if it says nothing.
    pub(crate) status: Option<MemberStatus>,
}

/// What becomes of requests.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Requests {
    Answered,
    /// Answered, but changes are not, though carried out, and backups break off.
    Swallowed,
    Refused(Option<String>),
    Unanswered,
}

impl Cluster {
    /// Starts members, of which none has said anything yet.
    pub(crate) async fn start(members: usize) -> Self {
        let certs = TempDir::new().unwrap();
        let authority = Authority::open_or_create(certs.path(), "test").unwrap();
        authority.issue(Role::Metastore, None).unwrap();
        authority.issue(Role::Client, None).unwrap();
        let store = Arc::new(MemoryMetastore::new());
        let (done, removed) = (Arc::default(), watch::Sender::default());
        let mut cluster = Self { certs, store, done, removed, members: Vec::new() };
        for _ in 0..members {
            let member = cluster.start_member("127.0.0.1:0").await;
            cluster.members.push(member);
        }
        cluster
    }

    /// Starts a member that says nothing.
    pub(crate) async fn start_member(&self, listen: &str) -> Member {
        let id = Uuid::new_v4();
        let server = Server {
            listen: listen.into(),
            instance: id,
            cluster: CLUSTER,
            reset_key: [7; 64],
            roles: &[Role::Client],
        };
        let identity = Identity::load(self.certs.path(), Role::Metastore, None).unwrap();
        let endpoint = Endpoint::server(&Net::Os, &identity, server).await.unwrap();
        let member = Member {
            id,
            address: endpoint.local_addr().to_string(),
            endpoint: endpoint.clone(),
            store: self.store.clone(),
            done: self.done.clone(),
            removed: self.removed.clone(),
            says: watch::Sender::new(Says { requests: Requests::Unanswered, status: None }),
            statuses: watch::Sender::default(),
            requests: watch::Sender::default(),
            watches: watch::Sender::default(),
        };
        tokio::spawn(serve(endpoint, member.clone()));
        member
    }

    /// Makes a member the leader, and the others know it.
    pub(crate) fn elect(&self, leader: usize, term: u64) {
        for (index, member) in self.members.iter().enumerate() {
            self.follow(index, leader, term);
            if index == leader {
                member.does(Requests::Answered);
            }
        }
    }

    /// Makes a member say that another leads.
    pub(crate) fn follow(&self, member: usize, leader: usize, term: u64) {
        let leader = &self.members[leader];
        self.members[member].says.send_replace(Says {
            requests: Requests::Refused(Some(leader.address.clone())),
            status: Some(self.status(member, term, Some(leader.id))),
        });
    }

    /// Makes a member say that it knows of no leader.
    pub(crate) fn lose_leader(&self, member: usize, term: u64) {
        let status = Some(self.status(member, term, None));
        self.members[member].says.send_replace(Says { requests: Requests::Refused(None), status });
    }

    pub(crate) fn status(&self, member: usize, term: u64, leader: Option<Uuid>) -> MemberStatus {
        let info = |member: &Member| {
            let (id, address) = (member.id, member.address.clone());
            MemberInfo { id, address, voter: true }
        };
        MemberStatus {
            id: self.members[member].id,
            address: self.members[member].address.clone(),
            term,
            leader,
            log: Some(7),
            applied: None,
            revision: Version::new(3),
            members: self.members.iter().map(info).collect(),
        }
    }

    pub(crate) fn client_endpoint(&self) -> Endpoint {
        let identity = Identity::load(self.certs.path(), Role::Client, None).unwrap();
        Endpoint::client(&Net::Os, &identity, Uuid::new_v4(), None).unwrap()
    }

    /// Makes a client that knows these members.
    pub(crate) fn client(&self, known: &[usize], timeout: Duration) -> RemoteMetastore {
        let addresses = known.iter().map(|index| self.members[*index].address.clone());
        RemoteMetastore::new(&self.client_endpoint(), addresses.collect(), timeout)
    }

    /// Makes a client that knows all members.
    pub(crate) fn client_of_all(&self, timeout: Duration) -> RemoteMetastore {
        self.client(&(0..self.members.len()).collect::<Vec<_>>(), timeout)
    }
}

impl Member {
    /// Does this with requests from now on, and says of the cluster what it said.
    pub(crate) fn does(&self, requests: Requests) {
        self.says.send_modify(|says| says.requests = requests);
    }

    /// Says nothing to anybody from now on, as if it hung.
    pub(crate) fn hang(&self) {
        self.says.send_replace(Says { requests: Requests::Unanswered, status: None });
    }

    pub(crate) fn statuses(&self) -> usize {
        *self.statuses.borrow()
    }

    pub(crate) fn requests(&self) -> usize {
        *self.requests.borrow()
    }

    /// Waits until it was asked so often for its status.
    pub(crate) async fn statuses_reach(&self, count: usize) {
        reach(&self.statuses, count).await;
    }

    /// Waits until it had so many other requests.
    pub(crate) async fn requests_reach(&self, count: usize) {
        reach(&self.requests, count).await;
    }

    /// Waits until it has taken so many watches.
    pub(crate) async fn watches_reach(&self, count: usize) {
        reach(&self.watches, count).await;
    }

    async fn answer(&self, request: Request) -> Result<Answer, Error> {
        let stale = match &request {
            Request::Status => {
                add_one(&self.statuses);
                return Ok(Answer::Status(unless_silent(self.status()).await));
            }
            Request::Get { stale, .. } | Request::Scan { stale, .. } => *stale,
            _ => false,
        };
        add_one(&self.requests);
        let says = self.says.borrow().requests.clone();
        match says {
            Requests::Unanswered => pending().await,
            Requests::Refused(leader) if !stale => return Err(Error::NotLeader { leader }),
            Requests::Answered | Requests::Swallowed | Requests::Refused(_) => {}
        }
        let is_change = matches!(request, Request::Change { .. } | Request::RemoveMember(_));
        let answer = self.carry_out(request).await;
        if is_change && says == Requests::Swallowed {
            pending().await
        }
        answer
    }

    /// What it says of the cluster, of which some may have been removed.
    fn status(&self) -> Option<MemberStatus> {
        let mut status = self.says.borrow().status.clone()?;
        status.members.retain(|member| !self.removed.borrow().contains(&member.id));
        Some(status)
    }

    async fn carry_out(&self, request: Request) -> Result<Answer, Error> {
        match request {
            Request::Get { key, .. } => self.store.get(&key).await.map(Answer::Value),
            Request::Scan { scan, .. } => self.store.scan(scan).await.map(Answer::Page),
            Request::Change { request, operation: Operation::Commit(transaction) } => {
                let known = !self.done.lock().unwrap().insert(request);
                if known {
                    return Ok(Answer::Committed(Version::new(0)));
                }
                self.store.commit(transaction).await.map(Answer::Committed)
            }
            Request::RemoveMember(id) => {
                let members = self.status().unwrap().members;
                if members.iter().all(|member| member.id != id) {
                    return Err(Error::bad_request("no member has the id"));
                }
                self.removed.send_if_modified(|removed| removed.insert(id));
                Ok(Answer::Done)
            }
            Request::AddMember { .. } | Request::TransferLeader(_) => Ok(Answer::Done),
            other => Err(Error::bad_request(format!("not in these tests: {other:?}"))),
        }
    }

    async fn serve_requests(&self, stream: &mut Stream) -> Result<(), WireError> {
        while let Some(frame) = stream.receiver.next().await? {
            let answer = match decode_request(&frame).unwrap() {
                Request::Watch { prefix, after } => {
                    return self.serve_watch(&prefix, after, stream).await;
                }
                Request::Backup => return self.serve_backup(stream).await,
                request => self.answer(request).await,
            };
            stream.sender.send(&answer_frame(&answer)).await?;
        }
        Ok(())
    }

    async fn serve_watch(
        &self,
        prefix: &str,
        after: Version,
        stream: &mut Stream,
    ) -> Result<(), WireError> {
        add_one(&self.requests);
        let says = self.says.borrow().requests.clone();
        let begun = match says {
            Requests::Answered => self.store.watch(prefix, after).await,
            Requests::Refused(leader) => Err(Error::NotLeader { leader }),
            Requests::Unanswered | Requests::Swallowed => pending().await,
        };
        let answer = begun.as_ref().map(|_| Answer::Done).map_err(Error::clone);
        stream.sender.send(&answer_frame(&answer)).await?;
        let Ok(mut watch) = begun else { return Ok(()) };
        add_one(&self.watches);
        let mut seen = after;
        while stream.receiver.next().await?.is_some() {
            let answer = self.more(&mut watch, &mut seen).await;
            stream.sender.send(&answer_frame(&answer)).await?;
            if answer.is_err() {
                break;
            }
        }
        Ok(())
    }

    async fn more(&self, watch: &mut Watch, seen: &mut Version) -> Result<Answer, Error> {
        let told = timeout(PROGRESS_INTERVAL, watch.next());
        let changes = tokio::select! {
            told = told => told.unwrap_or(Ok(Vec::new()))?,
            error = self.deposed() => return Err(error),
        };
        if self.says.borrow().requests == Requests::Unanswered {
            pending::<()>().await;
        }
        if let Some(last) = changes.last() {
            *seen = last.revision;
        }
        Ok(Answer::Told(Told { changes, seen: *seen }))
    }

    /// Waits until it does not lead, or without end if it hangs.
    async fn deposed(&self) -> Error {
        let mut says = self.says.subscribe();
        let refuses = |says: &Says| matches!(says.requests, Requests::Refused(_));
        match says.wait_for(refuses).await.unwrap().requests.clone() {
            Requests::Refused(leader) => Error::NotLeader { leader },
            other => panic!("{other:?}"),
        }
    }

    async fn serve_backup(&self, stream: &mut Stream) -> Result<(), WireError> {
        let says = self.says.borrow().requests.clone();
        let broken = says == Requests::Swallowed;
        let answers = match says {
            Requests::Refused(leader) => vec![Err(Error::NotLeader { leader })],
            _ => ["one", "two", ""].map(|piece| Ok(Answer::Piece(Bytes::from(piece)))).into(),
        };
        for answer in answers.into_iter().take(if broken { 2 } else { 3 }) {
            stream.sender.send(&answer_frame(&answer)).await?;
        }
        Ok(())
    }
}

impl Service for Member {
    async fn serve(&self, _: Arc<Peer>, mut stream: Stream) {
        // Whoever asked has gone.
        let _ = self.serve_requests(&mut stream).await;
        stream.sender.finish();
    }
}

async fn unless_silent<T>(said: Option<T>) -> T {
    match said {
        Some(said) => said,
        None => pending().await,
    }
}

fn add_one(counter: &watch::Sender<usize>) {
    counter.send_modify(|count| *count += 1);
}

async fn reach(counter: &watch::Sender<usize>, goal: usize) {
    let mut counter = counter.subscribe();
    let reached = timeout(LONG, counter.wait_for(|count| *count >= goal)).await.is_ok();
    assert!(reached, "it is at {} and not at {goal}", *counter.borrow());
}
