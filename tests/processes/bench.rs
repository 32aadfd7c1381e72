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

/// Checks that there are figures, and nothing about how large they are.
fn assert_measured(outcome: Outcome) {
    let measured: Value = serde_json::from_slice(&outcome.succeeded()).unwrap();
    let number = |path: &str| {
        let value = measured.pointer(path).and_then(Value::as_f64);
        value.filter(|&n| n > 0.0).unwrap_or_else(|| panic!("{path} in {measured}"))
    };
    let [p50, p99, p999] = ["p50", "p99", "p999"].map(|p| number(&format!("/latency_us/{p}")));
    assert!(p50 <= p99 && p99 <= p999, "{measured}");
    number("/megabytes_per_second");
    number("/entries_per_second");
}
