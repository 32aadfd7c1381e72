//! What was promised under one leader holds under the next: watches, leases, registrations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use inkfast_metastore::{Change, Error, Metastore, Scan, Transaction, Version};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::load::{PATIENCE, is_long, until};
use crate::metastores::loads::Creations;
use crate::metastores::{Member, Metastores};

/// The pause between two writes that a watch is to tell of.
const PAUSE: Duration = Duration::from_millis(5);

/// How many leaders die in a test.
fn deaths() -> u32 {
    if is_long() { 20 } else { 3 }
}

/// Kills a leader, and brings it back when another has been found.
fn replace_leader(cluster: &mut Metastores) {
    let leader = cluster.leader();
    cluster.members[leader].kill();
    cluster.leader();
    cluster.members[leader].restart();
    cluster.wait_all_settled();
}

#[test]
fn no_registration_vanishes() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let store = library.store();
    let prefix = "registrations/";
    let page = library.run(store.scan(Scan::new(prefix))).unwrap();
    assert_eq!(page.entries.len(), 3);
    let vanished = library.spawn(async move {
        let mut watch = store.watch(prefix, page.revision).await.unwrap();
        loop {
            let changes = watch.next().await.unwrap();
            let vanished = changes.into_iter().find(|change| change.now.is_none());
            if let Some(vanished) = vanished {
                return vanished;
            }
        }
    });
    // Each needs all three.
    let creations = Creations::start(&library, 1);
    for _ in 0..deaths() {
        replace_leader(&mut cluster);
        creations.go_on(10);
    }
    creations.stop();
    if vanished.is_finished() {
        panic!("{:?} vanished", library.run(vanished));
    }
    // The watch was not idle for nothing: it tells of one that stops.
    drop(cluster.bookies.pop());
    let told = library.run(async { timeout(PATIENCE, vanished).await });
    let told = told.expect("it is told").unwrap();
    assert!(told.key.starts_with(prefix), "{told:?}");
}

#[test]
fn a_lease_that_is_kept_outlives_its_leaders_and_others_end() {
    let mut cluster = Metastores::start(3, 0);
    let library = cluster.library();
    let store = library.store();
    let put = |key: &'static str, ttl| {
        library.run(async {
            let lease = store.grant_lease(ttl).await.unwrap();
            store.commit(Transaction::new().put_leased(key, "", lease)).await.unwrap();
            lease
        })
    };
    let kept = put("leases/kept", Duration::from_secs(5));
    let keeper = library.store();
    let keeping = library.spawn(async move {
        loop {
            // Whoever keeps it learns of its end here.
            keeper.keep_alive(kept).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
    });
    let exists = |key| library.run(store.get(key)).unwrap().is_some();
    for _ in 0..deaths() {
        put("leases/left", Duration::from_secs(2));
        replace_leader(&mut cluster);
        until("ended", || !exists("leases/left"));
        assert!(exists("leases/kept"));
        assert!(!keeping.is_finished(), "{:?}", library.run(keeping));
    }
    // Nothing but its keeper has kept it.
    keeping.abort();
    until("ended", || !exists("leases/kept"));
    let late = library.run(store.keep_alive(kept));
    assert_eq!(late, Err(Error::LeaseNotFound));
}

#[test]
fn a_watch_goes_on_under_the_next_leader() {
    let mut cluster = Metastores::start(3, 0);
    let library = cluster.library();
    let store = library.store();
    let start = library.run(store.scan(Scan::new("watched/"))).unwrap().revision;
    // One knows all members, the others one each.
    let of_all = library.spawn(watched(library.store(), start));
    let of_one = |member: &Member| {
        let store = library.store_of(&[member.address], inkfast_metastore::DEFAULT_TIMEOUT);
        library.spawn(watched(store, start))
    };
    let of_one: Vec<_> = cluster.members.iter().map(of_one).collect();
    let stopped = Arc::new(AtomicBool::new(false));
    let writing = library.spawn(write(library.store(), Arc::clone(&stopped)));
    for _ in 0..deaths() {
        replace_leader(&mut cluster);
        let follower = cluster.followers()[0];
        cluster.change("transfer-leader", follower).succeeded();
    }
    stopped.store(true, Ordering::Relaxed);
    let written = library.run(writing).unwrap();
    assert!(written.len() > 100, "only {} writes", written.len());
    let end = |watch: JoinHandle<_>| -> Option<BTreeMap<_, _>> {
        library.run(async { timeout(PATIENCE, watch).await }).expect("it has an end").unwrap()
    };
    let told = end(of_all).expect("there was always one who remembered");
    assert!(told == written, "{} changes told, {} made", told.len(), written.len());
    let of_one: Vec<_> = of_one.into_iter().filter_map(end).collect();
    assert!(!of_one.is_empty(), "no watch went on that knew one member at first");
    for told in of_one {
        assert!(told == written, "{} changes told, {} made", told.len(), written.len());
    }
}

/// Writes one new key after the other; gives them by the revisions at which they were written.
async fn write(store: Arc<dyn Metastore>, stopped: Arc<AtomicBool>) -> BTreeMap<Version, String> {
    let mut written = BTreeMap::new();
    for n in 0.. {
        let is_last = stopped.load(Ordering::Relaxed);
        let key = format!("watched/{}{n:08}", if is_last { "last-" } else { "" });
        let version = store.commit(Transaction::new().put(&key, "")).await.unwrap();
        written.insert(version, key);
        if is_last {
            break;
        }
        sleep(PAUSE).await;
    }
    written
}

/// Gives what a watch tells until the last key is written; none if it says that it cannot tell
/// all. Panics if it goes back.
async fn watched(store: Arc<dyn Metastore>, start: Version) -> Option<BTreeMap<Version, String>> {
    let mut watch = store.watch("watched/", start).await.unwrap();
    let mut told = BTreeMap::new();
    loop {
        let changes = match watch.next().await {
            Ok(changes) => changes,
            // The one member that it knows is away; it goes on where it was.
            Err(Error::Unavailable { .. } | Error::TimedOut { .. }) => continue,
            Err(Error::Compacted) => return None,
            Err(error) => panic!("{error}"),
        };
        for Change { revision, key, now } in changes {
            assert!(now.is_some(), "{key} is gone");
            let last = told.last_key_value().map(|(&last, _)| last);
            assert!(last < Some(revision), "{revision} was told after {last:?}");
            let is_last = key.contains("last-");
            told.insert(revision, key);
            if is_last {
                return Some(told);
            }
        }
    }
}
