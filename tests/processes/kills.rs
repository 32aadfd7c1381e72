//! Writers and bookies that die, hang or are overtaken.

use std::time::Instant;

use crate::cluster::{Client, Cluster, assert_fenced, assert_keeps, last_entry, lines};
use crate::load::PATIENCE;
use crate::process::{Process, Signal};

/// More lines than a writer is through with when its first entries are confirmed.
const MANY: u64 = 300_000;

#[test]
fn recovery_keeps_what_a_killed_writer_confirmed() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..MANY));
    writer.wait_confirmed(2000);
    let ledger = writer.ledger.clone();
    let confirmed = writer.kill();

    let end = recover_three_times_at_once(&cluster.client, &ledger);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
    assert_eq!(cluster.client.recover(&ledger), end, "a later recovery finds the same end");
}

#[test]
fn recoveries_of_a_living_writer_agree_and_fence_it() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..MANY));
    writer.wait_confirmed(2000);
    let end = recover_three_times_at_once(&cluster.client, &writer.ledger);

    // Its input is open still. This line is for a machine so fast that it is out of lines.
    writer.send(lines(MANY..MANY + 1));
    let ledger = writer.ledger.clone();
    let (outcome, confirmed) = writer.outcome();
    assert_fenced(outcome);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
}

#[test]
fn a_paused_recovery_delays_nobody_and_agrees_later() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..MANY));
    writer.wait_confirmed(2000);
    let ledger = writer.ledger.clone();
    let confirmed = writer.kill();
    let paused = cluster.client.start_to_recover(&ledger);
    // Looked at without a pause, since the recovery may be through soon.
    let since = Instant::now();
    while cluster.client.show(&ledger).contains("open") {
        assert!(since.elapsed() < PATIENCE, "the recovery has not begun");
    }
    paused.signal(Signal::Stop);
    let end = cluster.client.recover(&ledger);
    paused.signal(Signal::Continue);
    assert_eq!(last_entry(paused.outcome()), end);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
}

#[test]
fn an_idle_writer_learns_with_its_next_append_that_it_is_fenced() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    let end = cluster.client.recover(&writer.ledger);
    assert_keeps(&cluster.client.read(&writer.ledger), Some(9), end);

    writer.send(lines(10..11));
    let ledger = writer.ledger.clone();
    let (outcome, confirmed) = writer.outcome();
    assert_fenced(outcome);
    assert_eq!(confirmed, Some(9));
    assert!(cluster.client.read(&ledger) == lines(0..10));
}

#[test]
fn a_writer_that_only_closes_a_fenced_ledger_is_told_or_agrees() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    let end = cluster.client.recover(&writer.ledger);
    writer.end_input();
    let ledger = writer.ledger.clone();
    // Closed with the very end that it wanted: that is its success.
    writer.outcome().0.succeeded();
    assert_keeps(&cluster.client.read(&ledger), Some(9), end);
}

#[test]
fn one_bookie_of_three_may_die_during_a_write() {
    let mut cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..5000));
    writer.wait_confirmed(100);
    cluster.bookies[1].kill();
    writer.send(lines(5000..10_000));
    writer.wait_confirmed(9999);
    writer.end_input();
    let ledger = writer.ledger.clone();
    writer.outcome().0.succeeded();
    assert!(cluster.client.read(&ledger) == lines(0..10_000), "other bytes came back");

    // Whoever comes back has a part of it only, and serves that.
    cluster.bookies[1].restart();
    cluster.bookies[2].kill();
    assert!(cluster.client.read(&ledger) == lines(0..10_000), "other bytes came back");
}

#[test]
fn one_bookie_of_three_may_hang() {
    let mut cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..100));
    writer.wait_confirmed(99);
    cluster.bookies[0].running().signal(Signal::Stop);
    writer.send(lines(100..200));
    writer.wait_confirmed(199);
    let ledger = writer.ledger.clone();
    let confirmed = writer.kill();
    let end = cluster.client.recover(&ledger);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
    cluster.bookies[0].running().signal(Signal::Continue);
    assert_eq!(cluster.client.recover(&ledger), end);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
}

#[test]
fn a_paused_writer_confirms_nothing_beyond_the_end() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..MANY));
    writer.wait_confirmed(100);
    writer.signal(Signal::Stop);
    let end = cluster.client.recover(&writer.ledger);
    writer.signal(Signal::Continue);
    writer.send(lines(MANY..MANY + 1));
    let ledger = writer.ledger.clone();
    let (outcome, confirmed) = writer.outcome();
    assert_fenced(outcome);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
}

/// Gives the last entry, which is the same to all of them.
fn recover_three_times_at_once(client: &Client, ledger: &str) -> u64 {
    let recoveries = [(); 3].map(|()| client.start_to_recover(ledger));
    let [first, second, third] = recoveries.map(Process::outcome).map(last_entry);
    assert!(first == second && second == third, "{first}, {second}, {third}");
    first
}
