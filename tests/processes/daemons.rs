//! The demo, and the cluster in one process.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::cluster::{Client, lines};
use crate::process::{Process, Signal};

/// An `inkfast start cluster --dir data`, and a client with the configuration that it wrote.
pub(crate) struct InOneProcess {
    pub(crate) process: Process,
    pub(crate) client: Client,
}

pub(crate) fn start_cluster(home: &Path, args: &[&str]) -> InOneProcess {
    let args = [&["start", "cluster", "--dir", "data"], args].concat();
    let mut process = Process::start(home, None, &args);
    process.line_with("ready");
    InOneProcess { process, client: Client::new(home, home.join("data/client.toml")) }
}

#[test]
fn the_demo_holds() {
    let home = TempDir::new().unwrap();
    Process::start(home.path(), None, &["demo"]).outcome().succeeded();
}

#[test]
fn the_demo_holds_with_a_file() {
    let home = TempDir::new().unwrap();
    let mut file = lines(0..2000);
    file.extend_from_slice(b"\n\xff\0 and no newline");
    fs::write(home.path().join("file"), &file).unwrap();
    Process::start(home.path(), None, &["demo", "file"]).outcome().succeeded();
    let words = Process::start(home.path(), None, &["demo", "no-such-file"]).outcome().failed(1);
    assert!(words.contains("no-such-file"), "{words}");
}

#[test]
fn a_cluster_in_one_process_comes_back_with_its_data_and_grows() {
    let home = TempDir::new().unwrap();
    let config = || fs::read_to_string(home.path().join("data/client.toml")).unwrap();
    let cluster = start_cluster(home.path(), &[]);
    let before = config();
    let ledger = cluster.client.write(&[], lines(0..1000));
    let open = cluster.client.write(&["--leave-open"], lines(0..100));
    cluster.process.kill();

    // Without a cluster there is no answer, and no hanging either.
    cluster.client.run(&["ledger", "list"]).failed(1);

    let cluster = start_cluster(home.path(), &["--bookies", "4"]);
    assert_eq!(config(), before, "the same ports");
    assert!(cluster.client.read(&ledger) == lines(0..1000), "other bytes came back");
    cluster.client.recover(&open);
    assert!(cluster.client.read(&open) == lines(0..100));
    let sizes = ["--ensemble", "4", "--write-quorum", "3", "--ack-quorum", "2"];
    cluster.client.write(&sizes, lines(0..100));
    cluster.process.signal(Signal::Terminate);
    cluster.process.outcome().succeeded();

    let fewer = ["start", "cluster", "--dir", "data", "--bookies", "3"];
    let refused = Process::start(home.path(), None, &fewer).outcome();
    assert!(matches!(refused.status, Some(1 | 2)), "{refused}");
    assert!(refused.stderr.contains('4'), "{refused}");

    let cluster = start_cluster(home.path(), &["--bookies", "4"]);
    assert!(cluster.client.read(&ledger) == lines(0..1000), "other bytes came back");
    cluster.process.signal(Signal::Interrupt);
    cluster.process.outcome().succeeded();
}

#[test]
fn a_cluster_directory_is_used_by_one_process_at_a_time() {
    let home = TempDir::new().unwrap();
    let mut cluster = start_cluster(home.path(), &[]);
    Process::start(home.path(), None, &["start", "cluster", "--dir", "data"]).outcome().failed(1);
    cluster.process.assert_runs();
    let ledger = cluster.client.write(&[], "a\n");
    assert_eq!(cluster.client.read(&ledger), b"a\n");
}

#[test]
fn a_cluster_without_a_directory_serves_too() {
    let home = TempDir::new().unwrap();
    let mut process = Process::start(home.path(), None, &["start", "cluster"]);
    process.line_with("ready");
    process.signal(Signal::Terminate);
    process.outcome().succeeded();
}

#[test]
fn help_is_there_on_every_level() {
    let home = TempDir::new().unwrap();
    for command in [
        "",
        "demo",
        "start",
        "start cluster",
        "start metastore",
        "start bookie",
        "certs",
        "certs create",
        "ledger",
        "ledger write",
        "ledger read",
        "ledger tail",
        "ledger recover",
        "ledger show",
        "ledger list",
        "ledger delete",
        "bench",
        "bench append",
        "bench read",
    ] {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let help = Process::start(home.path(), None, &args).outcome().succeeded();
        assert!(help.len() > 100, "{command}");
    }
}
