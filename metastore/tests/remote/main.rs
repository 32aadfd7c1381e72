//! How a client finds the leader, with members that answer as they are told.

#![expect(clippy::unwrap_used, reason = "tests")]

mod fake;
mod watches;

use std::env;
use std::sync::Arc;
use std::time::Duration;

use fake::{Cluster, Requests};
use inkfast_metastore::{Error, Metastore, RemoteMetastore, Scan, Transaction};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

/// More than anything here takes, on a machine that is busy.
const LONG: Duration = Duration::from_secs(20);
/// What finding a new leader may take.
const SOON: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_request_goes_where_the_member_says() {
    let cluster = Cluster::start(3).await;
    cluster.elect(2, 5);
    let store = cluster.client_of_all(LONG);
    store.commit(put("key")).await.unwrap();
    assert_eq!(requests(&cluster), [1, 0, 1]);
    // From now on it is known.
    store.get("key").await.unwrap().unwrap();
    assert_eq!(requests(&cluster), [1, 0, 2]);
    assert_eq!(statuses(&cluster), [0; 3], "nobody had to be asked");
}

#[tokio::test]
async fn a_leader_outside_of_the_list_is_found() {
    let cluster = Cluster::start(2).await;
    cluster.elect(1, 1);
    let store = cluster.client(&[0], LONG);
    store.commit(put("key")).await.unwrap();
    assert_eq!(requests(&cluster), [1, 1]);
}

#[tokio::test]
async fn a_leader_that_is_not_known_yet_is_waited_for() {
    let cluster = Cluster::start(3).await;
    (0..3).for_each(|member| cluster.lose_leader(member, 4));
    let store = cluster.client_of_all(LONG);
    let electing = async {
        cluster.members[1].statuses_reach(5).await;
        cluster.elect(1, 5);
        Instant::now()
    };
    let (committed, elected) = tokio::join!(store.commit(put("key")), electing);
    committed.unwrap();
    assert_within(Duration::from_millis(600), elected);
    let asked = requests(&cluster).iter().sum::<usize>();
    assert!(asked < 6, "{asked} requests: the search is for the statuses");
}

#[tokio::test]
async fn a_silent_leader_is_replaced() {
    let cluster = Cluster::start(3).await;
    cluster.elect(0, 1);
    let store = cluster.client_of_all(LONG);
    store.commit(put("before")).await.unwrap();
    cluster.elect(1, 2);
    cluster.members[0].hang();
    let asked = Instant::now();
    store.commit(put("after")).await.unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(400), "it had time to answer");
    assert_within(SOON, asked);
    assert_eq!(requests(&cluster), [2, 1, 0]);
    // Now it is known to lead.
    store.commit(put("after")).await.unwrap();
    assert_eq!(requests(&cluster), [2, 2, 0]);
}

#[tokio::test]
async fn what_a_silent_leader_did_is_not_done_again() {
    let cluster = Cluster::start(2).await;
    cluster.elect(0, 1);
    let store = cluster.client_of_all(LONG);
    let before = cluster.store.commit(put("other")).await.unwrap();
    cluster.members[0].does(Requests::Swallowed);
    let electing = async {
        cluster.members[0].requests_reach(1).await;
        cluster.elect(1, 2);
        cluster.members[0].hang();
    };
    let (committed, ()) = tokio::join!(store.commit(put("key")), electing);
    committed.unwrap();
    let version = cluster.store.get("key").await.unwrap().unwrap().version;
    assert_eq!(version.get(), before.get() + 1);
    let next = cluster.store.commit(put("other")).await.unwrap();
    assert_eq!(next.get(), version.get() + 1, "the same request was known when it came again");
}

#[tokio::test]
async fn a_lost_leader_is_replaced_at_once() {
    let cluster = Cluster::start(5).await;
    cluster.elect(0, 1);
    let store = cluster.client_of_all(LONG);
    store.commit(put("before")).await.unwrap();
    for leader in 1..4 {
        cluster.elect(leader, 1 + leader as u64);
        cluster.members[leader - 1].endpoint.close("it dies").await;
        let asked = Instant::now();
        store.commit(put("after")).await.unwrap();
        assert_within(Duration::from_millis(400), asked);
    }
}

/// Only a dead one was configured; the way back is what was learned before.
#[tokio::test]
async fn learned_members_are_found_after_an_outage_of_all() {
    let cluster = Cluster::start(3).await;
    cluster.elect(1, 1);
    let store = cluster.client(&[0], LONG);
    store.commit(put("before")).await.unwrap();
    cluster.members[0].endpoint.close("it dies").await;
    (1..3).for_each(|member| cluster.members[member].hang());
    let outage = async {
        cluster.members[1].statuses_reach(12).await;
        cluster.elect(2, 2);
    };
    let (committed, ()) = tokio::join!(store.commit(put("after")), outage);
    committed.unwrap();
}

#[tokio::test]
async fn members_that_point_at_each_other_end_with_an_error_in_time() {
    let cluster = Cluster::start(2).await;
    cluster.follow(0, 1, 1);
    cluster.follow(1, 0, 1);
    let patience = Duration::from_secs(1);
    let store = cluster.client_of_all(patience);
    let asked = Instant::now();
    let error = store.commit(put("key")).await.unwrap_err();
    let Error::Unavailable { why } = &error else { panic!("nothing was done: {error}") };
    assert!(cluster.members.iter().all(|it| why.contains(&it.address)), "{why}");
    assert!(asked.elapsed() >= patience, "{:?}", asked.elapsed());
    assert_within(SOON, asked);
    let asked = requests(&cluster).iter().sum::<usize>();
    assert!(asked <= 25, "{asked} requests in {patience:?}");
}

#[tokio::test]
async fn of_two_that_claim_to_lead_the_one_of_the_later_term_is_believed() {
    let cluster = Cluster::start(3).await;
    // The first is cut off and does not know that it was deposed.
    cluster.elect(2, 7);
    cluster.follow(0, 0, 6);
    cluster.members[0].does(Requests::Unanswered);
    let store = cluster.client_of_all(LONG);
    for _ in 0..3 {
        store.commit(put("key")).await.unwrap();
    }
    assert_eq!(requests(&cluster), [1, 0, 3], "it was believed once");
    // Only the old one is heard, and what it says draws nobody there.
    let before = cluster.members[0].requests();
    cluster.members[1].hang();
    cluster.members[2].hang();
    let asked = cluster.members[0].statuses() + 3;
    tokio::select! {
        committed = store.commit(put("key")) => panic!("{committed:?}"),
        () = cluster.members[0].statuses_reach(asked) => {}
    }
    assert_eq!(cluster.members[0].requests(), before);
}

#[tokio::test]
async fn it_is_unknown_what_became_of_a_request_that_may_have_been_taken() {
    let cluster = Cluster::start(2).await;
    cluster.elect(0, 1);
    cluster.members[0].does(Requests::Swallowed);
    let store = cluster.client_of_all(Duration::from_secs(1));
    let error = store.commit(put("key")).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    cluster.store.get("key").await.unwrap().unwrap();
    // There is no outcome of a read.
    cluster.members[0].does(Requests::Unanswered);
    let error = store.get("key").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");

    let nobody = RemoteMetastore::new(
        &cluster.client_endpoint(),
        vec!["127.0.0.1:1".into()],
        Duration::from_secs(1),
    );
    let error = nobody.commit(put("key")).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_thousand_requests_search_as_one() {
    const REQUESTS: usize = 1000;
    let cluster = Cluster::start(3).await;
    cluster.elect(0, 1);
    let store = Arc::new(cluster.client_of_all(LONG));
    store.commit(put("before")).await.unwrap();
    cluster.lose_leader(1, 1);
    cluster.lose_leader(2, 1);
    cluster.members[0].hang();
    let begun = Instant::now();
    let mut commits = JoinSet::new();
    for number in 0..REQUESTS {
        let store = store.clone();
        commits.spawn(async move { store.commit(put(&format!("key/{number}"))).await });
    }
    cluster.members[1].statuses_reach(10).await;
    cluster.elect(2, 2);
    cluster.members[0].hang();
    for committed in commits.join_all().await {
        committed.unwrap();
    }
    let rounds = usize::try_from(begun.elapsed().as_millis() / 100).unwrap() + 1;
    assert!(statuses(&cluster).iter().all(|asked| *asked <= rounds), "{:?}", statuses(&cluster));
    assert!(cluster.members[1].requests() == 0, "nobody guesses");
    assert!(cluster.members[2].requests() <= REQUESTS, "each goes there once");
}

#[tokio::test]
async fn a_stale_read_is_answered_by_anyone() {
    let cluster = Cluster::start(3).await;
    cluster.store.commit(put("key")).await.unwrap();
    cluster.lose_leader(1, 1);
    let store = cluster.client_of_all(LONG);
    store.get_stale("key").await.unwrap().unwrap();
    assert_eq!(requests(&cluster), [1, 1, 0]);
    let page = store.scan_stale(Scan::new("")).await.unwrap();
    assert_eq!(page.entries.len(), 1);
    assert_eq!(requests(&cluster), [1, 2, 0], "the one that answered is asked first");
    assert_eq!(store.cluster().await, Ok(Uuid::from_u128(1)));
}

#[tokio::test]
async fn the_cluster_is_known_without_a_leader() {
    let cluster = Cluster::start(1).await;
    cluster.lose_leader(0, 1);
    let store = cluster.client_of_all(LONG);
    assert_eq!(store.cluster().await, Ok(Uuid::from_u128(1)));
}

#[tokio::test]
async fn the_status_is_of_all_members_known_and_named() {
    let cluster = Cluster::start(3).await;
    cluster.elect(1, 3);
    cluster.members[2].endpoint.close("it dies").await;
    let store = cluster.client(&[0], LONG);
    let mut all = store.status().await;
    assert_eq!(all.len(), 3);
    let (first, status) = all.remove(0);
    assert_eq!(
        (&first, status.unwrap()),
        (&cluster.members[0].address, cluster.status(0, 3, Some(cluster.members[1].id)))
    );
    for (address, status) in all {
        assert_eq!(status.is_ok(), address == cluster.members[1].address, "{status:?}");
    }
    // It has learned who leads.
    store.commit(put("key")).await.unwrap();
    assert_eq!(cluster.members[0].requests(), 0);
}

#[tokio::test]
async fn changes_of_the_members_go_to_the_leader() {
    let cluster = Cluster::start(2).await;
    cluster.elect(1, 1);
    let store = cluster.client_of_all(LONG);
    assert_eq!(store.add_member("127.0.0.1:7000").await, Ok(()));
    assert_eq!(store.transfer_leader(Uuid::new_v4()).await, Ok(()));
    assert_eq!(requests(&cluster), [1, 4], "and to find it");
    assert_eq!(store.remove_member(cluster.members[0].id).await, Ok(()));
    assert_eq!(requests(&cluster), [1, 7], "and to see that it is a member");
    let (gone, unknown) = (cluster.members[0].id, Uuid::new_v4());
    for id in [gone, unknown] {
        let refused = store.remove_member(id).await.unwrap_err();
        assert!(matches!(&refused, Error::BadRequest { why } if why.contains(&id.to_string())));
    }
    let refused = store.add_member("nowhere").await.unwrap_err();
    assert!(matches!(refused, Error::BadRequest { .. }), "{refused}");
}

#[tokio::test]
async fn a_removal_whose_answer_was_lost_is_done() {
    let cluster = Cluster::start(3).await;
    cluster.elect(1, 1);
    cluster.members[1].does(Requests::Swallowed);
    let store = cluster.client_of_all(LONG);
    let gone = cluster.members[0].id;
    let electing = async {
        let mut removed = cluster.removed.subscribe();
        removed.wait_for(|removed| removed.contains(&gone)).await.unwrap();
        cluster.elect(2, 2);
        cluster.members[1].hang();
    };
    let (removed, ()) = tokio::join!(timeout(LONG, store.remove_member(gone)), electing);
    assert_eq!(removed.unwrap(), Ok(()), "the next leader does not know it any more");
}

#[tokio::test]
async fn a_backup_comes_whole_or_says_that_it_does_not() {
    let cluster = Cluster::start(2).await;
    cluster.elect(1, 1);
    let store = cluster.client_of_all(LONG);
    let mut backup = store.backup().await.unwrap();
    assert_eq!(backup.next().await.unwrap().unwrap(), "one");
    assert_eq!(backup.next().await.unwrap().unwrap(), "two");
    assert_eq!(backup.next().await, Ok(None));
    assert_eq!(backup.next().await, Ok(None));

    cluster.members[1].does(Requests::Swallowed);
    let mut backup = store.backup().await.unwrap();
    backup.next().await.unwrap().unwrap();
    backup.next().await.unwrap().unwrap();
    let error = backup.next().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
}

/// Panics if it took longer than that, where the time of tests is said to matter.
fn assert_within(limit: Duration, since: Instant) {
    let took = since.elapsed();
    assert!(env::var_os("INKFAST_LONG").is_none() || took < limit, "{took:?}");
}

fn put(key: &str) -> Transaction {
    Transaction::new().put(key, "")
}

fn requests(cluster: &Cluster) -> Vec<usize> {
    cluster.members.iter().map(fake::Member::requests).collect()
}

fn statuses(cluster: &Cluster) -> Vec<usize> {
    cluster.members.iter().map(fake::Member::statuses).collect()
}
