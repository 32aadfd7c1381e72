//! The bench measures something, and says it as agreed.

use std::fs;

use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::Cluster;
use crate::process::{Outcome, Process};

#[test]
fn the_bench_measures_a_cluster() {
    let cluster = Cluster::start(3);
    for command in ["append", "read", "tail"] {
        let args = ["bench", command, "--seconds", "1", "--no-baseline", "-o", "json"];
        assert_measured(&json(cluster.client.run(&args)));
    }
    let rate = ["bench", "append", "--seconds", "1", "--rate", "200", "--ledgers", "3"];
    assert_measured(&json(cluster.client.run(&[&rate[..], &["-o", "json"]].concat())));
}

#[test]
fn the_bench_reads_a_ledger_in_runs_and_keeps_it() {
    let cluster = Cluster::start(3);
    let lines: String = (0..1000).map(|line| format!("{line:09}\n")).collect();
    let ledger = cluster.client.write(&[], lines.as_bytes());
    let bench = ["bench", "read", "--seconds", "1", "--no-baseline", "-o", "json"];
    for run in ["10", "1000000"] {
        let named = ["--ledger", &ledger, "--run", run, "--window", "2", "--drop-caches", "."];
        let measured = json(cluster.client.run(&[&bench[..], &named].concat()));
        assert_measured(&measured);
        let [entries, megabytes] = ["entries", "megabytes"]
            .map(|what| measured[format!("{what}_per_second")].as_f64().unwrap());
        assert!((megabytes * 1e6 / entries - 10.0).abs() < 0.1, "{measured}");
    }
    cluster.client.run(&["ledger", "read", &ledger]).succeeded();

    let words = cluster.client.run(&["bench", "read", "--drop-caches", "nowhere"]).failed(1);
    assert!(words.contains("nowhere"), "{words}");
    let words = cluster.client.run(&["bench", "read", "--ledger", &ledger, "--ledgers", "2"]);
    assert!(words.failed(2).contains("--ledgers"));
}

#[test]
fn the_bench_brings_its_own_cluster_and_tells_what_the_machine_allows() {
    let home = TempDir::new().unwrap();
    let dir = home.path().join("measured");
    fs::create_dir(&dir).unwrap();
    let path = dir.to_str().unwrap();
    let run = |args: &[&str]| json(Process::start(home.path(), None, args).outcome());
    for command in ["append", "read", "tail"] {
        let args = ["bench", command, "--seconds", "1", "--dir", path, "-o", "json"];
        let measured = run(&args);
        assert_measured(&measured);
        assert_eq!(measured.get("ratio").is_some(), command != "tail", "{measured}");
        if let Some(baseline) = measured.get("baseline") {
            assert_baseline(baseline);
        }
    }
    assert_baseline(&run(&["bench", "baseline", "--seconds", "1", "--dir", path, "-o", "json"]));
    assert_eq!(dir.read_dir().unwrap().count(), 0, "something was left behind");

    let nowhere = ["bench", "baseline", "--dir", "nowhere"];
    let words = Process::start(home.path(), None, &nowhere).outcome().failed(1);
    assert!(words.contains("nowhere"), "{words}");
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

fn assert_measured(measured: &Value) {
    assert_figures(measured, &["entries_per_second", "megabytes_per_second"]);
}

fn assert_baseline(baseline: &Value) {
    for append in ["append_4_kib_us", "append_256_kib_us"] {
        assert!(baseline[append]["p50"].as_u64() > Some(0), "{baseline}");
    }
    let rates = ["disk_read_megabytes_per_second", "echo_frames_per_second"];
    for rate in rates.into_iter().chain(["echo_cpu_us_per_frame", "stream_megabytes_per_second"]) {
        assert!(baseline[rate].as_f64() > Some(0.0), "{rate} in {baseline}");
    }
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
