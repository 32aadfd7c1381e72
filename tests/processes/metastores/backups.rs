//! Backups of a cluster at work and of a member that is left, and what is made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use inkfast::LedgerId;

use crate::cluster::{Client, lines};
use crate::load::until;
use crate::metastores::Metastores;
use crate::metastores::loads::{Counters, Creations, assert_known};
use crate::process::{Outcome, Process};

/// So much further do ids go on after a restore.
const LEAP: u64 = 1 << 32;

fn run(cluster: &Metastores, args: &[&str]) -> Outcome {
    Process::start(cluster.home(), None, &[&["metastore"], args].concat()).outcome()
}

/// Makes a member of a backup, in the place of the first one, and starts it.
fn restore(cluster: &mut Metastores, file: &str) {
    run(cluster, &["restore", file, "--dir", "restored"]).succeeded();
    cluster.members[0].use_dir("restored");
    cluster.members[0].start(&[]);
    cluster.wait_settled(&[0]);
}

/// Waits until all bookies have come to the new metastore, and gives the number of a new ledger.
fn create(client: &Client) -> u64 {
    let mut ledger = None;
    until("usable", || {
        let mut write = client.start(&["ledger", "write"]);
        write.send(lines(0..10));
        write.end_input();
        let outcome = write.outcome();
        let stdout = String::from_utf8(outcome.stdout).unwrap();
        let id = stdout.lines().next().and_then(|line| line.strip_prefix("ledger "));
        ledger = id.filter(|_| outcome.status == Some(0)).map(|id| id.parse().unwrap());
        ledger.is_some()
    });
    ledger.expect("it was waited for")
}

fn assert_leapt(client: &Client, before: &BTreeSet<LedgerId>) {
    let highest = before.last().expect("there were ledgers").get();
    let new = create(client);
    assert!(new >= LEAP && new > highest, "{new} after {highest}");
    assert!(client.read(&new.to_string()) == lines(0..10), "other bytes came back");
}

#[test]
fn a_backup_under_load_is_a_cluster_again() {
    let mut cluster = Metastores::start(3, 3);
    let written = cluster.client.write(&[], lines(0..500));
    let open = cluster.client.write(&["--leave-open"], lines(0..50));
    let before = cluster.wait_all_settled();
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    creations.go_on(50);
    let in_backup: BTreeSet<_> = creations.so_far().into_iter().collect();
    cluster.client.run(&["metastore", "backup", "backup"]).succeeded();
    creations.go_on(50);
    counters.stop();
    let all = creations.stop();
    let late = cluster.client.write(&[], lines(0..10));

    cluster.members.iter_mut().for_each(|member| member.kill());
    restore(&mut cluster, "backup");
    let after = cluster.wait_settled(&[0]);
    assert_eq!(after.cluster, before.cluster);
    assert!(after.revision >= before.revision.map(|revision| revision + LEAP), "{after:?}");
    assert!(before.members.iter().all(|member| member.id != after.members[0].id), "{after:?}");
    assert_known(&library, &in_backup);
    assert_leapt(&cluster.client, &all);
    assert!(cluster.client.read(&written) == lines(0..500), "other bytes came back");
    assert_eq!(cluster.client.recover(&open), 49);
    cluster.client.run(&["ledger", "read", &late]).failed(1);

    // The others come with empty directories.
    for member in [1, 2] {
        fs::remove_dir_all(cluster.members[member].dir()).unwrap();
        cluster.join(member);
    }
    cluster.wait_settled(&[0, 1, 2]);
    assert_known(&library, &in_backup);
    assert!(cluster.client.read(&written) == lines(0..500), "other bytes came back");
}

#[test]
fn what_was_restored_can_be_backed_up_and_restored() {
    let mut cluster = Metastores::found(1, 3);
    let ledger = cluster.client.write(&[], lines(0..10));
    cluster.client.run(&["metastore", "backup", "first"]).succeeded();
    cluster.members[0].kill();
    restore(&mut cluster, "first");
    let second = create(&cluster.client);
    cluster.client.run(&["metastore", "backup", "second"]).succeeded();
    cluster.members[0].kill();
    fs::remove_dir_all(cluster.home().join("restored")).unwrap();
    restore(&mut cluster, "second");
    let third = create(&cluster.client);
    assert!(third >= second + LEAP, "{third} after {second}");
    assert!(cluster.client.read(&ledger) == lines(0..10), "other bytes came back");
    assert!(cluster.client.read(&second.to_string()) == lines(0..10), "other bytes came back");
}

#[test]
fn the_last_of_three_becomes_the_cluster_again() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    creations.go_on(100);
    counters.stop();
    let created = creations.stop();
    let written = cluster.client.write(&[], lines(0..100));
    cluster.wait_all_settled();

    // The leader and a follower are gone for good, with their disks.
    let (leader, followers) = (cluster.leader(), cluster.followers());
    let (gone, left) = ([leader, followers[0]], followers[1]);
    gone.iter().for_each(|&member| cluster.members[member].kill());
    for member in gone {
        fs::remove_dir_all(cluster.members[member].dir()).unwrap();
    }
    let dir = cluster.members[left].dir();
    let dir = dir.to_str().unwrap();
    // Not from under a process that runs.
    let words = run(&cluster, &["backup", "too-early", "--dir", dir]).failed(1);
    assert!(words.contains(dir), "{words}");
    cluster.members[left].running().assert_runs();
    cluster.members[left].kill();
    let words = run(&cluster, &["backup", "backup", "--dir", dir]).succeeded();
    let words = String::from_utf8(words).unwrap();
    assert!(words.contains("\nlog ends at term ") && words.contains(", entry "), "{words}");
    restore(&mut cluster, "backup");
    assert_known(&library, &created);
    assert!(cluster.client.read(&written) == lines(0..100), "other bytes came back");
    assert_leapt(&cluster.client, &created);
    // The old one is not a part of it, and its directory was only read.
    run(&cluster, &["backup", "again", "--dir", dir]).succeeded();
}

#[test]
fn what_is_there_is_not_restored_over() {
    let mut cluster = Metastores::found(1, 3);
    let ledger = cluster.client.write(&[], lines(0..10));
    cluster.client.run(&["metastore", "backup", "backup"]).succeeded();
    cluster.members[0].kill();
    let home = cluster.home().to_owned();
    fs::create_dir(home.join("other")).unwrap();
    fs::write(home.join("other/file"), "something else").unwrap();
    for dir in ["metastore-0", "bookie-0", "other"] {
        let before = contents(&home.join(dir));
        let words = run(&cluster, &["restore", "backup", "--dir", dir]).failed(1);
        assert!(words.contains(dir), "{words}");
        assert!(contents(&home.join(dir)) == before, "{dir} was changed");
    }
    // Nor is a file a directory.
    run(&cluster, &["restore", "backup", "--dir", "backup"]).failed(1);
    cluster.members[0].restart();
    assert!(cluster.client.read(&ledger) == lines(0..10), "other bytes came back");
    run(&cluster, &["restore", "backup", "--dir", "metastore-0"]).failed(1);
    cluster.members[0].running().assert_runs();

    fs::create_dir(home.join("empty")).unwrap();
    run(&cluster, &["restore", "backup", "--dir", "empty"]).succeeded();
    run(&cluster, &["restore", "backup", "--dir", "empty"]).failed(1);
}

#[test]
fn a_damaged_backup_is_not_believed() {
    let mut cluster = Metastores::found(1, 3);
    cluster.client.write(&[], lines(0..10));
    cluster.client.run(&["metastore", "backup", "backup"]).succeeded();
    let good = fs::read(cluster.home().join("backup")).unwrap();
    let bytes = good.len();
    let refused = |damage: &str, bad: &[u8]| {
        fs::write(cluster.home().join("damaged"), bad).unwrap();
        let words = run(&cluster, &["restore", "damaged", "--dir", "restored"]).failed(1);
        assert!(words.contains("damaged"), "{damage}: {words}");
        let mut left = contents(&cluster.home().join("restored"));
        // Only what tells another process that one is at work.
        left.retain(|path, _| !path.ends_with("metastore.lock"));
        assert!(left.is_empty(), "{damage} left {:?}", left.keys());
    };
    for place in (0..bytes).step_by((bytes / 16).max(1)).chain([1, bytes / 2 + 1, bytes - 1]) {
        let mut bad = good.clone();
        bad[place] ^= 0x10;
        refused(&format!("a flipped bit in byte {place} of {bytes}"), &bad);
    }
    for end in [0, 1, 16, bytes / 2, bytes - 1] {
        refused(&format!("an end after byte {end} of {bytes}"), &good[..end]);
    }
    refused("a byte too many", &[&good[..], b"x"].concat());
    refused("twice the same", &[&good[..], &good[..]].concat());
    refused("a text", b"this is not a backup\n");

    cluster.members[0].kill();
    restore(&mut cluster, "backup");
}

#[test]
fn a_backup_that_cannot_be_made_leaves_nothing() {
    let mut cluster = Metastores::found(1, 0);
    let home = cluster.home().to_owned();
    let words = cluster.client.run(&["metastore", "backup", "no-such-dir/backup"]).failed(1);
    assert!(words.contains("no-such-dir"), "{words}");
    cluster.client.run(&["metastore", "backup", "certs"]).failed(1);
    assert!(home.join("certs/ca.pem").exists());

    // Of what is no metastore's directory there is no backup either.
    fs::create_dir(home.join("empty")).unwrap();
    for dir in ["no-such-dir", "empty", "certs"] {
        let words = run(&cluster, &["backup", "backup", "--dir", dir]).failed(1);
        assert!(words.contains(dir), "{words}");
    }
    assert!(!home.join("no-such-dir").exists() && contents(&home.join("empty")).is_empty());
    cluster.members[0].kill();
    cluster.client.run(&["metastore", "backup", "backup"]).failed(1);
    assert!(!home.join("backup").exists(), "a file of a backup that was not made");
    let words = run(&cluster, &["restore", "no-such-file", "--dir", "restored"]);
    assert!(words.stderr.contains("no-such-file") && words.status != Some(0), "{words}");
}

/// The files of a directory, with those below, and their bytes; none if there is no such directory.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            contents.extend(self::contents(&path));
        } else {
            contents.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    contents
}
