//! Whole clusters, metastores and disks that go away and come back.

use std::fs;

use crate::cluster::{Cluster, Daemon, assert_keeps, lines};
use crate::load::until;
use crate::process::Signal;

#[test]
fn a_killed_cluster_loses_nothing_confirmed_and_no_fence() {
    let mut cluster = Cluster::start(3);
    let closed = cluster.client.write(&[], lines(0..3000));
    let fenced = cluster.client.write(&["--leave-open"], lines(0..500));
    let fenced_end = cluster.client.recover(&fenced);
    let open = cluster.client.write(&["--leave-open"], lines(0..700));
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..300_000));
    writer.wait_confirmed(1000);
    cluster.kill_and_restart();
    let written = writer.ledger.clone();
    let confirmed = writer.kill();

    assert!(cluster.client.read(&closed) == lines(0..3000), "other bytes came back");
    assert!(cluster.client.show(&fenced).contains("closed"));
    assert_eq!(cluster.client.recover(&fenced), fenced_end);
    assert_keeps(&cluster.client.read(&fenced), Some(499), fenced_end);
    let end = cluster.client.recover(&open);
    assert_keeps(&cluster.client.read(&open), Some(699), end);
    let end = cluster.client.recover(&written);
    assert_keeps(&cluster.client.read(&written), confirmed, end);

    let new = cluster.client.write(&[], lines(0..100));
    assert!(![closed, fenced, open, written].contains(&new), "ids are never used again");
    assert!(cluster.client.read(&new) == lines(0..100));
}

#[test]
fn a_writer_fenced_before_a_restart_confirms_nothing_after_it() {
    let mut cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    let end = cluster.client.recover(&writer.ledger);
    cluster.kill_and_restart();
    writer.send(lines(10..20));
    let ledger = writer.ledger.clone();
    let (outcome, confirmed) = writer.outcome();
    outcome.failed(1);
    assert_eq!(confirmed, Some(9));
    assert_eq!(cluster.client.recover(&ledger), end);
    assert!(cluster.client.read(&ledger) == lines(0..10));
}

#[test]
fn appends_do_not_need_the_metastore() {
    let mut cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    cluster.metastore.kill();
    writer.send(lines(10..5000));
    writer.wait_confirmed(4999);
    // Closing does.
    cluster.metastore.restart();
    writer.end_input();
    let ledger = writer.ledger.clone();
    writer.outcome().0.succeeded();
    assert!(cluster.client.read(&ledger) == lines(0..5000), "other bytes came back");
}

#[test]
fn a_bookie_whose_lease_ran_out_comes_back_by_itself() {
    let mut cluster = Cluster::start(3);
    let create = || cluster.client.write(&[], "");
    create();
    let (bookies, client) = (&mut cluster.bookies, &cluster.client);
    let is_enough = || {
        let mut write = client.start(&["ledger", "write"]);
        write.end_input();
        write.outcome().status == Some(0)
    };
    bookies[0].running().signal(Signal::Stop);
    until("missed", || !is_enough());
    bookies[0].running().signal(Signal::Continue);
    until("back", is_enough);
}

/// Two of three bookies have the entries; of these one is emptied and the other is down. If the
/// emptied one were taken for what it was, it and the third would agree that there is no entry.
#[test]
fn an_emptied_bookie_is_not_believed() {
    let mut cluster = Cluster::start(3);
    let closed = cluster.client.write(&[], lines(0..100));
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..10));
    writer.wait_confirmed(9);
    cluster.bookies[2].kill();
    writer.send(lines(10..1000));
    writer.wait_confirmed(999);
    let ledger = writer.ledger.clone();
    let confirmed = writer.kill();

    cluster.bookies[2].restart();
    cluster.bookies[0].kill();
    fs::remove_dir_all(cluster.bookie_dir(0)).unwrap();
    cluster.bookies[0].restart();
    assert!(cluster.client.read(&closed) == lines(0..100), "the others have it still");

    cluster.bookies[1].kill();
    cluster.client.run(&["ledger", "recover", &ledger]).failed(1);
    cluster.bookies[1].restart();
    let end = cluster.client.recover(&ledger);
    assert_keeps(&cluster.client.read(&ledger), confirmed, end);
    // It is a bookie like any other for what is new.
    let new = cluster.client.write(&[], lines(0..100));
    assert!(cluster.client.read(&new) == lines(0..100));
}

#[test]
fn two_bookies_with_their_addresses_exchanged_keep_their_data() {
    let mut cluster = Cluster::start(3);
    let ledger = cluster.client.write(&["--leave-open"], lines(0..100));
    let [first, second, ..] = cluster.bookies.as_mut_slice() else { unreachable!() };
    first.kill();
    second.kill();
    std::mem::swap(&mut first.address, &mut second.address);
    first.restart();
    second.restart();
    let end = cluster.client.recover(&ledger);
    assert_keeps(&cluster.client.read(&ledger), Some(99), end);
}

#[test]
fn daemons_that_were_asked_to_stop_end_well_and_come_back() {
    let mut cluster = Cluster::start(3);
    let ledger = cluster.client.write(&[], lines(0..100));
    let signals = [Signal::Terminate, Signal::Interrupt];
    for signal in signals {
        let Cluster { metastore, bookies, .. } = &mut cluster;
        for daemon in bookies.iter_mut().chain([metastore]) {
            let process = daemon.process.take().unwrap();
            process.signal(signal);
            process.outcome().succeeded();
        }
        cluster.metastore.restart();
        cluster.bookies.iter_mut().for_each(Daemon::restart);
        assert!(cluster.client.read(&ledger) == lines(0..100));
    }
}
