//! Tails against a cluster in this process: real sockets, real files.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use inkfast::{Client, CreateOptions, Entry, EntryId, Error, LedgerId, LedgerWriter, Replication};
use inkfast_cli::cluster::Cluster;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(60);

type Tail = Pin<Box<dyn Stream<Item = Result<Entry, Error>> + Send>>;

async fn cluster(bookies: usize) -> (Cluster, Client) {
    let cluster = Cluster::temporary(bookies, 1).await.unwrap();
    let client = cluster.client().await.unwrap();
    (cluster, client)
}

async fn create(client: &Client, spread: [usize; 3]) -> LedgerWriter {
    let replication = Replication::new(spread[0], spread[1], spread[2]).unwrap();
    client.create_ledger(CreateOptions { replication, ..CreateOptions::default() }).await.unwrap()
}

/// Follows a ledger as a client of its own.
async fn tail(cluster: &Cluster, ledger: LedgerId, from: u64) -> Tail {
    let reader = cluster.client().await.unwrap().open_ledger(ledger).await.unwrap();
    Box::pin(reader.tail(EntryId::new(from)))
}

/// Appends entries which say their number, and waits until they are confirmed. The last of them
/// says that the others are.
async fn append(writer: &LedgerWriter, numbers: std::ops::Range<u64>) {
    let last = numbers.end - 1;
    for number in numbers {
        if number == last {
            writer.flush().await.unwrap();
        }
        let append = writer.append(number.to_string()).await.unwrap();
        assert_eq!(append.entry(), EntryId::new(number));
    }
    writer.flush().await.unwrap();
}

/// Takes the next entries of a tail, which must be these.
async fn expect(tail: &mut Tail, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let entry = tokio::time::timeout(PATIENCE, tail.try_next()).await;
        let entry = entry.unwrap_or_else(|_| panic!("entry {number} does not come"));
        let entry = entry.unwrap().unwrap_or_else(|| panic!("ended before entry {number}"));
        assert_eq!(entry.id(), EntryId::new(number));
        assert_eq!(entry.payload(), number.to_string());
    }
}

async fn expect_end(tail: &mut Tail) {
    let end = tokio::time::timeout(PATIENCE, tail.next()).await.unwrap();
    assert!(end.is_none(), "{end:?}");
}

#[tokio::test]
async fn a_tail_follows_a_writer_to_its_close() {
    let (cluster, client) = cluster(5).await;
    for spread in [[3, 3, 2], [5, 3, 2], [1, 1, 1]] {
        let writer = create(&client, spread).await;
        let mut early = tail(&cluster, writer.id(), 0).await;
        let mut middle = tail(&cluster, writer.id(), 1234).await;
        let mut never = tail(&cluster, writer.id(), 9999).await;
        append(&writer, 0..500).await;
        expect(&mut early, 0..499).await;
        append(&writer, 500..2000).await;
        let mut late = tail(&cluster, writer.id(), 0).await;
        expect(&mut late, 0..1999).await;
        expect(&mut early, 499..1999).await;
        expect(&mut middle, 1234..1999).await;
        let ledger = writer.id();
        writer.close().await.unwrap();
        for tail in [&mut early, &mut middle, &mut late] {
            expect(tail, 1999..2000).await;
            expect_end(tail).await;
        }
        expect_end(&mut never).await;

        let mut closed = tail(&cluster, ledger, 7).await;
        expect(&mut closed, 7..2000).await;
        expect_end(&mut closed).await;
        expect_end(&mut tail(&cluster, ledger, 2000).await).await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_tail_goes_on_without_a_bookie() {
    let (mut cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    let mut tail = tail(&cluster, writer.id(), 0).await;
    append(&writer, 0..100).await;
    expect(&mut tail, 0..99).await;
    cluster.stop_bookie(0).await;
    append(&writer, 100..1000).await;
    expect(&mut tail, 99..999).await;
    // One that begins now finds a bookie gone.
    let mut late = self::tail(&cluster, writer.id(), 50).await;
    expect(&mut late, 50..999).await;
    writer.close().await.unwrap();
    for tail in [&mut tail, &mut late] {
        expect(tail, 999..1000).await;
        expect_end(tail).await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn a_tail_ends_when_another_client_has_recovered_the_ledger() {
    let (cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    let mut tail = tail(&cluster, writer.id(), 0).await;
    append(&writer, 0..100).await;
    client.recover_ledger(writer.id()).await.unwrap();
    expect(&mut tail, 0..100).await;
    expect_end(&mut tail).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_tail_ends_with_an_error_when_the_ledger_is_deleted() {
    let (cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    let mut tail = tail(&cluster, writer.id(), 0).await;
    append(&writer, 0..2).await;
    expect(&mut tail, 0..2).await;
    client.delete_ledger(writer.id()).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, tail.next()).await.unwrap();
    assert!(matches!(end, Some(Err(Error::LedgerDeleted(id))) if id == writer.id()), "{end:?}");
    assert!(tail.next().await.is_none());
    cluster.stop().await;
}

#[tokio::test]
async fn tails_that_are_not_taken_do_not_disturb_their_client() {
    let (cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    let other = cluster.client().await.unwrap();
    let reader = other.open_ledger(writer.id()).await.unwrap();
    // Were all of it pushed, it would fill the windows of the connections many times.
    let untaken: Vec<_> = (0..20).map(|_| Box::pin(reader.tail(EntryId::FIRST))).collect();
    let payload = vec![b'x'; 100_000];
    for _ in 0..200 {
        writer.append(payload.clone()).await.unwrap().await.unwrap();
    }
    let taken = async {
        let mut tail = Box::pin(reader.tail(EntryId::FIRST));
        for id in 0..199 {
            assert_eq!(tail.try_next().await.unwrap().unwrap().id(), EntryId::new(id));
        }
        let read = reader.read(EntryId::FIRST..=EntryId::new(100));
        assert_eq!(read.try_collect::<Vec<_>>().await.unwrap().len(), 101);
    };
    tokio::time::timeout(PATIENCE, taken).await.unwrap();
    writer.close().await.unwrap();
    // They have not lost anything.
    for mut tail in untaken.into_iter().take(3) {
        let rest = async {
            for id in 0..200 {
                assert_eq!(tail.try_next().await.unwrap().unwrap().id(), EntryId::new(id));
            }
            assert!(tail.next().await.is_none());
        };
        tokio::time::timeout(PATIENCE, rest).await.unwrap();
    }
    cluster.stop().await;
}

#[tokio::test]
async fn what_a_tail_has_delivered_stays_confirmed() {
    let (mut cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    let reader = cluster.client().await.unwrap().open_ledger(writer.id()).await.unwrap();
    let mut tail: Tail = Box::pin(reader.tail(EntryId::FIRST));
    append(&writer, 0..2).await;
    expect(&mut tail, 0..2).await;
    drop((tail, writer, client));
    // Restarted bookies do not know any more that the last entry is confirmed.
    for number in 0..3 {
        cluster.stop_bookie(number).await;
        cluster.start_bookie(number).await.unwrap();
    }
    let mut read: Tail = Box::pin(reader.read(EntryId::FIRST..=EntryId::new(1)));
    expect(&mut read, 0..2).await;
    expect_end(&mut read).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_read_that_is_not_taken_lets_others_read_and_loses_nothing() {
    let (cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    let ledger = writer.id();
    let count = 40;
    for _ in 0..count {
        drop(writer.append(vec![b'x'; 1_000_000]).await.unwrap());
    }
    writer.flush().await.unwrap();
    writer.close().await.unwrap();
    let reader = client.open_ledger(ledger).await.unwrap();
    let all = || reader.read(EntryId::FIRST..=EntryId::new(count - 1));
    let untaken: Vec<_> = (0..3).map(|_| Box::pin(all())).collect();
    // By then more has come for the others than may wait for them.
    let taken = tokio::time::timeout(PATIENCE, all().try_collect::<Vec<_>>()).await.unwrap();
    assert_eq!(taken.unwrap().len() as u64, count);
    for mut read in untaken {
        for id in 0..count {
            let entry = tokio::time::timeout(PATIENCE, read.try_next()).await.unwrap();
            assert_eq!(entry.unwrap().unwrap().id(), EntryId::new(id));
        }
        assert!(read.next().await.is_none());
    }
    cluster.stop().await;
}

#[tokio::test]
async fn nothing_is_called_lost_while_the_metastore_is_away() {
    let (cluster, client) = cluster(3).await;
    let writer = create(&client, [3, 3, 2]).await;
    append(&writer, 0..10).await;
    let ledger = writer.id();
    writer.close().await.unwrap();
    let mut config = cluster.client_config().unwrap();
    config.deadlines.metastore = Duration::from_secs(1);
    let reader = Client::connect(config).await.unwrap().open_ledger(ledger).await.unwrap();
    cluster.stop().await;
    let mut read = Box::pin(reader.read(EntryId::FIRST..=EntryId::new(9)));
    let end = tokio::time::timeout(PATIENCE, read.next()).await.unwrap();
    assert!(matches!(end, Some(Err(Error::Metastore(_)))), "{end:?}");
}
