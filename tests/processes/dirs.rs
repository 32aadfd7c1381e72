//! Bookies with several directories, or with little room.

use std::fs;

use crate::cluster::{Cluster, Daemon, last_entry, lines, run_daemon};
use crate::load::until;
use crate::process::Process;

/// A ledger with one copy: whichever bookie has it, nobody else does.
const ALONE: &[&str] = &["--ensemble", "1", "--write-quorum", "1", "--ack-quorum", "1"];
const LEDGERS: u64 = 6;

fn args<'a>(flags: &[&'a str], metastore: &'a str) -> Vec<&'a str> {
    [&["bookie", "--metastore", metastore, "--certs", "certs"], flags].concat()
}

/// Starts one more bookie with these flags, and gives its number.
fn add_bookie(cluster: &mut Cluster, flags: &[&str]) -> usize {
    let metastore = cluster.metastore.address.to_string();
    cluster.bookies.push(Daemon::spawn(cluster.home(), &args(flags, &metastore)).ready());
    cluster.bookies.len() - 1
}

/// Kills a bookie if it runs, and starts it with these flags where it was.
fn restart(cluster: &mut Cluster, number: usize, flags: &[&str]) {
    let (metastore, bookie) = (cluster.metastore.address.to_string(), &mut cluster.bookies[number]);
    if bookie.process.is_some() {
        bookie.kill();
    }
    let address = bookie.address.to_string();
    let started = Daemon::spawn_at(cluster.home(), &args(flags, &metastore), &address).ready();
    cluster.bookies[number] = started;
}

/// Says why a bookie with these flags does not start.
fn refused(cluster: &Cluster, flags: &[&str]) -> String {
    let metastore = cluster.metastore.address.to_string();
    run_daemon(cluster.home(), &args(flags, &metastore), "127.0.0.1:0").outcome().failed(1)
}

fn write_alone(cluster: &Cluster, flags: &[&str], input: Vec<u8>) -> String {
    cluster.client.write(&[ALONE, flags].concat(), input)
}

#[test]
fn a_bookie_has_its_ledgers_on_several_disks_and_may_lose_one() {
    let mut cluster = Cluster::start(0);
    let bookie = add_bookie(&mut cluster, &["--dir", "a", "--dir", "b"]);
    let input = |n: u64| lines(n * 1000..n * 1000 + 100);
    let ledgers: Vec<_> = (0..LEDGERS).map(|n| write_alone(&cluster, &[], input(n))).collect();
    let open: Vec<_> =
        (0..LEDGERS).map(|n| write_alone(&cluster, &["--leave-open"], input(n))).collect();

    restart(&mut cluster, bookie, &["--dir", "b", "--dir", "a"]);
    for (ledger, n) in ledgers.iter().zip(0..) {
        assert!(cluster.client.read(ledger) == input(n), "other bytes came back");
    }

    restart(&mut cluster, bookie, &["--dir", "a"]);
    let (mut read, mut missed) = (0, 0);
    for (ledger, n) in ledgers.iter().zip(0..) {
        let outcome = cluster.client.run(&["ledger", "read", ledger]);
        match outcome.status {
            Some(0) => {
                assert!(outcome.succeeded() == input(n), "other bytes came back");
                read += 1;
            }
            _ => {
                let words = outcome.failed(1);
                assert!(words.contains("not there"), "{words}");
                missed += 1;
            }
        }
    }
    assert!(read > 0 && missed > 0, "{read} read, {missed} missed");
    // It is registered, and not for what is new.
    cluster.client.run(&[&["ledger", "write"], ALONE].concat()).failed(1);
    let other = add_bookie(&mut cluster, &["--dir", "other"]);
    for _ in 0..LEDGERS {
        let ledger = write_alone(&cluster, &[], lines(0..10));
        assert_eq!(cluster.ensemble(&ledger), [other]);
    }
    // A ledger that it does not find is not taken for one without entries.
    let recoveries = open.iter().map(|ledger| cluster.client.start_to_recover(ledger));
    for outcome in recoveries.collect::<Vec<_>>().into_iter().map(Process::outcome) {
        if outcome.status == Some(0) {
            assert_eq!(last_entry(outcome), 99);
        }
    }

    restart(&mut cluster, bookie, &["--dir", "a", "--dir", "b"]);
    for (ledger, n) in ledgers.iter().zip(0..) {
        assert!(cluster.client.read(ledger) == input(n), "other bytes came back");
    }
    for (ledger, n) in open.iter().zip(0..) {
        assert_eq!(cluster.client.recover(ledger), 99);
        assert!(cluster.client.read(ledger) == input(n), "other bytes came back");
    }
    let is_chosen = || cluster.ensemble(&write_alone(&cluster, &[], lines(0..10))) == [bookie];
    until("back", is_chosen);
}

#[test]
fn directories_that_do_not_belong_together_are_refused() {
    let mut cluster = Cluster::start(0);
    let first = add_bookie(&mut cluster, &["--dir", "a", "--dir", "b"]);
    let second = add_bookie(&mut cluster, &["--dir", "c"]);
    // No new bookie begins in the empty one.
    let words = refused(&cluster, &["--dir", "d", "--dir", "b"]);
    assert!(words.contains("in use"), "{words}");
    cluster.bookies[first].kill();
    cluster.bookies[second].kill();
    let words = refused(&cluster, &["--dir", "a", "--dir", "c"]);
    assert!(words.contains("of bookie"), "{words}");
    let words = refused(&cluster, &["--dir", "a", "--dir", "./a"]);
    assert!(words.contains("twice"), "{words}");
    fs::create_dir(cluster.home().join("photos")).unwrap();
    fs::write(cluster.home().join("photos/1.jpg"), "").unwrap();
    let words = refused(&cluster, &["--dir", "a", "--dir", "b", "--dir", "photos"]);
    assert!(words.contains("1.jpg"), "{words}");
    restart(&mut cluster, first, &["--dir", "a", "--dir", "b", "--dir", "new"]);
    restart(&mut cluster, second, &["--dir", "c"]);
    let ledger = write_alone(&cluster, &[], lines(0..100));
    assert!(cluster.client.read(&ledger) == lines(0..100));
}

#[test]
fn a_bookie_with_little_room_gets_no_ledgers_until_it_has_more() {
    let mut cluster = Cluster::start(0);
    let low = add_bookie(&mut cluster, &["--dir", "a", "--min-free", "0"]);
    let ledger = write_alone(&cluster, &[], lines(0..100));
    let other = add_bookie(&mut cluster, &["--dir", "b", "--min-free", "0"]);
    restart(&mut cluster, low, &["--dir", "a", "--min-free", "100%"]);
    assert!(cluster.client.read(&ledger) == lines(0..100));
    for _ in 0..LEDGERS {
        let ledger = write_alone(&cluster, &[], lines(0..100));
        assert_eq!(cluster.ensemble(&ledger), [other]);
    }
    restart(&mut cluster, low, &["--dir", "a", "--min-free", "0"]);
    let is_chosen = || cluster.ensemble(&write_alone(&cluster, &[], lines(0..10))) == [low];
    until("back", is_chosen);
}
