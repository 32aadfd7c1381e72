//! Ensemble changes against a cluster in this process: real sockets, real files.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::{join_all, try_join_all};
use inkfast::{BookieId, Client, CreateOptions, EntryId, Error, LedgerWriter, Replication, State};
use inkfast_cli::cluster::Cluster;
use tokio::time::timeout;

use support::{cluster, payloads};

mod support;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);
/// The writers of one client.
const MANY: usize = 1000;

fn options(replication: Replication) -> CreateOptions {
    CreateOptions { replication, ..CreateOptions::default() }
}

async fn append(writer: &LedgerWriter, payload: &str) -> Result<EntryId, Error> {
    let append = writer.append(payload.to_owned()).await?;
    timeout(PATIENCE, append).await.unwrap()
}

/// Stops the bookie and waits until the writer has another one in its place; then starts it again.
async fn replace(cluster: &mut Cluster, bookie: BookieId, client: &Client, writer: &LedgerWriter) {
    let number = cluster.bookies().position(|running| running.id() == bookie).unwrap();
    cluster.stop_bookie(number).await;
    let replaced = async {
        loop {
            append(writer, "on").await.unwrap();
            let metadata = client.ledger_metadata(writer.id()).await.unwrap();
            if !metadata.last_fragment().ensemble.contains(&bookie) {
                return;
            }
        }
    };
    timeout(PATIENCE, replaced).await.unwrap();
    cluster.start_bookie(number).await.unwrap();
}

async fn a_whole_ensemble_is_replaced(replication: Replication, bookies: usize) {
    let (mut cluster, client) = cluster(bookies).await;
    let writer = client.create_ledger(options(replication)).await.unwrap();
    let reader = client.open_ledger(writer.id()).await.unwrap();
    let first = reader.metadata().last_fragment().ensemble.clone();
    append(&writer, "first").await.unwrap();
    for bookie in &first {
        replace(&mut cluster, *bookie, &client, &writer).await;
    }
    let last = append(&writer, "last").await.unwrap();
    let ledger = writer.id();
    assert_eq!(writer.close().await.unwrap(), Some(last));

    let metadata = client.ledger_metadata(ledger).await.unwrap();
    assert!(matches!(metadata.state, State::Closed { last: end, .. } if end == Some(last)));
    let now: BTreeSet<_> = metadata.last_fragment().ensemble.iter().collect();
    assert!(first.iter().any(|bookie| !now.contains(bookie)), "{first:?} {metadata:?}");
    // The reader was opened when there was nothing but the first ensemble.
    let read = payloads(&reader).await;
    assert_eq!(read.len() as u64, last.get() + 1);
    assert_eq!((&read[0][..], &read[read.len() - 1][..]), (&b"first"[..], &b"last"[..]));
    assert!(read[1..read.len() - 1].iter().all(|payload| payload == "on"));
    cluster.stop().await;
}

#[tokio::test]
async fn writer_and_reader_go_on_when_a_whole_ensemble_is_replaced() {
    a_whole_ensemble_is_replaced(Replication::DEFAULT, 6).await;
}

#[tokio::test]
async fn writer_and_reader_go_on_when_a_whole_striped_ensemble_is_replaced() {
    a_whole_ensemble_is_replaced(Replication::new(5, 3, 2).unwrap(), 7).await;
}

#[tokio::test]
async fn a_bookie_that_comes_back_is_taken_back_where_there_is_no_other() {
    let (mut cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    // Each is needed when the next is away.
    for number in [0, 1, 2, 0] {
        cluster.stop_bookie(number).await;
        append(&writer, "without").await.unwrap();
        cluster.start_bookie(number).await.unwrap();
    }
    let ledger = writer.id();
    writer.close().await.unwrap();
    let metadata = client.ledger_metadata(ledger).await.unwrap();
    assert_eq!(metadata.fragments.len(), 1, "{metadata:?}");
    assert_eq!(payloads(&client.open_ledger(ledger).await.unwrap()).await, ["without"; 4]);
    cluster.stop().await;
}

#[tokio::test]
async fn appends_fail_when_they_have_waited_for_a_quorum_for_too_long() {
    let mut cluster = Cluster::temporary(3, 1).await.unwrap();
    let mut config = cluster.client_config().unwrap();
    config.deadlines.quorum = Duration::from_secs(1);
    let client = Client::connect(config).await.unwrap();
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    append(&writer, "confirmed").await.unwrap();
    let gone: Vec<_> = cluster.bookies().take(2).map(|bookie| bookie.id()).collect();
    cluster.stop_bookie(0).await;
    cluster.stop_bookie(1).await;
    let failed = append(&writer, "never").await;
    let Err(Error::NotEnoughBookies(why)) = &failed else { panic!("{failed:?}") };
    assert!(gone.iter().all(|bookie| why.contains(&bookie.to_string())), "{why}");
    assert!(matches!(writer.append("late").await, Err(Error::NotEnoughBookies(_))));
    // It ends where it was confirmed.
    assert_eq!(writer.close().await.unwrap(), Some(EntryId::FIRST));
    cluster.stop().await;
}

#[tokio::test]
async fn the_last_entry_is_seen_though_nothing_is_appended_after_it() {
    let (cluster, client) = cluster(3).await;
    let writer = client.create_ledger(CreateOptions::default()).await.unwrap();
    let last = append(&writer, "last").await.unwrap();
    let reader = cluster.client().await.unwrap().open_ledger(writer.id()).await.unwrap();
    let seen = async { while reader.last_add_confirmed().await.unwrap() != Some(last) {} };
    timeout(PATIENCE, seen).await.unwrap();
    assert_eq!(payloads(&reader).await, ["last"]);
    cluster.stop().await;
}

#[tokio::test]
async fn a_thousand_writers_of_one_client_write_at_once() {
    let (mut cluster, client) = cluster(4).await;
    let mut writers = Vec::new();
    for _ in 0..MANY {
        writers.push(client.create_ledger(CreateOptions::default()).await.unwrap());
    }
    let write = async |writer: &LedgerWriter| append(writer, "before").await;
    try_join_all(writers.iter().map(write)).await.unwrap();
    // All of them lose a bookie at once.
    cluster.stop_bookie(0).await;
    let write = async |writer: &LedgerWriter| append(writer, "after").await;
    for confirmed in join_all(writers.iter().map(write)).await {
        assert_eq!(confirmed.unwrap(), EntryId::new(1));
    }
    let ledgers: Vec<_> = writers.iter().map(LedgerWriter::id).collect();
    try_join_all(writers.into_iter().map(LedgerWriter::close)).await.unwrap();
    for ledger in ledgers.into_iter().step_by(100) {
        let reader = client.open_ledger(ledger).await.unwrap();
        assert_eq!(payloads(&reader).await, ["before", "after"]);
    }
    cluster.stop().await;
}
