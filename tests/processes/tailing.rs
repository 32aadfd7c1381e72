//! `ledger tail` prints what is confirmed, when it is confirmed, to the end of the ledger.

use std::time::Duration;

use crate::cluster::{Cluster, Daemon, PLAIN, STRIPED, assert_keeps, lines};
use crate::load::{Load, Tail};
use crate::process::Signal;

#[test]
fn the_last_entry_of_an_idle_writer_is_printed() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(PLAIN);
    let ledger = writer.ledger.clone();
    let tail = |from| Tail::start(&cluster.client, &ledger, from);
    // They begin before, in and after what is there, and at what is not there yet.
    let before = tail(0);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    let mut tails = vec![before, tail(0), tail(5), tail(9)];
    tails.iter_mut().for_each(|tail| tail.wait_for(9));
    let mut early = tail(12);
    early.wait_silent(Duration::from_millis(500));
    tails.push(early);

    writer.send(lines(10..20));
    writer.wait_confirmed(19);
    tails.iter_mut().for_each(|tail| tail.wait_for(19));
    writer.end_input();
    writer.outcome().0.succeeded();
    tails.into_iter().for_each(|tail| tail.assert_ends_with(&lines(0..20)));
}

#[test]
fn a_closed_ledger_is_printed_and_that_is_all() {
    let cluster = Cluster::start(3);
    let ledger = cluster.client.write(&[], lines(0..3000));
    for from in [0, 1, 2990, 2999] {
        Tail::start(&cluster.client, &ledger, from).assert_ends_with(&lines(0..3000));
    }
    let beyond = Tail::start(&cluster.client, &ledger, 100_000).outcome();
    assert_eq!(beyond.stdout, b"");

    let empty = cluster.client.write(&[], "");
    Tail::start(&cluster.client, &empty, 0).assert_ends_with(b"");

    let data: Vec<u8> = (0..30_000_u32).flat_map(u32::to_le_bytes).collect();
    let binary = cluster.client.write(&["--chunk-bytes", "1000"], data.as_slice());
    let printed = Tail::start(&cluster.client, &binary, 0).outcome().succeeded();
    assert!(printed == data, "other bytes came back");
}

#[test]
fn who_follows_a_ledger_is_told_that_it_was_deleted() {
    let cluster = Cluster::start(3);
    let writer = cluster.client.writer(PLAIN);
    writer.send(lines(0..10));
    let mut tail = Tail::start(&cluster.client, &writer.ledger, 0);
    tail.wait_for(9);
    let ledger = writer.ledger.clone();
    writer.kill();
    cluster.client.run(&["ledger", "delete", &ledger]).succeeded();
    let words = tail.outcome().failed(1);
    assert!(words.contains(&format!("ledger {ledger} was deleted")), "{words}");
}

#[test]
fn a_signal_ends_it() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(PLAIN);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    // Not by an interrupt: a shell has what it runs in the background ignore that.
    let mut tail = Tail::start(&cluster.client, &writer.ledger, 0);
    tail.wait_for(9);
    tail.signal(Signal::Terminate);
    let outcome = tail.outcome();
    assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    // The writer does not care.
    writer.send(lines(10..20));
    writer.wait_confirmed(19);
}

#[test]
fn a_ledger_whose_writer_died_ends_with_its_recovery() {
    let cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    let mut idle = cluster.client.writer(PLAIN);
    idle.send(lines(0..10));
    idle.wait_confirmed(9);
    let mut tail = Tail::start(&cluster.client, load.ledger(), 0);
    let mut tail_of_idle = Tail::start(&cluster.client, &idle.ledger, 0);
    load.go_on(10_000);
    let (ledger, confirmed) = load.kill();
    let idle_ledger = idle.ledger.clone();
    idle.kill();
    // They wait for whoever takes over.
    tail.wait_silent(Duration::from_secs(2));
    tail_of_idle.wait_silent(Duration::from_secs(2));

    let end = cluster.client.recover(&ledger);
    let bytes = cluster.client.read(&ledger);
    assert_keeps(&bytes, confirmed, end);
    tail.assert_ends_with(&bytes);
    assert_eq!(cluster.client.recover(&idle_ledger), 9);
    tail_of_idle.assert_ends_with(&lines(0..10));
}

#[test]
fn a_hung_bookie_is_left_for_another() {
    let mut cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    let mut tail = Tail::start(&cluster.client, load.ledger(), 0);
    load.step(1000);
    for bookie in &mut cluster.bookies {
        bookie.running().signal(Signal::Stop);
        load.step(1000);
        tail.wait_for(load.confirmed() - 1);
        bookie.running().signal(Signal::Continue);
    }
    let (_, written) = load.close();
    tail.assert_ends_with(&written);
}

#[test]
fn all_bookies_are_killed_at_once_and_it_goes_on() {
    let mut cluster = Cluster::start(5);
    let mut loads = [PLAIN, STRIPED].map(|sizes| Load::start(&cluster.client, sizes));
    let mut tails = loads.each_ref().map(|load| Tail::start(&cluster.client, load.ledger(), 0));
    loads.iter_mut().for_each(|load| load.go_on(5000));
    tails.iter_mut().for_each(|tail| tail.wait_for(1000));
    for _ in 0..2 {
        cluster.bookies.iter_mut().for_each(Daemon::kill);
        cluster.restart_killed();
        for (load, tail) in loads.iter_mut().zip(&mut tails) {
            load.step(1000);
            tail.wait_for(load.confirmed() - 1);
        }
    }
    for (load, tail) in loads.into_iter().zip(tails) {
        tail.assert_ends_with(&load.close().1);
    }
}

#[test]
fn a_paused_reader_misses_nothing() {
    let cluster = Cluster::start(3);
    let mut load = Load::start(&cluster.client, PLAIN);
    let mut tail = Tail::start(&cluster.client, load.ledger(), 0);
    load.step(1000);
    tail.wait_for(999);
    tail.signal(Signal::Stop);
    // The ledger grows and ends, and nobody waits for it.
    load.step(100_000);
    let (_, written) = load.close();
    tail.signal(Signal::Continue);
    tail.assert_ends_with(&written);
}
