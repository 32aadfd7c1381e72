//! Watches over changes of the leader.

use std::sync::Arc;
use std::time::Duration;

use inkfast_metastore::{Metastore, RemoteMetastore, Scan, Watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::fake::Cluster;
use super::{LONG, SOON, assert_within, put, statuses};

/// Nothing else is asked for in the process, and the old leader just hangs.
#[tokio::test]
async fn an_idle_watch_moves_when_the_leader_hangs() {
    let cluster = Cluster::start(3).await;
    cluster.elect(0, 1);
    let store = cluster.client_of_all(LONG);
    let mut watch = watch_now(&store).await;
    let changing = async {
        cluster.elect(1, 2);
        cluster.members[0].hang();
        cluster.members[1].watches_reach(1).await;
        cluster.store.commit(put("key")).await.unwrap()
    };
    let (told, version) = tokio::join!(timeout(LONG, watch.next()), changing);
    assert_eq!(told.unwrap().unwrap()[0].revision, version);
}

#[tokio::test]
async fn a_watch_goes_on_at_the_leader_that_it_is_told() {
    let cluster = Cluster::start(2).await;
    cluster.elect(1, 1);
    let store = cluster.client_of_all(LONG);
    let mut watch = watch_now(&store).await;
    for round in 0..4 {
        let leader = round % 2;
        let changing = async {
            cluster.elect(leader, 2 + round as u64);
            let at = Instant::now();
            (cluster.store.commit(put("key")).await.unwrap(), at)
        };
        let (told, (version, at)) = tokio::join!(timeout(LONG, watch.next()), changing);
        let told = told.unwrap().unwrap();
        assert_eq!((told.len(), told[0].revision), (1, version), "each change once");
        assert_within(SOON, at);
    }
}

#[tokio::test]
async fn breaking_off_a_wait_does_not_keep_a_watch_from_moving() {
    let cluster = Cluster::start(2).await;
    cluster.elect(0, 1);
    let store = cluster.client_of_all(LONG);
    let mut watch = watch_now(&store).await;
    cluster.elect(1, 2);
    cluster.members[0].hang();
    let version = cluster.store.commit(put("key")).await.unwrap();
    let begun = Instant::now();
    let told = loop {
        assert!(begun.elapsed() < LONG, "it never moves");
        if let Ok(told) = timeout(Duration::from_millis(1), watch.next()).await {
            break told.unwrap();
        }
    };
    assert_eq!(told[0].revision, version);
}

#[tokio::test]
async fn a_thousand_watches_move_without_a_storm() {
    const WATCHES: usize = 1000;
    let cluster = Cluster::start(3).await;
    cluster.elect(0, 1);
    let store = Arc::new(cluster.client_of_all(LONG));
    let mut watches = JoinSet::new();
    for _ in 0..WATCHES {
        let store = store.clone();
        watches.spawn(async move {
            let mut watch = watch_now(&store).await;
            watch.next().await.unwrap()
        });
    }
    cluster.members[0].watches_reach(WATCHES).await;
    let begun = Instant::now();
    cluster.elect(2, 2);
    cluster.members[0].hang();
    cluster.members[2].watches_reach(WATCHES).await;
    assert!(cluster.members[1].requests() < WATCHES / 10, "they know where to go");
    let rounds = usize::try_from(begun.elapsed().as_millis() / 100).unwrap() + 2;
    assert!(statuses(&cluster).iter().all(|asked| *asked <= rounds), "{:?}", statuses(&cluster));
    let version = cluster.store.commit(put("key")).await.unwrap();
    for told in timeout(LONG, watches.join_all()).await.unwrap() {
        assert_eq!(told[0].revision, version);
    }
}

async fn watch_now(store: &RemoteMetastore) -> Watch {
    let page = store.scan(Scan::new("key")).await.unwrap();
    store.watch("key", page.revision).await.unwrap()
}
