//! Streams of adds that many ledgers share.

use inkfast_protocol::messages::{ADDERS_MAX, Added, AddsRefused, encode_adder, encode_number};

use super::*;
use crate::disk::Space;
use crate::service::adds::{Adding, LOT_MAX};

/// What a bookie says of adds.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    /// Adder, first and last entry.
    Added(u32, u64, u64),
    Refused(u32, String),
    /// The stream is refused.
    Ended(String),
}

/// A client's end of a stream of adds to a bookie.
struct Client {
    _pair: Pair,
    stream: Stream,
}

impl Client {
    async fn new(stores: Stores) -> Self {
        let pair = Pair::new(BookieService::new(stores)).await;
        let stream = pair.connection.open().await.unwrap();
        Self { _pair: pair, stream }
    }

    async fn send(&mut self, frame: Frame) {
        self.stream.sender.send(&frame).await.unwrap();
    }

    async fn open(&mut self, adder: u32, ledger: u64) {
        let open = OpenAdds { adder, ledger, ..OpenAdds::default() };
        self.send(Frame::message(kind::OPEN_ADDS, &open)).await;
    }

    async fn number(&mut self, kind: u8, adder: u32) {
        let body = Bytes::copy_from_slice(&encode_adder(adder));
        self.send(Frame { kind, body }).await;
    }

    /// Sends entries of a ledger for an adder.
    async fn add(&mut self, adder: u32, ledger: u64, ids: impl IntoIterator<Item = u64>) {
        self.number(kind::ADDER, adder).await;
        for id in ids {
            let body = entry_of(ledger, id, 1000).bytes().clone();
            self.send(Frame { kind: kind::ENTRY, body }).await;
        }
    }

    async fn said(&mut self) -> Said {
        let next = timeout(Duration::from_secs(20), self.stream.receiver.next());
        let frame = next.await.expect("it says something").unwrap().expect("the stream goes on");
        match frame.kind {
            kind::ADDED => {
                let Added { adder, first, last } = Added::decode(&frame.body).unwrap();
                Said::Added(adder, first.get(), last.get())
            }
            kind::ADDS_REFUSED => {
                let AddsRefused { adder, refused } = frame.decode().unwrap();
                Said::Refused(adder, Refusal::from_message(refused).to_string())
            }
            kind::REFUSED => {
                Said::Ended(Refusal::from_message(frame.decode().unwrap()).to_string())
            }
            other => panic!("a frame of kind {other}"),
        }
    }

    /// Waits until all entries up to one are added, in whatever runs.
    async fn added(&mut self, adder: u32, up_to: u64) {
        loop {
            match self.said().await {
                Said::Added(of, _, last) if of == adder && last == up_to => return,
                Said::Added(of, ..) if of == adder => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

#[tokio::test]
async fn each_adder_is_answered_and_refused_by_itself() {
    let mut client = Client::new(stores(0).await).await;
    client.open(0, 7).await;
    client.open(3, 8).await;
    client.add(0, 7, 0..3).await;
    client.added(0, 2).await;
    client.add(3, 8, [5]).await;
    assert_eq!(client.said().await, Said::Added(3, 5, 5));
    // Entries of another ledger, and then what was on its way when that was refused.
    client.add(0, 8, [6]).await;
    client.add(0, 7, [3]).await;
    client.add(3, 8, [6]).await;
    let Said::Refused(0, why) = client.said().await else { panic!("it is refused") };
    assert!(why.contains("another ledger"), "{why}");
    assert_eq!(client.said().await, Said::Added(3, 6, 6));
    client.number(kind::CLOSE_ADDS, 0).await;
    // The same ledger once more.
    client.open(4, 7).await;
    client.add(4, 7, [3]).await;
    assert_eq!(client.said().await, Said::Added(4, 3, 3));
    client.add(4, 7, [3]).await;
    let Said::Refused(4, why) = client.said().await else { panic!("it is refused") };
    assert!(why.contains("ascending"), "{why}");
}

#[tokio::test]
async fn what_makes_no_sense_ends_the_stream() {
    for (number, expected) in [(1, "an adder was not opened"), (0, "ascending numbers")] {
        let mut client = Client::new(stores(0).await).await;
        client.open(0, 7).await;
        client.number(kind::CLOSE_ADDS, 0).await;
        match number {
            0 => client.open(0, 7).await,
            _ => client.add(number, 7, [0]).await,
        }
        let Said::Ended(why) = client.said().await else { panic!("it is refused") };
        assert!(why.contains(expected), "{why}");
    }
}

#[tokio::test]
async fn refusals_that_nobody_reads_are_bounded() {
    let (outcomes, mut happened) = mpsc::unbounded_channel();
    let mut adding = Adding::new(stores(0).await, outcomes);
    let impossible = |adder| OpenAdds { adder, ledger: u64::MAX, ..OpenAdds::default() };
    let many = u32::try_from(ADDERS_MAX).unwrap();
    for adder in 0..many {
        adding.open(&impossible(adder)).await.unwrap();
    }
    let ended = adding.open(&impossible(many)).await.unwrap_err().to_string();
    assert!(ended.contains("must be read"), "{ended}");
    // One is read.
    drop(happened.recv().await);
    adding.open(&impossible(many + 1)).await.unwrap();
}

#[tokio::test]
async fn turns_without_entries_are_handed_on_too() {
    let (outcomes, _happened) = mpsc::unbounded_channel();
    let mut adding = Adding::new(stores(0).await, outcomes);
    adding.open(&OpenAdds { ledger: LEDGER, ..OpenAdds::default() }).await.unwrap();
    for confirmed in 0..10 * LOT_MAX as u64 {
        let turn = Bytes::copy_from_slice(&encode_adder(0));
        adding.on_frame(Frame { kind: kind::ADDER, body: turn }).await.unwrap();
        let word = Bytes::copy_from_slice(&encode_number(confirmed));
        adding.on_frame(Frame { kind: kind::CONFIRMED, body: word }).await.unwrap();
        assert!(adding.lots.values().map(Vec::len).sum::<usize>() <= LOT_MAX);
    }
}

#[tokio::test]
async fn a_disk_that_takes_nothing_does_not_hold_up_the_ledgers_of_another() {
    let (disks, mut sound) = ([(); 2].map(|()| MemoryDisk::new()), Vec::new());
    for (disk, number) in disks.iter().zip(1..) {
        let log = Uuid::from_u128(number);
        log::create(disk, log).unwrap();
        sound.push((Directory { path: "d".into(), disk: Arc::new(disk.clone()) }, log));
    }
    // Room for eight entries each.
    let memory = (None, 2 * 4 * 8 * 1024 + 1024);
    let Opened { stores, .. } =
        Stores::open(sound, Vec::new(), memory, Executor::Inline).await.unwrap();
    let mut client = Client::new(stores.clone()).await;
    let mut homes = Vec::new();
    for (adder, ledger) in [(0, 7), (1, 8)] {
        client.open(adder, ledger).await;
        client.add(adder, ledger, [0]).await;
        client.added(adder, 0).await;
        homes.push(stores.find(LedgerId::new(ledger).unwrap()).await.unwrap().number());
    }
    assert_ne!(homes[0], homes[1]);
    let Space { capacity_bytes, free_bytes, .. } = disks[homes[0]].space().unwrap();
    // More than the log has set aside.
    let capacity_bytes = capacity_bytes - free_bytes + (32 << 10);
    disks[homes[0]].set_capacity_bytes(usize::try_from(capacity_bytes).ok());
    client.add(0, 7, 1..80).await;
    client.add(1, 8, [1]).await;
    let (mut refused, mut added) = (None, false);
    while refused.is_none() || !added {
        match client.said().await {
            Said::Refused(0, why) => refused = Some(why),
            Said::Added(0, ..) => {}
            said => added |= said == Said::Added(1, 1, 1),
        }
    }
    let why = refused.unwrap();
    assert!(why.contains("does not keep up"), "{why}");
    disks[homes[0]].set_capacity_bytes(None);
}
