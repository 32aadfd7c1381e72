//! Streams of pushes, frame by frame, from a bookie in this process.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use bytes::Bytes;
use inkfast_cli::cluster::Cluster;
use inkfast_protocol::messages::{
    FragmentBrief, Missing, OpenAdds, Tail, decode_number, encode_adder, encode_number, kind,
};
use inkfast_protocol::{Entry, EntryHeader, EntryId, LedgerId, Refusal};
use inkfast_wire::{Endpoint, Frame, Identity, Net, Remote, Role, Stream, Target};
use uuid::Uuid;

/// How long a test waits for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
const LEDGER: u64 = 7;
/// What an entry of these tests has in all.
const ENTRY_BYTES: u64 = 52 + 1000;

struct World {
    cluster: Cluster,
    bookie: Remote,
}

impl World {
    async fn new() -> Self {
        let cluster = Cluster::temporary(1, 1).await.unwrap();
        let identity = Identity::load(cluster.dir(), Role::Client, None).unwrap();
        let endpoint = Endpoint::client(&Net::Os, &identity, Uuid::new_v4(), None).unwrap();
        let bookie = cluster.bookies().next().unwrap();
        let target = Target {
            role: Role::Bookie,
            instance: Some(bookie.id().0),
            addresses: vec![bookie.address().to_string()],
        };
        let bookie = Remote::new(&endpoint, target);
        Self { cluster, bookie }
    }

    async fn open(&self, frames: &[Frame]) -> Stream {
        let mut stream = self.bookie.connection().await.unwrap().open().await.unwrap();
        for frame in frames {
            stream.sender.send(frame).await.unwrap();
        }
        stream
    }

    async fn writer(&self) -> Writer {
        let writer = Some(Uuid::from_u128(1).as_bytes().to_vec());
        let fragment = Some(FragmentBrief::default());
        let open = OpenAdds { adder: 0, ledger: LEDGER, writer, fragment };
        let adder = Bytes::copy_from_slice(&encode_adder(0));
        let frames =
            [Frame::message(kind::OPEN_ADDS, &open), Frame { kind: kind::ADDER, body: adder }];
        Writer(self.open(&frames).await)
    }

    async fn tail(&self, tail: Tail) -> Stream {
        self.open(&[Frame::message(kind::TAIL, &tail)]).await
    }
}

/// A stream of adds.
struct Writer(Stream);

impl Writer {
    /// Adds an entry and waits until it is on disk.
    async fn add(&mut self, id: u64, confirmed: Option<u64>) {
        let header = EntryHeader {
            ledger: LedgerId::new(LEDGER).unwrap(),
            entry: EntryId::new(id),
            last_add_confirmed: confirmed.map(EntryId::new),
            length: 0,
            written_at_ms: 0,
        };
        let body = Entry::encode(header, &[b'x'; 1000]).bytes().clone();
        self.0.sender.send(&Frame { kind: kind::ENTRY, body }).await.unwrap();
        let answer = next(&mut self.0).await.unwrap();
        assert_eq!(answer.kind, kind::ADDED);
    }

    async fn confirm(&mut self, entry: u64) {
        self.0.sender.send(&number(kind::CONFIRMED, entry)).await.unwrap();
    }
}

fn tail(credit: u64) -> Tail {
    Tail { ledger: LEDGER, from: 0, to: None, lanes: 1, lane: 0, credit }
}

fn number(kind: u8, number: u64) -> Frame {
    Frame { kind, body: Bytes::copy_from_slice(&encode_number(number)) }
}

async fn next(stream: &mut Stream) -> Option<Frame> {
    tokio::time::timeout(PATIENCE, stream.receiver.next()).await.unwrap().unwrap()
}

/// Returns in a few words what a stream has pushed next.
async fn pushed(stream: &mut Stream) -> String {
    let Some(frame) = next(stream).await else { return "end".to_owned() };
    match frame.kind {
        kind::ENTRY => format!("entry {}", Entry::decode(frame.body).unwrap().id()),
        kind::CONFIRMED => format!("confirmed {}", decode_number(&frame.body).unwrap()),
        kind::MISSING => {
            let Missing { entry, refused } = frame.decode().unwrap();
            format!("missing {entry}: {}", Refusal::from_message(refused))
        }
        kind::REFUSED => format!("refused: {}", Refusal::from_message(frame.decode().unwrap())),
        other => format!("a frame of kind {other}"),
    }
}

#[tokio::test]
async fn what_is_pushed_overdraws_the_credit_by_one_entry_at_most() {
    let world = World::new().await;
    let mut writer = world.writer().await;
    writer.add(0, None).await;
    for id in 1..10 {
        writer.add(id, Some(id - 1)).await;
    }
    let mut stream = world.tail(tail(2 * ENTRY_BYTES + 1)).await;
    for expected in ["confirmed 8", "entry 0", "entry 1", "entry 2"] {
        assert_eq!(pushed(&mut stream).await, expected);
    }
    // Credit that is still overdrawn lets nothing be pushed. What is confirmed is told all the
    // same, so that nothing else would have come.
    stream.sender.send(&number(kind::CREDIT, ENTRY_BYTES - 1)).await.unwrap();
    for id in 10..20 {
        writer.add(id, Some(id - 1)).await;
        assert_eq!(pushed(&mut stream).await, format!("confirmed {}", id - 1));
    }
    stream.sender.send(&number(kind::CREDIT, 1 + ENTRY_BYTES)).await.unwrap();
    assert_eq!(pushed(&mut stream).await, "entry 3");
    stream.sender.send(&number(kind::CREDIT, u64::MAX)).await.unwrap();
    for id in 4..19 {
        assert_eq!(pushed(&mut stream).await, format!("entry {id}"));
    }
    world.cluster.stop().await;
}

#[tokio::test]
async fn a_tail_without_credit_is_told_what_is_confirmed() {
    let world = World::new().await;
    let mut stream = world.tail(tail(0)).await;
    let mut writer = world.writer().await;
    writer.add(0, None).await;
    writer.confirm(0).await;
    assert_eq!(pushed(&mut stream).await, "confirmed 0");
    writer.add(1, Some(0)).await;
    writer.confirm(1).await;
    assert_eq!(pushed(&mut stream).await, "confirmed 1");
    stream.sender.send(&number(kind::CREDIT, 1)).await.unwrap();
    assert_eq!(pushed(&mut stream).await, "entry 0");
    world.cluster.stop().await;
}

#[tokio::test]
async fn an_entry_is_missing_once_a_later_one_is_there() {
    let world = World::new().await;
    let mut writer = world.writer().await;
    let mut stream = world.tail(tail(1 << 20)).await;
    writer.add(0, None).await;
    // Elsewhere 1 and 2 are confirmed too; here they may still come.
    writer.confirm(2).await;
    for expected in ["confirmed 2", "entry 0"] {
        assert_eq!(pushed(&mut stream).await, expected);
    }
    writer.add(1, Some(0)).await;
    assert_eq!(pushed(&mut stream).await, "entry 1");
    writer.add(3, Some(2)).await;
    assert_eq!(pushed(&mut stream).await, "missing 2: never stored the entry");
    writer.confirm(3).await;
    for expected in ["confirmed 3", "entry 3"] {
        assert_eq!(pushed(&mut stream).await, expected);
    }
    world.cluster.stop().await;
}

#[tokio::test]
async fn a_lane_with_an_end_is_pushed_to_its_end() {
    let world = World::new().await;
    let mut writer = world.writer().await;
    for id in 0..6 {
        writer.add(id, None).await;
    }
    // The client knows from the metadata that all is confirmed, and the bookie does not.
    let lane = Tail { from: 1, to: Some(9), lanes: 3, lane: 2, ..tail(1 << 20) };
    let mut stream = world.tail(lane).await;
    for expected in ["entry 2", "entry 5", "missing 8: never stored the entry", "end"] {
        assert_eq!(pushed(&mut stream).await, expected);
    }
    world.cluster.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused() {
    let world = World::new().await;
    for lanes in [(0, 0), (3, 3), (65, 1)] {
        let mut stream = world.tail(Tail { lanes: lanes.0, lane: lanes.1, ..tail(9) }).await;
        let refused = pushed(&mut stream).await;
        assert!(refused.contains("1 to 64 lanes"), "{refused}");
    }
    let mut stream = world.tail(Tail { from: u64::MAX - 1, lanes: 64, ..tail(9) }).await;
    stream.sender.send(&number(kind::ENTRY, 1)).await.unwrap();
    assert!(pushed(&mut stream).await.contains("only credit"));
    world.cluster.stop().await;
}
