//! `start cluster` with several metastores.

use std::fs;
use std::net::SocketAddr;

use tempfile::TempDir;

use crate::cluster::{Client, lines};
use crate::load::until;
use crate::metastores::status::Status;
use crate::process::{Process, Signal};

const THREE: &[&str] = &["start", "cluster", "--dir", "data", "--metastores", "3"];

/// The addresses of a line `ready metastore A1,A2,.. bookies B1 B2 ..`: metastores and bookies.
fn addresses(line: &str) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
    let words: Vec<_> = line.split_whitespace().collect();
    let ["ready", "metastore", metastores, "bookies", bookies @ ..] = words.as_slice() else {
        panic!("`{line}`");
    };
    let metastores = metastores.split(',').map(|address| address.parse().unwrap()).collect();
    (metastores, bookies.iter().map(|address| address.parse().unwrap()).collect())
}

#[test]
fn a_cluster_in_one_process_may_have_three_metastores() {
    let home = TempDir::new().unwrap();
    let config = home.path().join("data/client.toml");
    let client = Client::new(home.path(), config.clone());
    let mut process = Process::start(home.path(), None, THREE);
    let line = process.line_with("ready");
    let (metastores, bookies) = addresses(&line);
    assert_eq!((metastores.len(), bookies.len()), (3, 3), "{line}");
    let written = fs::read_to_string(&config).unwrap();
    assert!(metastores.iter().all(|m| written.contains(&m.to_string())), "{written}");
    let before = settled(&client, &metastores);
    let ledger = client.write(&[], lines(0..100));

    let ended_by: [fn(Process); 3] = [
        |process| drop(process.kill()),
        |process| end_well(process, Signal::Terminate),
        |process| end_well(process, Signal::Interrupt),
    ];
    for end in ended_by {
        end(process);
        process = Process::start(home.path(), None, THREE);
        let line = process.line_with("ready");
        assert_eq!(addresses(&line).0, metastores, "{line}");
        assert_eq!(fs::read_to_string(&config).unwrap(), written);
        assert_eq!(settled(&client, &metastores).cluster, before.cluster);
        assert!(client.read(&ledger) == lines(0..100), "other bytes came back");
        let new = client.write(&[], lines(0..10));
        assert!(client.read(&new) == lines(0..10), "other bytes came back");
    }
}

#[test]
fn one_without_a_directory_serves_too() {
    let home = TempDir::new().unwrap();
    let args = ["start", "cluster", "--metastores", "3", "--bookies", "1"];
    let mut process = Process::start(home.path(), None, &args);
    let line = process.line_with("ready");
    let (metastores, bookies) = addresses(&line);
    assert_eq!((metastores.len(), bookies.len()), (3, 1), "{line}");
    end_well(process, Signal::Terminate);
}

#[test]
fn numbers_of_metastores_that_make_no_sense_are_refused() {
    let home = TempDir::new().unwrap();
    for number in ["0", "-1", "three", ""] {
        let args = ["start", "cluster", "--dir", "data", "--metastores", number];
        Process::start(home.path(), None, &args).outcome().failed(2);
        assert!(!home.path().join("data").exists(), "{number} left something behind");
    }
}

fn settled(client: &Client, metastores: &[SocketAddr]) -> Status {
    let mut settled = None;
    until("settled", || {
        settled = Status::ask(client).filter(|status| status.is_settled(metastores, Some(0)));
        settled.is_some()
    });
    settled.expect("it was waited for")
}

fn end_well(process: Process, signal: Signal) {
    process.signal(signal);
    process.outcome().succeeded();
}
