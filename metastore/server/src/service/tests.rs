//! Watches whose streams break off all the time, and callers who stand still.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::FutureExt;
use inkfast_metastore::limits::VALUE_BYTES_MAX;
use inkfast_metastore::messages::encode_request;
use inkfast_metastore::{KeyValue, Metastore, RemoteMetastore, Scan, Transaction};
use inkfast_wire::{Authority, Endpoint, Identity, Net, Remote, Role, Server, Target, serve};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::*;
use crate::consensus::network::WirePeers;
use crate::consensus::types::Runtime;
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_disk::TestFiles;

const DEADLINE: Duration = Duration::from_secs(30);
/// How often streams are cut before the test ends.
const CUTS: usize = 60;
/// The most keys written in each tree; few, so that they meet.
const KEYS: usize = 20;

/// Every follower begins with the keys of its moment and ends with those that there are, though
/// its stream breaks off again and again.
#[tokio::test]
async fn watches_lose_nothing_when_streams_break_off() {
    let cuts = Arc::new(AtomicUsize::new(0));
    let (client, server, front) = start().await;
    let address = server.local_addr().to_string();
    tokio::spawn(serve(server, Cutting { front, cuts: cuts.clone() }));
    let store = Arc::new(RemoteMetastore::new(&client, vec![address], DEADLINE));

    let mut followers = JoinSet::new();
    let mut written = 0;
    while cuts.load(Ordering::Relaxed) < CUTS {
        if written % 50 == 0 && followers.len() < 10 {
            let prefix = ["", "a/", "a/1", "b/"][followers.len() % 4];
            followers.spawn(follow(store.clone(), prefix));
        }
        assert!(followers.try_join_next().is_none(), "a follower has failed");
        store.commit(transaction()).await.unwrap();
        written += 1;
    }
    let last = Transaction::new().put("a/1/end", "").put("b/end", "");
    store.commit(last).await.unwrap();
    for (prefix, keys) in timeout(DEADLINE, followers.join_all()).await.unwrap() {
        assert_eq!(keys, scan(&store, prefix).await.0, "{prefix:?} after {written} transactions");
    }
}

/// Follows the keys of a prefix until the end.
async fn follow(
    store: Arc<RemoteMetastore>,
    prefix: &'static str,
) -> (&'static str, BTreeMap<String, KeyValue>) {
    let (mut keys, mut seen) = scan(&store, prefix).await;
    let mut watch = store.watch(prefix, seen).await.unwrap();
    while !keys.keys().any(|key| key.ends_with("/end")) {
        // So few changes are never forgotten.
        let changes = watch.next().await.unwrap();
        assert!(changes[0].revision > seen, "{} was told before", changes[0].revision);
        assert!(changes.is_sorted_by_key(|change| change.revision));
        for change in changes {
            assert!(change.key.starts_with(prefix), "{}", change.key);
            seen = change.revision;
            match change.now {
                Some(now) => keys.insert(change.key, now),
                None => Some(keys.remove(&change.key).expect("what is removed was there")),
            };
        }
    }
    (prefix, keys)
}

async fn scan(store: &RemoteMetastore, prefix: &str) -> (BTreeMap<String, KeyValue>, Version) {
    let page = store.scan(Scan::new(prefix)).await.unwrap();
    let keys = page.entries.into_iter().map(|entry| (entry.key.clone(), entry));
    (keys.collect(), page.revision)
}

/// Writes and deletes a few keys by chance.
fn transaction() -> Transaction {
    let mut writes = BTreeMap::new();
    for _ in 0..3 {
        let tree = if fastrand::bool() { "a" } else { "b" };
        writes.insert(format!("{tree}/{}", fastrand::usize(..KEYS)), fastrand::bool());
    }
    writes.into_iter().fold(Transaction::new(), |all, (key, put)| match put {
        true => all.put(key, "value"),
        false => all.delete(key),
    })
}

/// Makes a metastore in memory that has yet to be served, and an endpoint for its clients.
async fn start() -> (Endpoint, Endpoint, Front) {
    let certs = TempDir::new().unwrap();
    let authority = Authority::open_or_create(certs.path(), "test").unwrap();
    authority.issue(Role::Metastore, None).unwrap();
    authority.issue(Role::Client, None).unwrap();
    let identity = |role| Identity::load(certs.path(), role, None).unwrap();
    let storage = Storage::open(TestFiles::default(), Executor::Inline, Beginning::Found).unwrap();
    let member = storage.member.clone();
    let server = Server {
        listen: "127.0.0.1:0".into(),
        instance: member.id,
        cluster: member.cluster,
        reset_key: member.reset_key,
        roles: &[Role::Client],
    };
    let server = Endpoint::server(&Net::Os, &identity(Role::Metastore), server).await.unwrap();
    let me = Me { member, address: server.local_addr().to_string() };
    let peers = Arc::new(WirePeers::new(server.clone()));
    let started = Runtime::scope(1, Front::start(me, &storage, peers)).await;
    let (front, _) = started.unwrap();
    let client = Endpoint::client(&Net::Os, &identity(Role::Client), Uuid::new_v4(), None).unwrap();
    (client, server, front)
}

/// Answers as the real one, but breaks off streams that last.
#[derive(Clone)]
struct Cutting {
    front: Front,
    cuts: Arc<AtomicUsize>,
}

impl Service for Cutting {
    async fn serve(&self, peer: Arc<Peer>, stream: Stream) {
        let patience = Duration::from_millis(fastrand::u64(1..50));
        if timeout(patience, self.front.serve(peer, stream)).await.is_err() {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn a_lease_lives_on_only_if_it_did_not_end_meanwhile() {
    let (client, server, front) = start().await;
    let address = server.local_addr().to_string();
    tokio::spawn(serve(server, front.clone()));
    let store = RemoteMetastore::new(&client, vec![address], DEADLINE);
    let lease = store.grant_lease(DEADLINE).await.unwrap();
    let mut kept = Box::pin(front.keep_alive(lease));
    assert_eq!((&mut kept).now_or_never(), None, "it waits until it is sure to lead");
    store.end_lease(lease).await.unwrap();
    assert_eq!(kept.await, Err(Error::LeaseNotFound));

    // One that is about to end may go on after all.
    let lease = store.grant_lease(DEADLINE).await.unwrap();
    assert_eq!(front.leases().take_expired(Instant::now() + DEADLINE), [lease]);
    let kept = front.keep_alive(lease).await;
    assert!(matches!(kept, Err(Error::Unavailable { .. })), "{kept:?}");
}

#[tokio::test]
async fn a_backup_that_is_not_read_breaks_off() {
    let (client, server, front) = start().await;
    let addresses = vec![server.local_addr().to_string()];
    let ended = Arc::new(Notify::new());
    tokio::spawn(serve(server, Noting { front, ended: ended.clone() }));
    let store = RemoteMetastore::new(&client, addresses.clone(), DEADLINE);
    // More than goes into the buffers between them.
    for number in 0..48 {
        let value = vec![7; VALUE_BYTES_MAX];
        store.commit(Transaction::new().put(format!("{number}"), value)).await.unwrap();
    }
    let target = Target { role: Role::Metastore, instance: None, addresses };
    let connection = Remote::new(&client, target).connection().await.unwrap();
    let mut stream = connection.open().await.unwrap();
    stream.sender.send(&encode_request(Request::Backup)).await.unwrap();
    timeout(DEADLINE, ended.notified()).await.unwrap();
    drop(stream);
}

/// Answers as the real one, and tells when a stream for a backup has ended.
#[derive(Clone)]
struct Noting {
    front: Front,
    ended: Arc<Notify>,
}

impl Service for Noting {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        match self.front.serve_requests(&peer, &mut stream).await {
            Err(WireError::TimedOut { .. }) => self.ended.notify_one(),
            _ => stream.sender.finish(),
        }
    }
}
