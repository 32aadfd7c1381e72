//! The client library against a cluster in this process: real sockets, real files.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use inkfast::catalog::Catalog;
use inkfast::{CreateOptions, EntryId, Error, PAYLOAD_BYTES_MAX, Replication, State};
use inkfast_metastore::{DEFAULT_TIMEOUT, Metastore, RemoteMetastore, Scan};
use inkfast_wire::{Endpoint, Identity, Net, Role};
use uuid::Uuid;

use support::{cluster, payloads};

mod support;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn entries_are_numbered_in_the_order_of_the_calls() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    // More bytes than there is room for, so that most calls wait.
    let calls = (0..60_u8).map(|n| writer.append(vec![n; 200_000]));
    let appends = join_all(calls).await;
    for (n, append) in appends.into_iter().enumerate() {
        assert_eq!(append.unwrap().entry(), EntryId::new(n as u64));
    }
    assert_eq!(writer.flush().await.unwrap(), Some(EntryId::new(59)));
    let ledger = writer.id();
    assert_eq!(writer.close().await.unwrap(), Some(EntryId::new(59)));
    let read = payloads(&client.open_ledger(ledger).await.unwrap()).await;
    assert!((0..60_u8).zip(&read).all(|(n, payload)| payload[..] == vec![n; 200_000]));
    cluster.stop().await;
}

#[tokio::test]
async fn an_entry_over_the_limit_is_refused_and_the_writer_goes_on() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    let refused = writer.append(vec![0; PAYLOAD_BYTES_MAX + 1]).await;
    assert!(matches!(refused, Err(Error::EntryTooLarge(bytes)) if bytes == PAYLOAD_BYTES_MAX + 1));
    let append = writer.append(vec![0; PAYLOAD_BYTES_MAX]).await.unwrap();
    assert_eq!(append.await.unwrap(), EntryId::FIRST);
    writer.append("").await.unwrap().await.unwrap();
    let ledger = writer.id();
    writer.close().await.unwrap();
    let read = payloads(&client.open_ledger(ledger).await.unwrap()).await;
    assert_eq!(read.iter().map(Bytes::len).collect::<Vec<_>>(), [PAYLOAD_BYTES_MAX, 0]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_writer_that_was_taken_over_is_fenced_and_changes_nothing() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    writer.append("a").await.unwrap().await.unwrap();
    let other = cluster.client().await.unwrap();
    let recovered = other.recover_ledger(writer.id()).await.unwrap();
    let end = State::Closed { last: Some(EntryId::FIRST), length: 1 };
    assert_eq!(recovered.metadata().state, end);

    let late = writer.append("b").await.unwrap().await;
    assert!(matches!(late, Err(Error::Fenced(_))), "{late:?}");
    assert!(matches!(writer.failed().await, Error::Fenced(_)));
    assert!(matches!(writer.append("c").await, Err(Error::Fenced(_))));
    let ledger = writer.id();
    // Its end is the one that was found, so its close is as good as done.
    assert_eq!(writer.close().await.unwrap(), Some(EntryId::FIRST));
    assert_eq!(client.ledger_metadata(ledger).await.unwrap(), recovered.metadata());
    cluster.stop().await;
}

#[tokio::test]
async fn a_flush_after_a_failure_says_so() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    writer.append("a").await.unwrap().await.unwrap();
    cluster.client().await.unwrap().recover_ledger(writer.id()).await.unwrap();
    // Nobody looks at what becomes of these.
    drop(writer.append("b").await.unwrap());
    writer.failed().await;
    let flushed = writer.flush().await;
    assert!(matches!(flushed, Err(Error::Fenced(_))), "{flushed:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_reader_of_an_open_ledger_does_not_disturb_its_writer() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    let reader = client.open_ledger(writer.id()).await.unwrap();
    assert_eq!(reader.last_add_confirmed().await.unwrap(), None);
    for payload in ["a", "b", "c"] {
        writer.append(payload).await.unwrap().await.unwrap();
    }
    // An entry tells that the one before it is confirmed; of the last, its writer tells soon.
    let last = Some(EntryId::new(2));
    assert!(reader.last_add_confirmed().await.unwrap() >= Some(EntryId::new(1)));
    let told = async { while reader.last_add_confirmed().await.unwrap() < last {} };
    tokio::time::timeout(PATIENCE, told).await.unwrap();
    assert_eq!(payloads(&reader).await, ["a", "b", "c"]);
    let beyond = Box::pin(reader.read(EntryId::FIRST..=EntryId::new(3))).next().await.unwrap();
    assert!(matches!(beyond, Err(Error::NotConfirmed { .. })), "{beyond:?}");

    writer.append("d").await.unwrap().await.unwrap();
    writer.close().await.unwrap();
    assert_eq!(payloads(&reader).await, ["a", "b", "c", "d"]);
    let beyond = Box::pin(reader.read(EntryId::new(3)..=EntryId::new(4))).next().await.unwrap();
    assert!(matches!(beyond, Err(Error::BeyondEnd { .. })), "{beyond:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn many_reads_at_once_share_their_clients_connections() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    writer.append("a").await.unwrap().await.unwrap();
    let ledger = writer.id();
    writer.close().await.unwrap();
    // More than a bookie lets in at once, were each to come by itself.
    let reader = cluster.client().await.unwrap().open_ledger(ledger).await.unwrap();
    for read in join_all((0..500).map(|_| payloads(&reader))).await {
        assert_eq!(read, ["a"]);
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_ledger_without_entries_is_closed_and_recovered() {
    let (cluster, client) = cluster(3).await;
    let end = State::Closed { last: None, length: 0 };
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    let (closed, left) = (writer.id(), client.create_ledger(CreateOptions::default()).await);
    assert_eq!(writer.flush().await.unwrap(), None);
    assert_eq!(writer.close().await.unwrap(), None);
    assert_eq!(client.ledger_metadata(closed).await.unwrap().state, end);
    let left = left.unwrap().id();
    assert_eq!(client.recover_ledger(left).await.unwrap().metadata().state, end);
    cluster.stop().await;
}

#[tokio::test]
async fn a_request_creates_one_ledger() {
    let (cluster, client) = cluster(3).await;
    let request = Some(Uuid::from_u128(7));
    let options = CreateOptions { request, ..CreateOptions::default() };
    let writer = client.create_ledger(options.clone()).await.unwrap();
    let other = cluster.client().await.unwrap();
    for client in [&client, &other] {
        let again = client.create_ledger(options.clone()).await.err();
        assert!(
            matches!(again, Some(Error::AlreadyCreated { ledger, .. }) if ledger == writer.id()),
            "{again:?}"
        );
    }
    let ledgers: Vec<_> = client.list_ledgers(None).try_collect().await.unwrap();
    assert_eq!(ledgers.len(), 1);
    // Its request may create another once it is gone.
    client.delete_ledger(writer.id()).await.unwrap();
    assert_ne!(client.create_ledger(options).await.unwrap().id(), writer.id());
    cluster.stop().await;
}

#[tokio::test]
async fn a_request_that_is_sent_twice_at_once_gives_one_writer() {
    let (cluster, client) = cluster(3).await;
    for request in 0..10 {
        let request = Some(Uuid::from_u128(request));
        let options = CreateOptions { request, ..CreateOptions::default() };
        let calls = (0..3).map(|_| client.create_ledger(options.clone()));
        let (writers, refused): (Vec<_>, Vec<_>) =
            join_all(calls).await.into_iter().partition(Result::is_ok);
        assert_eq!(writers.len(), 1);
        for refused in refused {
            assert!(matches!(refused.err(), Some(Error::AlreadyCreated { .. })));
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn ledgers_are_listed_by_namespace_and_gone_when_deleted() {
    let (cluster, client) = cluster(3).await;
    let mut ids = Vec::new();
    for n in 0..6 {
        let namespace = ["even", "odd"][n % 2].to_owned();
        let options = CreateOptions { namespace, ..CreateOptions::default() };
        ids.push(client.create_ledger(options).await.unwrap().id());
    }
    client.delete_ledger(ids[1]).await.unwrap();
    let list = async |namespace| {
        let ledgers = client.list_ledgers(namespace).map_ok(|metadata| metadata.ledger);
        ledgers.try_collect::<Vec<_>>().await.unwrap()
    };
    assert_eq!(list(Some("odd")).await, [ids[3], ids[5]]);
    assert_eq!(list(Some("even")).await, [ids[0], ids[2], ids[4]]);
    assert_eq!(list(None).await, [ids[0], ids[2], ids[3], ids[4], ids[5]]);
    for gone in [
        client.ledger_metadata(ids[1]).await.err(),
        client.delete_ledger(ids[1]).await.err(),
        client.recover_ledger(ids[1]).await.err(),
    ] {
        assert!(matches!(gone, Some(Error::LedgerDeleted(id)) if id == ids[1]), "{gone:?}");
    }
    cluster.stop().await;
}

#[tokio::test]
async fn more_bookies_than_there_are_make_no_ledger() {
    let (cluster, client) = cluster(3).await;
    let replication = Replication::new(4, 3, 2).unwrap();
    let options = CreateOptions { replication, ..CreateOptions::default() };
    let refused = client.create_ledger(options).await.err();
    assert!(matches!(refused, Some(Error::NotEnoughBookies(_))), "{refused:?}");
    cluster.stop().await;
}

#[tokio::test]
async fn a_bookie_that_lost_its_lease_registers_again() {
    let (cluster, _client) = cluster(3).await;
    let identity = Identity::load(cluster.dir(), Role::Admin, None).unwrap();
    let endpoint = Endpoint::client(&Net::Os, &identity, Uuid::new_v4(), None).unwrap();
    let addresses = cluster.metastore_addresses().map(|address| address.to_string()).collect();
    let store = std::sync::Arc::new(RemoteMetastore::new(&endpoint, addresses, DEFAULT_TIMEOUT));
    let registered = store.scan(Scan::new("registrations/")).await.unwrap().entries;
    let lost = registered[0].lease.unwrap();
    store.end_lease(lost).await.unwrap();

    let bookie = registered[0].key.strip_prefix("registrations/").unwrap();
    let bookie = inkfast::BookieId(bookie.parse().unwrap());
    let catalog = Catalog::new(store);
    let again = async {
        while catalog.registration(bookie).await.unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    cluster.stop().await;
}
