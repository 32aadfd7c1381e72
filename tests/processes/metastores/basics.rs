//! Three processes do what one did, whichever of them is asked.

use crate::cluster::{Client, lines};
use crate::load::{rounds, until};
use crate::metastores::Metastores;
use crate::metastores::status::Status;

use inkfast_metastore::conformance;

#[test]
fn three_members_serve_whoever_is_asked() {
    let cluster = Metastores::start(3, 3);
    let settled = cluster.wait_all_settled();
    assert!(settled.term > 0 && settled.revision.is_some(), "{settled:?}");
    assert!(settled.members.iter().all(|m| m.term.is_some() && m.log >= m.applied), "{settled:?}");
    assert_all_works(&cluster.client);
    for member in 0..3 {
        assert_all_works(&cluster.client_of(&[member]));
    }
    // What one has answered, all know.
    for member in 0..3 {
        let (one, next) = (cluster.client_of(&[member]), cluster.client_of(&[(member + 1) % 3]));
        let ledger = one.write(&[], lines(0..10));
        assert!(next.show(&ledger).contains("closed"));
        next.run(&["ledger", "delete", &ledger]).succeeded();
        one.run(&["ledger", "read", &ledger]).failed(1);
    }
}

#[test]
fn three_members_keep_the_contract() {
    let cluster = Metastores::start(3, 0);
    let library = cluster.library();
    let store = library.store();
    library.run(conformance::run(store.as_ref()));
    for follower in cluster.followers() {
        let patience = inkfast_metastore::DEFAULT_TIMEOUT;
        let store = library.store_of(&[cluster.members[follower].address], patience);
        library.run(conformance::increments_are_not_lost(store.as_ref()));
        library.run(conformance::a_watch_tells_all_of_its_prefix(store.as_ref()));
    }
}

#[test]
fn two_may_join_at_once() {
    let mut cluster = Metastores::found(3, 3);
    let founder = [cluster.members[0].address];
    cluster.members[1].spawn(&founder);
    cluster.members[2].spawn(&founder);
    cluster.members[1].wait_ready();
    cluster.members[2].wait_ready();
    cluster.wait_settled(&[0, 1, 2]);
    assert_all_works(&cluster.client);
}

#[test]
fn a_dead_address_among_those_of_a_client_does_no_harm() {
    let mut cluster = Metastores::start(3, 3);
    for _ in 0..rounds(5) {
        let (leader, followers) = (cluster.leader(), cluster.followers());
        // First a follower that dies, then the leader.
        for (dead, live) in [(followers[0], followers[1]), (leader, followers[0])] {
            cluster.members[dead].kill();
            assert_all_works(&cluster.client_of(&[dead, live]));
            assert_all_works(&cluster.client_of(&[live, dead]));
            assert_all_works(&cluster.client_of(&[live]));
            cluster.members[dead].restart();
            cluster.wait_all_settled();
        }
    }
}

#[test]
fn a_cluster_that_was_killed_comes_back() {
    let mut cluster = Metastores::start(3, 3);
    let ledger = cluster.client.write(&[], lines(0..100));
    let before = cluster.wait_all_settled();
    cluster.members.iter_mut().for_each(|member| member.kill());
    cluster.client.run(&["ledger", "show", &ledger]).failed(1);
    cluster.client.run(&["metastore", "status"]).failed(1);

    // It serves its port, and waits for another.
    cluster.members[2].restart();
    let status = Status::ask(&cluster.client_of(&[2])).expect("it knows its cluster");
    assert!(status.cluster == before.cluster && status.members.len() == 3, "{status:?}");
    assert!(status.leader().is_none(), "{status:?}");
    cluster.client.run(&["ledger", "show", &ledger]).failed(1);

    cluster.members[0].restart();
    until("served by two", || cluster.client.run(&["ledger", "show", &ledger]).status == Some(0));
    cluster.members[1].restart();
    let after = cluster.wait_all_settled();
    for address in cluster.addresses() {
        assert_eq!(before.at(address).id, after.at(address).id, "a member is its directory");
    }
    assert!(after.revision >= before.revision && after.term > before.term, "{after:?}");
    assert!(cluster.client.read(&ledger) == lines(0..100), "other bytes came back");
    until("usable", || {
        let mut write = cluster.client.start(&["ledger", "write"]);
        write.end_input();
        write.outcome().status == Some(0)
    });
    assert_all_works(&cluster.client);
}

#[test]
fn the_table_names_all_members_and_the_leader() {
    let mut cluster = Metastores::start(3, 0);
    let settled = cluster.wait_all_settled();
    let table = |client: &Client| {
        let outcome = client.run(&["metastore", "status"]);
        (outcome.status, String::from_utf8(outcome.stdout).unwrap())
    };
    let (status, shown) = table(&cluster.client);
    assert_eq!(status, Some(0), "{shown}");
    for member in &settled.members {
        let is_its = |line: &&str| line.contains(&member.address.to_string());
        let line = shown.lines().find(is_its).unwrap_or_else(|| panic!("{shown}"));
        assert!(line.contains(&member.role) && line.contains(&member.id), "{shown}");
    }
    // What is known is told, also where it is not good.
    let leader = cluster.leader();
    let left = cluster.followers()[0];
    for member in (0..3).filter(|&member| member != left) {
        cluster.members[member].kill();
    }
    let left = cluster.client_of(&[left]);
    until("known to be without a leader", || table(&left).0 == Some(1));
    let (_, shown) = table(&left);
    assert!(shown.contains(&cluster.members[leader].address.to_string()), "{shown}");
}

/// Panics unless ledgers are written, read, recovered, shown, listed and deleted.
fn assert_all_works(client: &Client) {
    let ledger = client.write(&[], lines(0..200));
    assert!(client.read(&ledger) == lines(0..200), "other bytes came back");
    let open = client.write(&["--leave-open"], lines(0..50));
    assert_eq!(client.recover(&open), 49);
    assert!(client.show(&open).contains("closed"));
    let list = || String::from_utf8(client.run(&["ledger", "list"]).succeeded()).unwrap();
    let is_listed =
        |ledger| list().lines().any(|line| line.split_whitespace().next() == Some(ledger));
    assert!(is_listed(&ledger) && is_listed(&open), "{}", list());
    client.run(&["ledger", "delete", &ledger]).succeeded();
    assert!(!is_listed(&ledger), "{}", list());
    client.run(&["ledger", "read", &ledger]).failed(1);
}
