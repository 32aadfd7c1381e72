//! Bad input gets an error with words and the right exit status, and nothing is lost.

use std::fs;

use serde_json::{Deserializer, Value};
use tempfile::TempDir;

use crate::cluster::{Cluster, assert_keeps, lines};
use crate::process::Process;

#[test]
fn sizes_of_an_ensemble_that_break_the_rule_are_a_usage_error() {
    let cluster = Cluster::start(0);
    for (ensemble, write_quorum, ack_quorum) in
        [("3", "4", "2"), ("3", "3", "4"), ("3", "2", "3"), ("3", "3", "0"), ("0", "0", "0")]
    {
        for command in [&["ledger", "write"], &["bench", "append"]] {
            let sizes = [
                "--ensemble",
                ensemble,
                "--write-quorum",
                write_quorum,
                "--ack-quorum",
                ack_quorum,
            ];
            cluster.client.run(&[&command[..], &sizes[..]].concat()).failed(2);
        }
    }
}

#[test]
fn more_bookies_than_there_are_cannot_be_had() {
    let cluster = Cluster::start(3);
    let words = cluster.client.run(&["ledger", "write", "--ensemble", "4"]).failed(1);
    assert!(words.contains("bookies"), "{words}");
}

#[test]
fn an_entry_over_the_limit_fails_the_writer_but_not_those_before() {
    let cluster = Cluster::start(3);
    for too_large in [vec![b'x'; (1 << 20) + 1], [vec![b'x'; 3 << 20], b"\n".to_vec()].concat()] {
        let writer = cluster.client.writer(&[]);
        writer.send(lines(0..10));
        writer.send(too_large);
        // Its input is open still, and the first of these lines has no end yet.
        let ledger = writer.ledger.clone();
        let (outcome, confirmed) = writer.outcome();
        let words = outcome.failed(1);
        assert!(words.contains("1048576") || words.contains("1 MiB"), "{words}");
        assert_eq!(confirmed, Some(9));

        assert!(cluster.client.show(&ledger).contains("open"));
        let end = cluster.client.recover(&ledger);
        assert_keeps(&cluster.client.read(&ledger), Some(9), end);
    }
}

#[test]
fn what_is_not_there_is_not_read() {
    let cluster = Cluster::start(3);
    for command in ["read", "tail", "recover", "show", "delete"] {
        let words = cluster.client.run(&["ledger", command, "987654321"]).failed(1);
        assert!(words.contains("987654321"), "{words}");
    }

    let ledger = cluster.client.write(&[], lines(0..5));
    for range in [&["--from", "2", "--to", "5"][..], &["--from", "100"], &["--to", "100"]] {
        let outcome = cluster.client.run(&[&["ledger", "read", &ledger], range].concat());
        assert_eq!(outcome.stdout, b"");
        outcome.failed(1);
    }
}

#[test]
fn ids_are_decimal() {
    let cluster = Cluster::start(0);
    for id in ["0x10", "ten", "1e3", "1.5", "", "99999999999999999999999"] {
        for command in ["read", "tail", "recover", "show", "delete"] {
            cluster.client.run(&["ledger", command, id]).failed(2);
        }
        for command in ["read", "tail"] {
            cluster.client.run(&["ledger", command, "1", "--from", id]).failed(2);
        }
    }
    cluster.client.run(&["ledger", "read", "-1"]).failed(2);
    cluster.client.run(&["ledger", "write", "--chunk-bytes", "0"]).failed(2);
    cluster.client.run(&["no-such-command"]).failed(2);
    cluster.client.run(&[]).failed(2);
}

#[test]
fn a_missing_configuration_is_named() {
    let home = TempDir::new().unwrap();
    let run = |args: &[&str]| {
        let mut process = Process::start(home.path(), None, args);
        process.end_input();
        let outcome = process.outcome();
        assert!(matches!(outcome.status, Some(1 | 2)), "{outcome}");
        let Some(status) = outcome.status else { unreachable!() };
        outcome.failed(status)
    };
    for command in ["list", "write"] {
        let words = run(&["ledger", command]);
        assert!(words.contains("--config") && words.contains("INKFAST_CONFIG"), "{words}");
    }
    let words = run(&["ledger", "list", "--config", "absent.toml"]);
    assert!(words.contains("absent.toml"), "{words}");

    for text in ["metastore = [", "metastore = 7", "", "metastroe = []", "metastore = []"] {
        fs::write(home.path().join("broken.toml"), text).unwrap();
        let words = run(&["ledger", "list", "--config", "broken.toml"]);
        assert!(words.contains("broken.toml"), "{words}");
    }
    let text = "metastore = [\"127.0.0.1:1\"]\ncerts = \"no-such-dir\"\n";
    fs::write(home.path().join("no-certs.toml"), text).unwrap();
    let words = run(&["ledger", "list", "--config", "no-certs.toml"]);
    assert!(words.contains("no-such-dir"), "{words}");
}

#[test]
fn json_can_be_parsed_and_knows_the_ledger() {
    let cluster = Cluster::start(3);
    let ledger = cluster.client.write(&["--leave-open"], lines(0..5));
    let number: u64 = ledger.parse().unwrap();
    for args in [&["recover", &ledger][..], &["show", &ledger], &["list"]] {
        let args = [&["ledger"], args, &["-o", "json"]].concat();
        let stdout = cluster.client.run(&args).succeeded();
        let values: Result<Vec<Value>, _> = Deserializer::from_slice(&stdout).into_iter().collect();
        let values = Value::Array(values.unwrap());
        assert!(holds(&values, &Value::from(number)), "{args:?}: {values}");
    }
}

/// Whether this value is somewhere in the other.
fn holds(value: &Value, wanted: &Value) -> bool {
    value == wanted
        || match value {
            Value::Array(values) => values.iter().any(|value| holds(value, wanted)),
            Value::Object(fields) => fields.values().any(|value| holds(value, wanted)),
            _ => false,
        }
}
