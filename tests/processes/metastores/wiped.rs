//! A member is its directory: an empty one makes another, wherever it is.

use std::fs;

use crate::cluster::{PLAIN, lines};
use crate::load::{Load, until};
use crate::metastores::Metastores;
use crate::metastores::loads::{Counters, Creations, assert_known};
use crate::metastores::status::Status;

#[test]
fn a_wiped_member_is_not_taken_for_the_one_that_it_was() {
    let mut cluster = Metastores::start(3, 3);
    let ours = cluster.wait_all_settled();
    let mut load = Load::start(&cluster.client, PLAIN);
    load.go_on(100);
    let wiped = cluster.followers()[0];
    let others: Vec<_> = (0..3).filter(|&member| member != wiped).collect();
    let id = ours.at(cluster.members[wiped].address).id.clone();
    cluster.members[wiped].kill();
    fs::remove_dir_all(cluster.members[wiped].dir()).unwrap();

    // It founds a cluster of its own, with which the others have nothing to do.
    cluster.members[wiped].start(&[]);
    let strange = Status::ask(&cluster.client_of(&[wiped])).expect("it is one");
    assert!(strange.cluster != ours.cluster && strange.members.len() == 1, "{strange:?}");
    assert_ne!(strange.members[0].id, id);
    let refused = Status::ask(&cluster.client_of(&others)).expect("they are one");
    assert!(!refused.at(cluster.members[wiped].address).reachable, "{refused:?}");
    assert!(refused.cluster == ours.cluster && refused.leader().is_some(), "{refused:?}");

    // Its vote does not count: with one more gone there is no majority.
    let client = cluster.client_of(&others);
    let ledger = client.write(&[], lines(0..10));
    cluster.members[others[0]].kill();
    client.run(&["ledger", "show", &ledger]).failed(1);
    cluster.members[others[0]].restart();
    until("served", || client.run(&["ledger", "show", &ledger]).status == Some(0));
    cluster.members[wiped].running().assert_runs();
    let (written, bytes) = load.close();
    assert!(client.read(&written) == bytes, "other bytes came back");
}

#[test]
fn a_wiped_member_joins_as_a_new_one() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    let before = cluster.wait_all_settled();
    let wiped = cluster.followers()[0];
    let address = cluster.members[wiped].address;
    let old = before.at(address).id.clone();
    cluster.members[wiped].kill();
    fs::remove_dir_all(cluster.members[wiped].dir()).unwrap();
    cluster.join(wiped);

    let status = Status::ask(&cluster.client).expect("there is a cluster");
    assert_eq!(status.members.len(), 4, "{status:?}");
    let (past, present): (Vec<_>, Vec<_>) = status
        .members
        .iter()
        .filter(|member| member.address == address)
        .partition(|member| member.id == old);
    assert!(past.len() == 1 && present.len() == 1, "{status:?}");
    assert!(!past[0].reachable && present[0].reachable, "{status:?}");
    creations.go_on(20);

    // The address does not say which of the two.
    for command in ["remove-member", "transfer-leader"] {
        let words = cluster.change(command, wiped).failed(1);
        let new = &present[0].id;
        assert!(words.contains(&format!("{old}, which does not answer")), "{words}");
        assert!(words.contains(&format!("{new}, which answers")), "{words}");
    }
    assert_eq!(Status::ask(&cluster.client).map(|status| status.members.len()), Some(4));

    cluster.client.run(&["metastore", "remove-member", &old]).succeeded();
    let after = cluster.wait_all_settled();
    assert_ne!(after.at(address).id, old);
    cluster.client.run(&["metastore", "remove-member", &old]).failed(1);
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn two_that_were_wiped_one_after_the_other_lose_nothing() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    for _ in 0..2 {
        let before = cluster.wait_all_settled();
        let wiped = cluster.leader();
        let old = before.at(cluster.members[wiped].address).id.clone();
        cluster.members[wiped].kill();
        cluster.client.run(&["metastore", "remove-member", &old]).succeeded();
        fs::remove_dir_all(cluster.members[wiped].dir()).unwrap();
        cluster.join(wiped);
    }
    cluster.wait_all_settled();
    assert_known(&library, &creations.stop());
}
