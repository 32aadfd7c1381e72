//! A majority decides: without one nothing is, and with one again everything goes on.

use std::time::{Duration, Instant};

use crate::cluster::{PLAIN, lines};
use crate::load::{Load, rounds, until};
use crate::metastores::Metastores;
use crate::metastores::loads::{Counters, Creations, assert_known};

#[test]
fn without_a_majority_nothing_is_decided_and_writers_go_on() {
    let mut cluster = Metastores::start(3, 3);
    let closed = cluster.client.write(&[], lines(0..10));
    let mut load = Load::start(&cluster.client, PLAIN);
    load.go_on(1000);
    let dead = cluster.followers();
    dead.iter().for_each(|&follower| cluster.members[follower].kill());

    let since = Instant::now();
    for command in [&["ledger", "write"][..], &["ledger", "show", &closed], &["ledger", "list"]] {
        let mut process = cluster.client.start(command);
        process.end_input();
        let words = process.outcome().failed(1);
        assert!(words.contains("metastore"), "{words}");
    }
    eprintln!("three refusals took {:?}", since.elapsed());
    for command in ["remove-member", "transfer-leader"] {
        cluster.change(command, dead[0]).failed(1);
    }
    load.go_on_for(Duration::from_secs(2));

    cluster.members[dead[0]].restart();
    until("decided", || cluster.client.run(&["ledger", "list"]).status == Some(0));
    cluster.members[dead[1]].restart();
    cluster.wait_all_settled();
    let (ledger, written) = load.close();
    assert!(cluster.client.read(&ledger) == written, "other bytes came back");
    assert!(cluster.client.read(&closed) == lines(0..10), "other bytes came back");
}

#[test]
fn followers_may_die_one_after_the_other() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    for _ in 0..rounds(5) {
        for follower in cluster.followers() {
            cluster.members[follower].kill();
            creations.go_on(20);
            cluster.members[follower].restart();
            cluster.wait_all_settled();
        }
    }
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn one_that_is_alone_may_die_under_load() {
    let mut cluster = Metastores::found(1, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    for _ in 0..rounds(5) {
        creations.go_on(20);
        cluster.members[0].kill();
        cluster.members[0].restart();
        creations.first_begun_after(Instant::now());
    }
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn all_may_die_at_once_under_load() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    for _ in 0..rounds(5) {
        creations.go_on(20);
        cluster.members.iter_mut().for_each(|member| member.kill());
        cluster.members.iter_mut().for_each(|member| member.respawn());
        cluster.members.iter_mut().for_each(|member| member.wait_ready());
        cluster.wait_all_settled();
    }
    // They are back within the time that a client tries, so that nobody was told of it.
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn two_of_five_may_be_gone() {
    let mut cluster = Metastores::start(5, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    let (leader, follower) = (cluster.leader(), cluster.followers()[0]);
    cluster.members[leader].kill();
    cluster.members[follower].kill();
    creations.first_begun_after(Instant::now());
    creations.go_on(50);
    cluster.members[leader].restart();
    cluster.members[follower].restart();
    cluster.wait_all_settled();
    counters.stop();
    assert_known(&library, &creations.stop());
}
