use std::pin::pin;
use std::task::{Context, Poll, Waker};

use inkfast_protocol::{EntryHeader, LedgerId};
use inkfast_wire::Frame;
use tokio::sync::Semaphore;
use tokio::time::{Duration, timeout};

use super::*;

fn entry(id: u64, payload_bytes: usize) -> Entry {
    let header = EntryHeader {
        ledger: LedgerId::new(7).unwrap(),
        entry: EntryId::new(id),
        last_add_confirmed: None,
        length: 0,
        written_at_ms: 0,
    };
    Entry::encode(header, &vec![b'x'; payload_bytes])
}

fn places<const N: usize>(places: [usize; N]) -> Places {
    places.into_iter().collect()
}

/// Gives what is there for an outlet now: none if it would wait, or has ended.
fn now(outlet: &mut Outlet) -> Option<Batch> {
    match pin!(outlet.next()).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(batch) => batch,
        Poll::Pending => None,
    }
}

fn has_ended(outlet: &mut Outlet) -> bool {
    pin!(outlet.next()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

fn ids(batch: &Batch) -> Vec<u64> {
    batch.entries().map(EntryId::get).collect()
}

#[test]
fn places_share_the_bytes_of_entries_that_both_take() {
    let outbox = Outbox::new(2);
    let (mut one, mut other) = (outbox.outlet(0), outbox.outlet(1));
    for id in 0..10 {
        outbox.push(&entry(id, 1000), places([0, 1]), None).unwrap();
    }
    let (first, second) = (now(&mut one).unwrap(), now(&mut other).unwrap());
    assert_eq!(ids(&first), (0..10).collect::<Vec<_>>());
    assert_eq!(ids(&second), ids(&first));
    assert_eq!(first.frames().len(), 1);
    assert_eq!(first.frames()[0].as_ptr(), second.frames()[0].as_ptr());
    assert!(now(&mut one).is_none() && now(&mut other).is_none());
}

#[test]
fn each_place_gets_the_frames_of_its_entries_in_order() {
    for (ensemble, write_quorum, payload_bytes) in
        [(3, 3, 10), (3, 3, 3000), (5, 3, 10), (5, 3, 1000), (4, 2, 20_000), (3, 2, 100_000)]
    {
        let outbox = Outbox::new(ensemble);
        let mut outlets: Vec<_> = (0..ensemble).map(|place| outbox.outlet(place)).collect();
        let mut expected = vec![Vec::new(); ensemble];
        let mut got = expected.clone();
        for id in 0..200_usize {
            let entry = entry(id as u64, payload_bytes);
            let write_set: Vec<_> = (id..id + write_quorum).map(|i| i % ensemble).collect();
            outbox.push(&entry, write_set.iter().copied().collect(), None).unwrap();
            let frame = Frame { kind: kind::ENTRY, body: entry.bytes().clone() };
            for place in write_set {
                expected[place].extend_from_slice(&frame.encode());
            }
            // Each takes at a pace of its own.
            for place in (0..ensemble).filter(|place| id % (3 * place + 1) == 0) {
                if let Some(batch) = now(&mut outlets[place]) {
                    got[place].extend(batch.frames().concat());
                }
            }
        }
        drop(outbox);
        for (outlet, got) in outlets.iter_mut().zip(&mut got) {
            while let Some(batch) = now(outlet) {
                got.extend(batch.frames().concat());
            }
        }
        assert!(got == expected, "{ensemble} {write_quorum} {payload_bytes}");
    }
}

#[test]
fn room_is_taken_until_the_last_place_has_sent_the_entry_or_failed() {
    let room = Arc::new(Semaphore::new(10));
    let outbox = Outbox::new(3);
    let mut outlets = [0, 1].map(|place| outbox.outlet(place));
    let push = |id, places| {
        let taken = Arc::clone(&room).try_acquire_owned().unwrap();
        outbox.push(&entry(id, 10), places, Some(&Room::with(None, taken))).unwrap();
    };
    push(0, places([0, 1, 2]));
    let [first, second] = [0, 1].map(|place| now(&mut outlets[place]).unwrap());
    push(1, places([0, 1, 2]));
    // Nobody is there to send it.
    push(2, places([2]));
    assert_eq!(room.available_permits(), 8);
    drop(first);
    assert_eq!(room.available_permits(), 8);
    drop(second);
    assert_eq!(room.available_permits(), 9);
    let [one, mut other] = outlets;
    drop(one);
    assert_eq!(ids(&now(&mut other).unwrap()), [1]);
    assert_eq!(room.available_permits(), 10);
    push(3, places([0]));
    push(4, places([0, 1]));
    assert_eq!(room.available_permits(), 9);
    drop(other);
    assert_eq!(room.available_permits(), 10);
}

/// Gives what an outlet gives next, which may have to wait for it.
async fn next(outlet: &mut Outlet) -> Option<Batch> {
    timeout(Duration::from_secs(10), outlet.next()).await.expect("it is woken")
}

#[tokio::test]
async fn a_place_that_waits_is_woken() {
    let outbox = Outbox::new(2);
    let mut outlet = outbox.outlet(1);
    for id in [3, 4] {
        let push = async { outbox.push(&entry(id, 10), places([0, 1]), None).unwrap() };
        assert_eq!(ids(&join(next(&mut outlet), push).await.unwrap()), [id]);
    }
    let tell = async { outbox.tell(1, EntryId::new(2)) };
    assert_eq!(join(next(&mut outlet), tell).await.unwrap().word, Some(EntryId::new(2)));
    assert!(join(next(&mut outlet), async { drop(outbox) }).await.is_none());
}

/// Begins to wait for one thing, and then does another.
async fn join<T>(waits: impl Future<Output = T>, then: impl Future<Output = ()>) -> T {
    tokio::join!(biased; waits, then).0
}

#[test]
fn what_waits_is_sent_after_the_close_and_the_newest_word_behind_it() {
    let outbox = Outbox::new(1);
    let mut outlet = outbox.outlet(0);
    outbox.tell(0, EntryId::new(2));
    outbox.push(&entry(4, BATCH_BYTES), places([0]), None).unwrap();
    outbox.tell(0, EntryId::new(3));
    outbox.push(&entry(5, 10), places([0]), None).unwrap();
    outbox.close();
    let batch = now(&mut outlet).unwrap();
    assert_eq!((ids(&batch), batch.word), (vec![4], None));
    let batch = now(&mut outlet).unwrap();
    assert_eq!((ids(&batch), batch.word), (vec![5], Some(EntryId::new(3))));
    assert!(has_ended(&mut outlet));
}

#[test]
fn the_next_outlet_of_a_place_ends_the_one_before() {
    let outbox = Outbox::new(1);
    let mut before = outbox.outlet(0);
    outbox.push(&entry(0, 10), places([0]), None).unwrap();
    let mut outlet = outbox.outlet(0);
    assert!(has_ended(&mut before));
    drop(before);
    outbox.push(&entry(1, 10), places([0]), None).unwrap();
    assert_eq!(ids(&now(&mut outlet).unwrap()), [1]);
    assert!(!has_ended(&mut outlet));
}

#[test]
fn a_queue_has_a_bound() {
    let outbox = Outbox::new(2);
    let mut outlets = [0, 1].map(|place| outbox.outlet(place));
    let large = entry(0, PART_BYTES_MAX);
    for _ in 0..PARTS_MAX {
        outbox.push(&large, places([0]), None).unwrap();
    }
    assert!(outbox.push(&large, places([0]), None).is_err());
    assert!(outbox.push(&large, places([1]), None).is_ok());
    assert!(now(&mut outlets[0]).is_some());
    assert!(outbox.push(&large, places([0]), None).is_ok());
}
