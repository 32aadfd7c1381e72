//! Calls that are wrong in themselves, and pages of help.

use std::time::{Duration, Instant};

use inkfast_metastore::{Error, Metastore, Scan, Transaction, Version};
use tempfile::TempDir;

use crate::cluster::{Client, create_certs, write_config};
use crate::metastores::{Member, Metastores};
use crate::process::Process;

#[test]
fn wrong_calls_are_told_from_failures() {
    let home = TempDir::new().unwrap();
    create_certs(home.path(), "certs");
    let nowhere = Member::new(home.path(), 0, None);
    let config = write_config(home.path(), "client.toml", &[nowhere.address], "certs");
    let client = Client::new(home.path(), config);
    for wrong in [
        "metastore",
        "metastore no-such-command",
        "metastore status extra",
        "metastore status -o yaml",
        "metastore add-member",
        "metastore add-member nonsense",
        "metastore add-member 127.0.0.1",
        "metastore add-member 127.0.0.1:99999",
        "metastore remove-member",
        "metastore remove-member nonsense",
        "metastore remove-member 11111111-2222-4333-8444",
        "metastore transfer-leader",
        "metastore transfer-leader nonsense",
        "metastore backup",
        "metastore restore",
        "metastore restore backup",
        "start metastore --dir m --certs certs --listen 127.0.0.1:0 --join",
        "start metastore --dir m --certs certs --listen 127.0.0.1:0 --join nonsense",
        "start metastore --dir m --certs certs --listen 127.0.0.1:0 --join ,",
        "start metastore --dir m --certs certs --listen 127.0.0.1:0 --advertise nonsense",
        "bench metastore --seconds no",
        "bench metastore --clients 0",
    ] {
        let args: Vec<_> = wrong.split_whitespace().collect();
        let outcome = client.run(&args);
        assert_eq!(outcome.status, Some(2), "`{wrong}`: {outcome}");
        outcome.failed(2);
    }
    assert!(!home.path().join("m").exists(), "a call that was refused left something behind");
}

#[test]
fn nobody_there_is_told_in_time() {
    let home = TempDir::new().unwrap();
    create_certs(home.path(), "certs");
    let nowhere = Member::new(home.path(), 0, None);
    let config = write_config(home.path(), "client.toml", &[nowhere.address], "certs");
    let client = Client::new(home.path(), config);
    let address = nowhere.address.to_string();
    let since = Instant::now();
    let calls = [
        &["status"][..],
        &["status", "-o", "json"],
        &["add-member", &address],
        &["remove-member", &address],
        &["transfer-leader", &address],
        &["backup", "file"],
    ];
    let calls = calls.map(|args| client.start(&[&["metastore"], args].concat()));
    for call in calls {
        let words = call.outcome().failed(1);
        assert!(words.contains(&address), "{words}");
    }
    assert!(since.elapsed() < Duration::from_secs(60), "it took {:?}", since.elapsed());
}

#[test]
fn commands_that_ask_a_cluster_need_to_know_which() {
    let home = TempDir::new().unwrap();
    for args in [
        &["status"][..],
        &["add-member", "127.0.0.1:1"],
        &["remove-member", "127.0.0.1:1"],
        &["transfer-leader", "127.0.0.1:1"],
        &["backup", "file"],
    ] {
        let words = Process::start(home.path(), None, &[&["metastore"], args].concat());
        let words = words.outcome().failed(2);
        assert!(words.contains("--config") && words.contains("INKFAST_CONFIG"), "{words}");
    }
}

#[test]
fn help_is_there_on_every_level() {
    let home = TempDir::new().unwrap();
    for command in [
        "metastore",
        "metastore status",
        "metastore add-member",
        "metastore remove-member",
        "metastore transfer-leader",
        "metastore backup",
        "metastore restore",
        "bench metastore",
        "start metastore",
        "start cluster",
    ] {
        let args: Vec<_> = command.split_whitespace().chain(["--help"]).collect();
        let help = Process::start(home.path(), None, &args).outcome().succeeded();
        let help = String::from_utf8(help).unwrap();
        assert!(help.len() > 100, "{command}: {help}");
    }
}

#[test]
fn bad_requests_are_refused_by_every_member() {
    let cluster = Metastores::start(3, 0);
    let library = cluster.library();
    for member in &cluster.members {
        let store = library.store_of(&[member.address], inkfast_metastore::DEFAULT_TIMEOUT);
        library.run(refuses(store.as_ref()));
    }
    cluster.wait_all_settled();
}

async fn refuses(store: &dyn Metastore) {
    let is_bad = |outcome: Result<Version, Error>| {
        assert!(matches!(outcome, Err(Error::BadRequest { .. })), "{outcome:?}");
    };
    let key = "k".repeat(inkfast_metastore::KEY_BYTES_MAX + 1);
    is_bad(store.commit(Transaction::new().put(key, "")).await);
    let value = vec![0; inkfast_metastore::VALUE_BYTES_MAX + 1];
    is_bad(store.commit(Transaction::new().put("bad/large", value)).await);
    is_bad(store.commit(Transaction::new().put("", "")).await);
    assert_eq!(store.get("bad/large").await, Ok(None));

    let never = Version::new(u64::MAX >> 1);
    let outcome = store.commit(Transaction::new().replace("bad/absent", never, "")).await;
    assert!(matches!(outcome, Err(Error::Conflict { found: None, .. })), "{outcome:?}");
    let outcome = store.watch("bad/", never).await;
    assert!(matches!(outcome, Err(Error::BadRequest { .. })), "{outcome:?}");
    let lease = store.grant_lease(Duration::from_secs(10)).await.unwrap();
    store.end_lease(lease).await.unwrap();
    let outcome = store.commit(Transaction::new().put_leased("bad/leased", "", lease)).await;
    assert_eq!(outcome, Err(Error::LeaseNotFound));
    let page = store.scan(Scan::new("bad/")).await.unwrap();
    assert!(page.entries.is_empty(), "{page:?}");
}
