//! Watches whose streams break off all the time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use inkfast_metastore::{KeyValue, Metastore, RemoteMetastore, Scan, Transaction};
use inkfast_wire::{Authority, Endpoint, Identity, Net, Role, Server, serve};
use tempfile::TempDir;
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
    let certs = TempDir::new().unwrap();
    let authority = Authority::open_or_create(certs.path(), "test").unwrap();
    authority.issue(Role::Metastore, None).unwrap();
    authority.issue(Role::Client, None).unwrap();
    let identity = |role| Identity::load(certs.path(), role, None).unwrap();
    let cuts = Arc::new(AtomicUsize::new(0));
    let address = start(&identity(Role::Metastore), cuts.clone()).await;
    let endpoint =
        Endpoint::client(&Net::Os, &identity(Role::Client), Uuid::new_v4(), None).unwrap();
    let store = Arc::new(RemoteMetastore::new(&endpoint, vec![address], DEADLINE));

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

/// Starts a metastore in memory that cuts streams, and returns its address.
async fn start(identity: &Identity, cuts: Arc<AtomicUsize>) -> String {
    let storage = Storage::open(TestFiles::default(), Executor::Inline, Beginning::Found).unwrap();
    let member = storage.member.clone();
    let server = Server {
        listen: "127.0.0.1:0".into(),
        instance: member.id,
        cluster: member.cluster,
        reset_key: member.reset_key,
        roles: &[Role::Client],
    };
    let endpoint = Endpoint::server(&Net::Os, identity, server).await.unwrap();
    let me = Me { member, address: endpoint.local_addr().to_string() };
    let peers = Arc::new(WirePeers::new(endpoint.clone()));
    let started = Runtime::scope(1, Front::start(me, &storage, peers)).await;
    let (front, _) = started.unwrap();
    let address = endpoint.local_addr().to_string();
    tokio::spawn(serve(endpoint, Cutting { front, cuts }));
    address
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
