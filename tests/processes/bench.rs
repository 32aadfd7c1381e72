//! The bench measures something, and says it as agreed.

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::process::{Outcome, Process};

#[test]
fn the_bench_measures_a_cluster() {
    let cluster = Cluster::start(3);
    for command in ["append", "read", "tail"] {
        let args = ["bench", command, "--seconds", "1", "-o", "json"];
        assert_measured(cluster.client.run(&args));
    }
    let rate = ["bench", "append", "--seconds", "1", "--rate", "200", "--ledgers", "3"];
    assert_measured(cluster.client.run(&[&rate[..], &["-o", "json"]].concat()));
}

#[test]
fn the_bench_brings_its_own_cluster() {
    let home = TempDir::new().unwrap();
    for command in ["append", "read", "tail"] {
        let args = ["bench", command, "--seconds", "1", "-o", "json"];
        assert_measured(Process::start(home.path(), None, &args).outcome());
    }
}

#[test]
fn the_bench_measures_the_metastore() {
    let cluster = Cluster::start(0);
    let bench = ["bench", "metastore", "--seconds", "1", "-o", "json"];
    let measured = json(cluster.client.run(&[&bench[..], &["--clients", "7"]].concat()));
    assert_eq!(measured.as_object().unwrap().len(), 3, "{measured}");
    for operation in ["cas", "create", "get"] {
        assert_figures(&measured[operation], &["operations_per_second"]);
    }

    let home = TempDir::new().unwrap();
    let args = [&bench[..], &["--operation", "cas", "--metastores", "1"]].concat();
    let measured = json(Process::start(home.path(), None, &args).outcome());
    assert_eq!(measured.as_object().unwrap().len(), 1, "{measured}");
    assert_figures(&measured["cas"], &["operations_per_second"]);
}

#[test]
fn a_load_of_the_metastore_that_cannot_be_is_refused() {
    let cluster = Cluster::start(0);
    for (name, value) in
        [("clients", "0"), ("clients", "1025"), ("value-bytes", "1048577"), ("metastores", "2")]
    {
        let name = format!("--{name}");
        let words = cluster.client.run(&["bench", "metastore", &name, value]).failed(2);
        assert!(words.contains(&name) && words.contains(value), "{words}");
    }
    // The cluster has as many as it has.
    let words = cluster.client.run(&["bench", "metastore", "--metastores", "1"]).failed(2);
    assert!(words.contains("--metastores"), "{words}");
}

fn assert_measured(outcome: Outcome) {
    assert_figures(&json(outcome), &["entries_per_second", "megabytes_per_second"]);
}

fn json(outcome: Outcome) -> Value {
    serde_json::from_slice(&outcome.succeeded()).unwrap()
}

/// Checks that there are figures, and nothing about how large they are.
fn assert_figures(measured: &Value, rates: &[&str]) {
    let number = |path: &str| {
        let value = measured.pointer(path).and_then(Value::as_f64);
        value.filter(|&n| n > 0.0).unwrap_or_else(|| panic!("{path} in {measured}"))
    };
    let [p50, p99, p999] = ["p50", "p99", "p999"].map(|p| number(&format!("/latency_us/{p}")));
    assert!(p50 <= p99 && p99 <= p999, "{measured}");
    for rate in rates {
        number(&format!("/{rate}"));
    }
}
