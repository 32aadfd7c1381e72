//! Leaders that are killed or hang: the next one is there soon, and nothing is lost.

use std::time::{Duration, Instant};

use crate::cluster::PLAIN;
use crate::load::{Load, is_long};
use crate::metastores::Metastores;
use crate::metastores::loads::{Counters, Creations, assert_known};
use crate::process::Signal;

/// Within this time of a leader's death, or of its hanging, a ledger is created that was asked for after it.
const NEW_LEADER_MAX: Duration = Duration::from_secs(2);

/// A writer stands still for no longer than this while nobody leads: it asks nobody who does.
const STALL_MAX: Duration = Duration::from_secs(1);

#[test]
fn a_new_leader_is_found_whenever_one_is_killed() {
    // How fast the machine is decides only the long run.
    let kills = if is_long() { 100 } else { 5 };
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 1);
    let mut times = Vec::new();
    for kill in 1..=kills {
        cluster.wait_all_settled();
        let leader = cluster.leader();
        let since = Instant::now();
        cluster.members[leader].kill();
        let took = creations.first_begun_after(Instant::now()).duration_since(since);
        eprintln!("kill {kill}: a ledger was created {took:?} after it");
        times.push(took);
        cluster.members[leader].restart();
    }
    cluster.wait_all_settled();
    times.sort_unstable();
    let (median, longest) = (times[kills / 2], times[kills - 1]);
    eprintln!("of {kills} kills: median {median:?}, longest {longest:?}");
    assert!(!is_long() || longest < NEW_LEADER_MAX, "{times:?}");
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn a_leader_that_hangs_is_replaced_and_follows_when_it_wakes() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    let hanging = cluster.leader();
    let since = Instant::now();
    cluster.members[hanging].signal(Signal::Stop);
    let took = creations.first_begun_after(Instant::now()).duration_since(since);
    eprintln!("a ledger was created {took:?} after the leader was stopped");
    assert!(!is_long() || took < NEW_LEADER_MAX, "{took:?}");
    while since.elapsed() < Duration::from_secs(5) {
        creations.go_on(1);
    }
    cluster.members[hanging].signal(Signal::Continue);
    cluster.wait_all_settled();
    creations.go_on(20);
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn writers_that_need_no_metadata_do_not_notice() {
    let mut cluster = Metastores::start(3, 3);
    let mut load = Load::start(&cluster.client, PLAIN);
    load.go_on_for(Duration::from_secs(3));
    eprintln!("the longest stall under a leader: {:?}", load.longest_stall);
    load.longest_stall = Duration::ZERO;
    for _ in 0..2 {
        let leader = cluster.leader();
        load.go_on(1);
        cluster.members[leader].kill();
        load.go_on_for(Duration::from_secs(3));
        cluster.members[leader].restart();
        load.go_on(1);
        cluster.wait_all_settled();
    }
    let stall = load.longest_stall;
    eprintln!("the longest stall while leaders died: {stall:?}");
    assert!(!is_long() || stall < STALL_MAX, "{stall:?}");
    let (ledger, written) = load.close();
    assert!(cluster.client.read(&ledger) == written, "other bytes came back");
}

#[test]
fn leaders_that_stop_in_order_are_replaced() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    for signal in [Signal::Terminate, Signal::Interrupt] {
        let leader = cluster.leader();
        let since = Instant::now();
        cluster.members[leader].signal(signal);
        cluster.members[leader].outcome().succeeded();
        let took = creations.first_begun_after(Instant::now()).duration_since(since);
        eprintln!("a ledger was created {took:?} after the leader was asked to stop");
        cluster.members[leader].restart();
        cluster.wait_all_settled();
    }
    assert_known(&library, &creations.stop());
}
