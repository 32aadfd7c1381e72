//! Bookies that fail under a running writer, which goes on with others.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PLAIN, STRIPED, assert_fenced, assert_keeps, last_entry, lines};
use crate::load::{Load, Tail, is_long, until};
use crate::process::Signal;

/// The 3 s after which a silent bookie counts as hung, and as much again for the change. How fast
/// the machine is decides only where it is asked for, by setting INKFAST_LONG.
const STALL_MAX: Duration = Duration::from_secs(6);

#[test]
fn a_killed_and_a_hung_bookie_of_four_stall_a_writer_shortly() {
    a_killed_and_a_hung_bookie_stall_a_writer_shortly(4, PLAIN);
}

#[test]
fn a_killed_and_a_hung_bookie_of_six_stall_a_striped_ledger_shortly() {
    a_killed_and_a_hung_bookie_stall_a_writer_shortly(6, STRIPED);
}

/// There is one bookie more than the ensemble has, so that one place is filled again and the
/// other is not.
fn a_killed_and_a_hung_bookie_stall_a_writer_shortly(bookies: usize, sizes: &[&str]) {
    let mut cluster = Cluster::start(bookies);
    let mut load = Load::start(&cluster.client, sizes);
    let from_the_start = Tail::start(&cluster.client, load.ledger(), 0);
    load.go_on(20_000);
    let [killed, hung, ..] = cluster.ensemble(load.ledger())[..] else { unreachable!() };
    cluster.bookies[killed].kill();
    cluster.bookies[hung].running().signal(Signal::Stop);
    let joined = Tail::start(&cluster.client, load.ledger(), load.confirmed());
    until("changed", || {
        load.go_on(1000);
        cluster.fragments(load.ledger()).len() > 1
    });
    load.step(10_000);
    eprintln!("{bookies} bookies: the longest stall was {:?}", load.longest_stall);
    let counts = is_long();
    assert!(load.longest_stall < STALL_MAX || !counts, "{:?}", load.longest_stall);
    let ensemble = cluster.ensemble(load.ledger());
    assert!(!ensemble.contains(&killed) || !ensemble.contains(&hung), "{ensemble:?}");

    let (ledger, written) = load.close();
    from_the_start.assert_ends_with(&written);
    joined.assert_ends_with(&written);
    assert!(cluster.client.read(&ledger) == written, "other bytes came back");

    // What the hung one has not taken yet is not to count.
    cluster.bookies[hung].kill();
    cluster.restart_killed();
    cluster.assert_survive_any_loss(&[(ledger, written)]);
}

/// Each is killed only when the one before it has been replaced.
#[test]
fn every_bookie_of_the_first_ensemble_may_be_replaced() {
    let mut cluster = Cluster::start(5);
    let mut loads = [PLAIN, STRIPED].map(|sizes| Load::start(&cluster.client, sizes));
    let mut tails = loads.each_ref().map(|load| Tail::start(&cluster.client, load.ledger(), 0));
    loads.iter_mut().for_each(|load| load.go_on(5000));
    let first = cluster.bookies.len();
    for old in 0..first {
        cluster.add_bookie();
        cluster.bookies[old].kill();
        for (load, tail) in loads.iter_mut().zip(&mut tails) {
            until("replaced", || {
                load.step(500);
                tail.wait_for(load.confirmed() - 1);
                !cluster.ensemble(load.ledger()).contains(&old)
            });
        }
    }
    for (mut load, tail) in loads.into_iter().zip(tails) {
        until("moved to new bookies", || {
            load.step(500);
            cluster.ensemble(load.ledger()).iter().all(|&bookie| bookie >= first)
        });
        let (ledger, written) = load.close();
        tail.assert_ends_with(&written);

        // They were killed, but they are not lost.
        cluster.restart_killed();
        assert!(cluster.client.read(&ledger) == written, "other bytes came back");
        let fragments = cluster.fragments(&ledger);
        assert!(fragments.is_sorted_by(|a, b| a.first_entry < b.first_entry));
    }
}

#[test]
fn without_a_spare_bookie_a_writer_goes_on_and_takes_what_comes() {
    let mut cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    load.go_on(5000);
    cluster.bookies[0].kill();
    load.step(5000);

    // Whoever is back counts again: without the first there would be too few.
    cluster.bookies[0].restart();
    cluster.bookies[1].kill();
    load.step(5000);

    // The writer has nothing to do at this time but this.
    let new = cluster.add_bookie();
    until("repaired", || {
        let ensemble = cluster.ensemble(load.ledger());
        ensemble.contains(&new) && !ensemble.contains(&1)
    });
    assert!(cluster.fragments(load.ledger()).last().unwrap().first_entry > 0);
    cluster.bookies[2].kill();
    load.step(5000);

    let (ledger, written) = load.close();
    cluster.restart_killed();
    assert!(cluster.client.read(&ledger) == written, "other bytes came back");
    cluster.assert_survive_any_loss(&[(ledger, written)]);
}

#[test]
fn a_writer_without_a_quorum_waits_and_then_gives_up_and_keeps_what_it_confirmed() {
    let mut cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    load.step(5000);
    cluster.bookies[0].kill();
    cluster.bookies[2].kill();
    // Long enough that they count as failed.
    load.wait_silent(Duration::from_secs(5));
    cluster.bookies[0].restart();
    load.step(5000);
    cluster.bookies[2].restart();
    load.step(5000);

    let lost = [0, 1];
    lost.into_iter().for_each(|bookie| cluster.bookies[bookie].kill());
    let since = Instant::now();
    let (ledger, outcome, confirmed) = load.failure();
    let waited = since.elapsed();
    let words = outcome.failed(1);
    // It waits 30 s.
    assert!(waited > Duration::from_secs(25), "{waited:?}: {words}");
    let error = words.find("error").map_or("", |start| &words[start..]);
    lost.into_iter().for_each(|bookie| cluster.bookies[bookie].assert_named_in(error));
    cluster.restart_killed();
    let end = cluster.client.recover(&ledger);
    let bytes = cluster.client.read(&ledger);
    assert_keeps(&bytes, confirmed, end);
    cluster.assert_survive_any_loss(&[(ledger, bytes)]);
}

#[test]
fn a_rolling_restart_disturbs_neither_writer_nor_reader() {
    let mut cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    let tail = Tail::start(&cluster.client, load.ledger(), 0);
    // First so fast that the second falls before the first is missed, then with time to see it.
    for pause in [Duration::ZERO, Duration::from_secs(1)] {
        for bookie in &mut cluster.bookies {
            load.go_on(3000);
            bookie.kill();
            load.go_on_for(pause);
            bookie.restart();
            load.go_on_for(pause);
        }
    }
    eprintln!("rolling restart: the longest stall was {:?}", load.longest_stall);
    let (ledger, written) = load.close();
    tail.assert_ends_with(&written);
    cluster.assert_survive_any_loss(&[(ledger, written)]);
}

#[test]
fn a_writer_and_a_reader_that_were_paused_go_on() {
    let cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    let mut tail = Tail::start(&cluster.client, load.ledger(), 0);
    load.go_on(5000);
    tail.wait_for(4000);
    // So long that each of their connections is lost, and each bookie has been silent; with
    // INKFAST_LONG longer than appends wait for a quorum.
    let paused_s = if is_long() { 36 } else { 8 };
    load.signal(Signal::Stop);
    tail.signal(Signal::Stop);
    std::thread::sleep(Duration::from_secs(paused_s));
    load.signal(Signal::Continue);
    tail.signal(Signal::Continue);
    load.step(5000);
    let (ledger, written) = load.close();
    tail.assert_ends_with(&written);
    assert!(cluster.client.read(&ledger) == written, "other bytes came back");
}

/// One bookie is killed and another hangs in the moment that the writer dies. The numbers are
/// places of the ensemble, and after those come the spares.
#[test]
fn recovery_goes_on_while_bookies_fail() {
    let mut cluster = Cluster::start(5);
    let mut recovered = Vec::new();
    // Where two are enough one of three may fail, and it may be the spares that are bad; where
    // all three must have an entry, both that failed are to be replaced.
    let all = ["--ensemble", "3", "--write-quorum", "3", "--ack-quorum", "3"];
    for (sizes, killed, hung) in [(PLAIN, 0, 3), (PLAIN, 3, 0), (&all, 0, 1), (&all, 0, 3)] {
        let mut load = Load::start(&cluster.client, sizes);
        load.go_on(5000);
        let mut bookies = cluster.ensemble(load.ledger());
        let spares: Vec<_> = (0..5).filter(|bookie| !bookies.contains(bookie)).collect();
        bookies.extend(spares);
        cluster.bookies[bookies[killed]].kill();
        cluster.bookies[bookies[hung]].running().signal(Signal::Stop);
        let (ledger, confirmed) = load.kill();

        let since = Instant::now();
        let end = cluster.client.recover(&ledger);
        eprintln!("recovered in {:?}", since.elapsed());
        let bytes = cluster.client.read(&ledger);
        assert_keeps(&bytes, confirmed, end);
        cluster.bookies[bookies[hung]].kill();
        cluster.restart_killed();
        recovered.push((ledger, bytes));
    }
    cluster.assert_survive_any_loss(&recovered);
}

/// A writer counts a killed bookie as failed after 3 s: the recoveries begin before, while and
/// after it changes its ensemble.
#[test]
fn a_recovery_while_the_writer_changes_its_ensemble_fences_it() {
    let mut cluster = Cluster::start(4);
    for delays_ms in [[0, 2900, 3050], [1500, 2950, 3300]] {
        let mut loads = delays_ms.map(|_| Load::start(&cluster.client, PLAIN));
        loads.iter_mut().for_each(|load| load.go_on(2000));
        // Each leaves out one of four.
        let ensembles = loads.each_ref().map(|load| cluster.ensemble(load.ledger()));
        let is_in_all = |bookie: &usize| ensembles.iter().all(|e| e.contains(bookie));
        let common = (0..4).find(is_in_all).unwrap();
        cluster.bookies[common].kill();
        let since = Instant::now();
        let mut recoveries = Vec::new();
        for delay in delays_ms.map(Duration::from_millis) {
            // The first of them are fenced while the others go on.
            while since.elapsed() < delay {
                loads[recoveries.len()..].iter_mut().for_each(|load| load.go_on(1));
            }
            let ledger = loads[recoveries.len()].ledger();
            recoveries.push(cluster.client.start_to_recover(ledger));
        }
        let ends: Vec<_> = recoveries.into_iter().map(|r| last_entry(r.outcome())).collect();
        for (load, end) in loads.into_iter().zip(ends) {
            let (ledger, outcome, confirmed) = load.failure();
            assert_fenced(outcome);
            assert_keeps(&cluster.client.read(&ledger), confirmed, end);
            assert_eq!(cluster.client.recover(&ledger), end);
        }
        cluster.bookies[common].restart();
    }
}

#[test]
fn a_write_set_has_copies_in_two_racks() {
    let racks = ["a", "a", "a", "b", "b", "b"];
    let mut cluster = Cluster::start_in_racks(&racks.map(Some));
    let assert_spread = |ensemble: &[usize], write_quorum: usize| {
        for first in 0..ensemble.len() {
            let rack = |n| racks[ensemble[(first + n) % ensemble.len()]];
            let is_spread = (1..write_quorum).any(|n| rack(n) != rack(0));
            assert!(is_spread, "{ensemble:?} from place {first}");
        }
    };
    for _ in 0..4 {
        let plain = cluster.client.write(PLAIN, lines(0..1));
        assert_spread(&cluster.ensemble(&plain), 3);
        let striped = cluster.client.write(STRIPED, lines(0..1));
        assert_spread(&cluster.ensemble(&striped), 3);
    }

    // The same when a bookie is replaced: the one that is alone in its rack.
    let mut load = Load::start(&cluster.client, PLAIN);
    load.step(100);
    let ensemble = cluster.ensemble(load.ledger());
    let is_alone = |&&bookie: &&usize| {
        ensemble.iter().filter(|&&other| racks[other] == racks[bookie]).count() == 1
    };
    let alone = *ensemble.iter().find(is_alone).unwrap();
    cluster.bookies[alone].kill();
    until("replaced", || {
        load.step(100);
        !cluster.ensemble(load.ledger()).contains(&alone)
    });
    assert_spread(&cluster.ensemble(load.ledger()), 3);
    let (ledger, written) = load.close();
    assert!(cluster.client.read(&ledger) == written, "other bytes came back");
}
