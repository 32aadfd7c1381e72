//! Watches over real QUIC: many of them, unread ones, and restarts.

use std::time::Duration;

use inkfast_metastore::watches::RECENT_BYTES_MAX;
use inkfast_metastore::{
    Change, Error, Metastore, RemoteMetastore, Scan, Transaction, VALUE_BYTES_MAX, Watch,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{DEADLINE, Place};

#[tokio::test]
async fn of_two_thousand_watches_each_is_told_its_own() {
    const WATCHES: usize = 2000;
    let place = Place::new();
    let server = place.start().await;
    let store = std::sync::Arc::new(place.client(&server));
    let mut told = JoinSet::new();
    for number in 0..WATCHES {
        let mut watch = watch_now(&store, &format!("{number:04}/")).await;
        told.spawn(async move {
            let changes = timeout(DEADLINE, watch.next()).await.unwrap().unwrap();
            (number, keys(&changes))
        });
    }
    let mut commits = JoinSet::new();
    for number in 0..WATCHES {
        let store = store.clone();
        let put = Transaction::new().put(format!("{number:04}/key"), "");
        commits.spawn(async move { store.commit(put).await.unwrap() });
    }
    commits.join_all().await;
    for (number, keys) in told.join_all().await {
        assert_eq!(keys, [format!("{number:04}/key")]);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_restart_costs_a_watch_nothing_or_it_says_so() {
    let mut place = Place::new();
    let mut server = place.start().await;
    place.listen = server.address().to_string();
    let store = place.client(&server);
    let mut watch = watch_now(&store, "key/").await;
    for round in 0..3 {
        let mut behind = watch_now(&store, "key/").await;
        put(&store, &format!("key/{round}")).await;
        assert_eq!(keys(&next(&mut watch).await), [format!("key/{round}")]);
        // It waits over the restart.
        let (told, restarted) = tokio::join!(next(&mut watch), async {
            server.stop().await;
            let server = place.start().await;
            put(&store, &format!("key/{round}/again")).await;
            server
        });
        server = restarted;
        assert_eq!(keys(&told), [format!("key/{round}/again")]);
        let late = timeout(DEADLINE, behind.next()).await.unwrap();
        assert_eq!(late, Err(Error::Compacted), "what it was not told is not remembered");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_watch_that_found_nobody_goes_on_later() {
    let mut place = Place::new();
    let server = place.start().await;
    place.listen = server.address().to_string();
    let patience = Duration::from_secs(1);
    let store = RemoteMetastore::new(&place.endpoint(), vec![place.listen.clone()], patience);
    let mut watch = watch_now(&store, "key").await;
    server.stop().await;
    let asked = Instant::now();
    let error = timeout(DEADLINE, watch.next()).await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Unavailable { why } if why.contains(&place.listen)), "{error}");
    assert!(asked.elapsed() >= patience / 2, "after {:?}", asked.elapsed());

    let server = place.start().await;
    put(&place.client(&server), "key").await;
    let told = async {
        loop {
            match watch.next().await {
                Ok(told) => break told,
                Err(error) => assert!(matches!(error, Error::Unavailable { .. }), "{error}"),
            }
        }
    };
    assert_eq!(keys(&timeout(DEADLINE, told).await.unwrap()), ["key"]);
    server.stop().await;
}

/// Nothing is told of an idle prefix for longer than that timeout.
#[tokio::test]
async fn an_idle_watch_is_waited_for_beyond_the_timeout_of_requests() {
    let mut place = Place::new();
    let server = place.start().await;
    place.listen = server.address().to_string();
    let patience = Duration::from_secs(2);
    let store = RemoteMetastore::new(&place.endpoint(), vec![place.listen.clone()], patience);
    let mut watch = watch_now(&store, "key").await;
    let waited = timeout(patience * 3 / 2, watch.next()).await;
    assert!(waited.is_err(), "{waited:?}");

    // The same once it has been taken again.
    server.stop().await;
    let server = place.start().await;
    let waited = timeout(patience * 3 / 2, watch.next()).await;
    assert!(waited.is_err(), "{waited:?}");
    put(&store, "key").await;
    assert_eq!(keys(&next(&mut watch).await), ["key"]);
    server.stop().await;
}

#[tokio::test]
async fn a_watch_begins_at_another_member_when_one_does_not_answer() {
    let place = Place::new();
    let server = place.start().await;
    let silent = place.start_silent(server.cluster()).await;
    let now = put(&place.client(&server), "key").await;
    let addresses = [silent.local_addr(), server.address()].map(|it| it.to_string());
    let store = RemoteMetastore::new(&place.endpoint(), addresses.to_vec(), DEADLINE);
    let mut watch = store.watch("key", now).await.unwrap();
    put(&place.client(&server), "key/2").await;
    assert_eq!(keys(&next(&mut watch).await), ["key/2"]);
    silent.close("the test is over").await;
    server.stop().await;
}

/// Watches that were asked once and are not read since then: each holds one answer at most.
#[tokio::test]
async fn a_few_unread_watches_delay_nobody_and_are_told_when_it_is_too_late() {
    const UNREAD: usize = 16;
    let place = Place::new();
    let server = place.start().await;
    let store = place.client(&server);
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        let mut watch = watch_now(&store, "large/").await;
        assert!(timeout(Duration::from_millis(1), watch.next()).await.is_err());
        unread.push(watch);
    }
    let mut read = watch_now(&store, "large/").await;
    let large = vec![7; VALUE_BYTES_MAX];
    for round in 0..RECENT_BYTES_MAX / VALUE_BYTES_MAX + 2 {
        let put = Transaction::new().put(format!("large/{}", round % 2), large.clone());
        let version = store.commit(put).await.unwrap();
        let told = next(&mut read).await;
        assert_eq!((told.len(), told[0].revision), (1, version));
    }
    for mut watch in unread {
        assert_eq!(keys(&next(&mut watch).await), ["large/0"], "the first is on its way already");
        let late = timeout(DEADLINE, watch.next()).await.unwrap();
        assert_eq!(late, Err(Error::Compacted));
    }
    server.stop().await;
}

async fn put(store: &RemoteMetastore, key: &str) -> inkfast_metastore::Version {
    store.commit(Transaction::new().put(key, "")).await.unwrap()
}

async fn watch_now(store: &RemoteMetastore, prefix: &str) -> Watch {
    let page = store.scan(Scan::new(prefix)).await.unwrap();
    store.watch(prefix, page.revision).await.unwrap()
}

async fn next(watch: &mut Watch) -> Vec<Change> {
    timeout(DEADLINE, watch.next()).await.unwrap().unwrap()
}

fn keys(changes: &[Change]) -> Vec<String> {
    changes.iter().map(|change| change.key.clone()).collect()
}
