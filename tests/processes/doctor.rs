//! The doctor, at the directory of a real bookie.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::cluster::{Cluster, lines};
use crate::process::{Outcome, Process};

/// All files of a directory, with their bytes.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap());
    files.map(|it| (it.file_name().into_string().unwrap(), fs::read(it.path()).unwrap())).collect()
}

/// Runs the doctor on the first bookie's directory.
fn doctor(cluster: &Cluster, args: &[&str]) -> Outcome {
    let dir = cluster.bookie_dir(0);
    let bookie = ["doctor", "bookie", "--dir", dir.to_str().unwrap()];
    Process::start(cluster.home(), None, &[&bookie, args].concat()).outcome()
}

fn text(outcome: Outcome) -> String {
    String::from_utf8(outcome.succeeded()).unwrap()
}

/// A cluster with a closed ledger and one that is being written, of which the bookie was killed.
fn killed() -> (Cluster, String) {
    let mut cluster = Cluster::start(3);
    // So that this bookie has all of it.
    let ledger = cluster.client.write(&["--ack-quorum", "3"], lines(0..1000));
    cluster.client.write(&["--ack-quorum", "3", "--leave-open"], lines(0..1000));
    cluster.bookies[0].kill();
    (cluster, ledger)
}

#[test]
fn a_killed_bookie_is_sound_and_nothing_changes_by_looking() {
    let (mut cluster, ledger) = killed();
    let dir = cluster.bookie_dir(0);
    let before = contents(&dir);
    let shown = text(doctor(&cluster, &[]));
    assert!(shown.trim_end().ends_with("\nsound"), "{shown}");
    cluster.bookies[0].assert_named_in(&shown);
    let json: Value =
        serde_json::from_slice(&doctor(&cluster, &["-o", "json"]).succeeded()).unwrap();
    assert_eq!(json["sound"], true);
    assert_eq!(json["directories"][0]["entries"], 2000);

    let listed = text(doctor(&cluster, &["records", "--ledger", &ledger]));
    assert_eq!(listed.lines().filter(|line| line.contains(" entry ")).count(), 1000);
    assert_eq!(doctor(&cluster, &["dump", &ledger, "77"]).succeeded(), b"line 77\n");
    doctor(&cluster, &["dump", &ledger, "77", "--out", "77.txt"]).succeeded();
    assert_eq!(fs::read(cluster.home().join("77.txt")).unwrap(), b"line 77\n");
    let words = doctor(&cluster, &["dump", &ledger, "1000"]).failed(1);
    assert!(words.contains("not there"), "{words}");
    assert!(contents(&dir) == before, "something has changed");

    cluster.bookies[0].restart();
    let words = doctor(&cluster, &[]).failed(1);
    assert!(words.contains("in use"), "{words}");
    doctor(&cluster, &["rebuild-index"]).failed(1);
    assert!(cluster.client.read(&ledger) == lines(0..1000));
}

#[test]
fn a_flipped_bit_and_a_lost_segment_are_found() {
    let (cluster, ledger) = killed();
    let dir = cluster.bookie_dir(0);
    let segment = dir.join("log-0000000000000001");
    let mut bytes = fs::read(&segment).unwrap();
    let line = b"line 77\n";
    let at = bytes.windows(line.len()).position(|window| window == line).unwrap();
    bytes[at] ^= 4;
    fs::write(&segment, &bytes).unwrap();
    let before = contents(&dir);
    let outcome = doctor(&cluster, &[]);
    let shown = String::from_utf8(outcome.stdout.clone()).unwrap();
    let words = outcome.failed(1);
    assert!(shown.contains("log-0000000000000001 is corrupt: "), "{shown}");
    assert!(words.contains("the log is damaged"), "{words}");
    let listed = text(doctor(&cluster, &["records", "--segment", "1"]));
    assert_eq!(listed.matches("DAMAGE").count(), 1);
    doctor(&cluster, &["dump", &ledger, "77"]).failed(1);
    assert_eq!(doctor(&cluster, &["dump", &ledger, "78"]).succeeded(), b"line 78\n");
    // The index knows what the log has lost.
    let words = doctor(&cluster, &["rebuild-index"]).failed(1);
    assert!(words.contains("it stays"), "{words}");
    assert!(contents(&dir) == before, "something has changed");

    fs::remove_file(&segment).unwrap();
    let outcome = doctor(&cluster, &[]);
    assert_eq!(outcome.status, Some(1));
    let shown = String::from_utf8(outcome.stdout).unwrap();
    assert!(shown.contains("no segment file"), "{shown}");
}

#[test]
fn a_lost_index_is_made_anew() {
    let (mut cluster, ledger) = killed();
    let index = cluster.bookie_dir(0).join("index.redb");
    fs::remove_file(&index).unwrap();
    let words = doctor(&cluster, &[]).failed(1);
    assert!(words.contains("nothing is lost"), "{words}");
    assert!(!index.exists());
    let said = text(doctor(&cluster, &["rebuild-index"]));
    assert!(said.contains("2000 entries of 2 ledgers"), "{said}");
    let shown = text(doctor(&cluster, &[]));
    assert!(shown.contains("sound, up to log-0000000000000001"), "{shown}");
    cluster.bookies[0].restart();
    cluster.bookies[1].kill();
    cluster.bookies[2].kill();
    assert!(cluster.client.read(&ledger) == lines(0..1000));
}

#[test]
fn what_is_no_bookies_directory_is_refused_and_not_made() {
    let cluster = Cluster::start(0);
    let examine = |dir: &str| {
        Process::start(cluster.home(), None, &["doctor", "bookie", "--dir", dir]).outcome()
    };
    let words = examine("missing").failed(1);
    assert!(words.contains("no such directory"), "{words}");
    assert!(!cluster.home().join("missing").exists());
    let words = examine("certs").failed(1);
    assert!(words.contains("no bookie's"), "{words}");
    Process::start(cluster.home(), None, &["doctor", "bookie"]).outcome().failed(2);
}
