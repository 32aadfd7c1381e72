//! What is read ahead for a client, and what becomes of a client that does not read.

use bytes::Bytes;
use inkfast_protocol::gate::Adder;
use inkfast_protocol::messages::{OpenAdds, Read, Tail, encode_adder};
use inkfast_protocol::{ENTRY_HEADER_BYTES, Entry, EntryHeader, LedgerId, PAYLOAD_BYTES_MAX};
use inkfast_wire::{
    Authority, Connection, Endpoint, Identity, Net, Remote, Role, Server, Target, serve,
};
use tempfile::TempDir;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::directories::Directory;
use crate::disk::{Disk, MemoryDisk};
use crate::executor::Executor;
use crate::log;
use crate::memory::DEFAULT_BYTES;
use crate::store::{Add, Batch};
use crate::stores::Opened;

mod adds;

const LEDGER: u64 = 7;
/// How large the entries of these tests are.
const BYTES: usize = ENTRY_HEADER_BYTES + PAYLOAD_BYTES_MAX;
/// What a stream takes that its client does not read.
const WINDOW_BYTES: usize = 8 << 20;

/// Stores with so many of the largest entries.
async fn stores(entries: u64) -> Stores {
    let (disk, log): (Arc<dyn Disk>, _) = (Arc::new(MemoryDisk::new()), Uuid::from_u128(9));
    log::create(&*disk, log).unwrap();
    let sound = vec![(Directory { path: "d".into(), disk }, log)];
    let Opened { stores, .. } =
        Stores::open(sound, Vec::new(), (None, DEFAULT_BYTES), Executor::Inline).await.unwrap();
    let ledger = LedgerId::new(LEDGER).unwrap();
    let home = stores.home(ledger).await.unwrap();
    let (outcomes, mut happened) = mpsc::unbounded_channel();
    for id in 0..entries {
        let add = Some(Add { run: entry(id).into(), sequence: 0 });
        let by = Arc::new(Adder::Recovery);
        let batch = Batch { ledger, by, adder: 0, add, confirmed: None };
        home.store().add(&mut vec![batch], &outcomes).await.unwrap();
        happened.recv().await.unwrap().result.unwrap();
    }
    stores
}

fn entry(id: u64) -> Entry {
    entry_of(LEDGER, id, PAYLOAD_BYTES_MAX)
}

fn entry_of(ledger: u64, id: u64, payload_bytes: usize) -> Entry {
    let header = EntryHeader {
        ledger: LedgerId::new(ledger).unwrap(),
        entry: EntryId::new(id),
        last_add_confirmed: None,
        length: 0,
        written_at_ms: 0,
    };
    Entry::encode(header, &vec![b'x'; payload_bytes])
}

#[tokio::test]
async fn what_is_read_and_not_sent_is_bounded_for_each_connection() {
    let bookie = BookieService::new(stores(20).await);
    let [slow, other] = [bookie.for_connection(), bookie.for_connection()];
    let (ledger, ids) = (LedgerId::new(LEDGER).unwrap(), (0..20).map(EntryId::new));
    let home = bookie.stores.find(ledger).await.unwrap();
    let store = home.store();
    let places = store.locate(ledger, ids.clone().collect()).await.unwrap();
    let (mut unsent, mut bytes) = (Vec::new(), 0);
    let mut rest = ids.zip(places).map(|wanted| vec![wanted]);
    let mut waiting = loop {
        let run = rest.next().expect("not all is read");
        let mut read = Box::pin(slow.read_run(store, ledger, run));
        // All of it happens on this task, so that it waits for nothing but room.
        match timeout(Duration::ZERO, &mut read).await {
            Ok((entries, room)) => {
                bytes += entries.into_iter().map(|entry| entry.unwrap().len()).sum::<usize>();
                unsent.push(room);
            }
            Err(_) => break read,
        }
    };
    assert!(bytes <= UNSENT_BYTES_MAX && bytes > UNSENT_BYTES_MAX / 2, "{bytes}");
    let read = other.read_run(store, ledger, rest.next().unwrap());
    assert!(timeout(Duration::ZERO, read).await.is_ok(), "another connection has room of its own");
    unsent.pop();
    assert!(timeout(Duration::ZERO, &mut waiting).await.is_ok());
}

/// Gives the streams that come to whoever holds the other end.
#[derive(Clone)]
struct Capture(mpsc::Sender<Stream>);

impl Service for Capture {
    async fn serve(&self, _peer: Arc<Peer>, stream: Stream) {
        self.0.send(stream).await.unwrap();
    }
}

/// A server on loopback, and a client that is connected to it.
struct Pair {
    _server: Endpoint,
    _client: Endpoint,
    connection: Connection,
}

impl Pair {
    async fn new(service: impl Service) -> Self {
        let dir = TempDir::new().unwrap();
        let authority = Authority::open_or_create(dir.path(), "main").unwrap();
        let identity = |role| {
            authority.issue(role, None).unwrap();
            Identity::load(dir.path(), role, None).unwrap()
        };
        let (cluster, instance) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let listen = "127.0.0.1:0".to_owned();
        let server =
            Server { listen, instance, cluster, reset_key: [5; 64], roles: &[Role::Client] };
        let server = Endpoint::server(&Net::Os, &identity(Role::Bookie), server).await.unwrap();
        tokio::spawn(serve(server.clone(), service));
        let client = identity(Role::Client);
        let client = Endpoint::client(&Net::Os, &client, Uuid::new_v4(), Some(cluster)).unwrap();
        let addresses = vec![server.local_addr().to_string()];
        let target = Target { role: Role::Bookie, instance: None, addresses };
        let connection = Remote::new(&client, target).connection().await.unwrap();
        Self { _server: server, _client: client, connection }
    }

    /// Opens a stream to a server that gives it here, and says something on it. Returns the
    /// client's end and the server's.
    async fn streams(first: &Frame) -> (Self, Stream, Stream) {
        let (capture, mut captured) = mpsc::channel(1);
        let pair = Self::new(Capture(capture)).await;
        let mut client = pair.connection.open().await.unwrap();
        client.sender.send(first).await.unwrap();
        let mut server = captured.recv().await.unwrap();
        assert_eq!(server.receiver.next().await.unwrap().as_ref(), Some(first));
        (pair, client, server)
    }
}

fn read(entries: Vec<u64>) -> Frame {
    Frame::message(kind::READ, &Read { ledger: LEDGER, entries, fence: false })
}

fn tail() -> Frame {
    let credit = 100 * BYTES as u64;
    let tail = Tail { ledger: LEDGER, from: 0, to: Some(9), lanes: 1, lane: 0, credit };
    Frame::message(kind::TAIL, &tail)
}

/// Says as much as a client gets without reading it.
async fn fill(stream: &mut Stream) {
    let mut frames = Frames::default();
    // With what precedes each body.
    (0..4).for_each(|_| frames.push(99, &vec![0; WINDOW_BYTES / 4 - 5].into()));
    stream.sender.send_encoded(&mut frames.take()).await.unwrap();
}

#[tokio::test]
async fn reads_are_answered_in_order() {
    let pair = Pair::new(BookieService::new(stores(3).await)).await;
    let Stream { mut sender, mut receiver } = pair.connection.open().await.unwrap();
    for entries in [vec![2, 9, 0], vec![1], vec![8, 1]] {
        sender.send(&read(entries)).await.unwrap();
    }
    sender.send(&tail()).await.unwrap();
    for expected in [Some(2), None, Some(0), Some(1), None, Some(1)] {
        let frame = receiver.next().await.unwrap().unwrap();
        let entry = (frame.kind == kind::ENTRY).then(|| Entry::decode(frame.body).unwrap());
        assert_eq!(entry.map(|entry| entry.id().get()), expected);
    }
    let frame = receiver.next().await.unwrap().unwrap();
    let refusal = Refusal::from_message(frame.decode().unwrap());
    assert!(matches!(refusal, Refusal::BadRequest(_)), "{refusal}");
    assert_eq!(receiver.next().await.unwrap(), None);
}

#[tokio::test]
async fn one_run_is_read_while_another_is_sent() {
    for first in [read((0..10).collect()), tail()] {
        let bookie = BookieService::new(stores(10).await);
        let (_pair, mut client, mut server) = Pair::streams(&first).await;
        fill(&mut server).await;
        let serving = bookie.clone();
        let served = tokio::spawn(async move {
            match first.kind {
                kind::READ => serving.serve_reads(first, server).await,
                _ => serving.serve_tail(&first, server).await,
            }
        });
        tokio::time::pause();
        // Meanwhile all that can be done is done.
        tokio::time::sleep(SEND_DEADLINE / 2).await;
        assert_eq!(bookie.room.available_permits(), UNSENT_BYTES_MAX - 2 * BYTES);
        tokio::time::resume();

        client.sender.finish();
        let mut next = 0;
        while next < 10 {
            let frame = client.receiver.next().await.unwrap().unwrap();
            if frame.kind == kind::ENTRY {
                assert_eq!(Entry::decode(frame.body).unwrap().id().get(), next);
                next += 1;
            }
        }
        served.await.unwrap().unwrap();
        assert_eq!(bookie.room.available_permits(), UNSENT_BYTES_MAX);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let adds = Frame::message(kind::OPEN_ADDS, &OpenAdds { ledger: LEDGER, ..OpenAdds::default() });
    for first in [adds, read(vec![0]), tail()] {
        let bookie = BookieService::new(stores(1).await);
        let (_pair, mut client, mut server) = Pair::streams(&first).await;
        fill(&mut server).await;
        if first.kind == kind::OPEN_ADDS {
            let adder = encode_adder(0).to_vec().into();
            client.sender.send(&Frame { kind: kind::ADDER, body: adder }).await.unwrap();
            let body = entry(1).bytes().clone();
            client.sender.send(&Frame { kind: kind::ENTRY, body }).await.unwrap();
        }
        tokio::time::pause();
        let serving = async {
            match first.kind {
                kind::OPEN_ADDS => bookie.serve_adds(first, server).await,
                kind::READ => bookie.serve_reads(first, server).await,
                _ => bookie.serve_tail(&first, server).await,
            }
        };
        let served = timeout(2 * SEND_DEADLINE, serving).await.expect("it ends in time");
        assert!(matches!(served, Err(inkfast_wire::Error::TimedOut { .. })), "{served:?}");
        assert_eq!(bookie.room.available_permits(), UNSENT_BYTES_MAX);
        tokio::time::resume();
    }
}
