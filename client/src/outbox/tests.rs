use inkfast_protocol::{EntryHeader, LedgerId};
use inkfast_wire::Frame;
use tokio::sync::Semaphore;

use super::*;
use crate::bell::Turns;

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

/// Gives what is there for an outlet now: none if there is nothing, or it has ended.
fn now(outlet: &Outlet) -> Option<Batch> {
    let mut batch = Batch::default();
    (outlet.take(&mut batch) && !batch.is_empty()).then_some(batch)
}

fn has_ended(outlet: &Outlet) -> bool {
    !outlet.take(&mut Batch::default())
}

fn frames(batch: &Batch) -> Vec<Bytes> {
    let mut frames = Frames::default();
    batch.put_in(&mut frames);
    frames.take()
}

/// Makes the outlet of a place, whose bell nobody hears.
fn outlet(outbox: &Outbox, place: usize) -> Outlet {
    outbox.outlet(place, Arc::<Turns>::default().bell(0))
}

fn ids(batch: &Batch) -> Vec<u64> {
    batch.entries().map(EntryId::get).collect()
}

#[test]
fn places_share_the_bytes_of_entries_that_both_take() {
    let outbox = Outbox::new(2);
    let (one, other) = (outlet(&outbox, 0), outlet(&outbox, 1));
    for id in 0..10 {
        outbox.push(&entry(id, 1000), places([0, 1]), None).unwrap();
    }
    let (first, second) = (now(&one).unwrap(), now(&other).unwrap());
    assert_eq!(ids(&first), (0..10).collect::<Vec<_>>());
    assert_eq!(ids(&second), ids(&first));
    assert_eq!(frames(&first).len(), 1);
    assert_eq!(frames(&first)[0].as_ptr(), frames(&second)[0].as_ptr());
    assert!(now(&one).is_none() && now(&other).is_none());
}

#[test]
fn each_place_gets_the_frames_of_its_entries_in_order() {
    for (ensemble, write_quorum, payload_bytes) in
        [(3, 3, 10), (3, 3, 3000), (5, 3, 10), (5, 3, 1000), (4, 2, 20_000), (3, 2, 100_000)]
    {
        let outbox = Outbox::new(ensemble);
        let outlets: Vec<_> = (0..ensemble).map(|place| outlet(&outbox, place)).collect();
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
                if let Some(batch) = now(&outlets[place]) {
                    got[place].extend(frames(&batch).concat());
                }
            }
        }
        drop(outbox);
        for (outlet, got) in outlets.iter().zip(&mut got) {
            while let Some(batch) = now(outlet) {
                got.extend(frames(&batch).concat());
            }
        }
        assert!(got == expected, "{ensemble} {write_quorum} {payload_bytes}");
    }
}

#[test]
fn room_is_taken_until_the_last_place_has_sent_the_entry_or_failed() {
    let room = Arc::new(Semaphore::new(10));
    let outbox = Outbox::new(3);
    let outlets = [0, 1].map(|place| outlet(&outbox, place));
    let push = |id, places| {
        let taken = Arc::clone(&room).try_acquire_owned().unwrap();
        outbox.push(&entry(id, 10), places, Some(&Room::with(None, taken))).unwrap();
    };
    push(0, places([0, 1, 2]));
    let [first, second] = [0, 1].map(|place| now(&outlets[place]).unwrap());
    push(1, places([0, 1, 2]));
    // Nobody is there to send it.
    push(2, places([2]));
    assert_eq!(room.available_permits(), 8);
    drop(first);
    assert_eq!(room.available_permits(), 8);
    drop(second);
    assert_eq!(room.available_permits(), 9);
    let [one, other] = outlets;
    drop(one);
    assert_eq!(ids(&now(&other).unwrap()), [1]);
    assert_eq!(room.available_permits(), 10);
    push(3, places([0]));
    push(4, places([0, 1]));
    assert_eq!(room.available_permits(), 9);
    drop(other);
    assert_eq!(room.available_permits(), 10);
}

#[test]
fn a_place_rings_when_there_is_something_and_once_until_its_turn() {
    let (outbox, turns) = (Outbox::new(2), Arc::<Turns>::default());
    let rung = || std::iter::from_fn(|| turns.next()).map(|bell| bell.number).collect::<Vec<_>>();
    let outlets =
        [0, 1].map(|place| outbox.outlet(place, turns.bell(u32::try_from(place).unwrap())));
    assert_eq!(rung(), []);
    outbox.push(&entry(3, 10), places([1, 0]), None).unwrap();
    outbox.push(&entry(4, 10), places([1, 0]), None).unwrap();
    outbox.tell(0, EntryId::new(2));
    assert_eq!(rung(), [0, 1]);
    assert_eq!(ids(&now(&outlets[1]).unwrap()), [3, 4]);
    assert_eq!(rung(), []);
    outbox.tell(1, EntryId::new(2));
    assert_eq!(rung(), [1]);
    assert_eq!(now(&outlets[1]).unwrap().word, Some(EntryId::new(2)));
    // More than one turn is worth.
    outbox.push(&entry(5, BATCH_BYTES), places([1]), None).unwrap();
    outbox.push(&entry(6, 10), places([1]), None).unwrap();
    assert_eq!(rung(), [1]);
    assert_eq!(ids(&now(&outlets[1]).unwrap()), [5]);
    assert_eq!(rung(), [1]);
    assert_eq!(ids(&now(&outlets[1]).unwrap()), [6]);
    assert_eq!(rung(), []);
    drop(outbox);
    assert_eq!(rung(), [0, 1]);
    assert!(has_ended(&outlets[1]));
    assert!(now(&outlets[0]).is_some());
    // It has not heard yet that there was no more.
    assert_eq!(rung(), [0]);
    assert!(has_ended(&outlets[0]));
}

#[test]
fn what_waits_is_sent_after_the_close_and_the_newest_word_behind_it() {
    let outbox = Outbox::new(1);
    let outlet = outlet(&outbox, 0);
    outbox.tell(0, EntryId::new(2));
    outbox.push(&entry(4, BATCH_BYTES), places([0]), None).unwrap();
    outbox.tell(0, EntryId::new(3));
    outbox.push(&entry(5, 10), places([0]), None).unwrap();
    outbox.close();
    let batch = now(&outlet).unwrap();
    assert_eq!((ids(&batch), batch.word), (vec![4], None));
    let batch = now(&outlet).unwrap();
    assert_eq!((ids(&batch), batch.word), (vec![5], Some(EntryId::new(3))));
    assert!(has_ended(&outlet));
}

#[test]
fn the_next_outlet_of_a_place_ends_the_one_before() {
    let outbox = Outbox::new(1);
    let before = outlet(&outbox, 0);
    outbox.push(&entry(0, 10), places([0]), None).unwrap();
    let outlet = outlet(&outbox, 0);
    assert!(has_ended(&before));
    drop(before);
    outbox.push(&entry(1, 10), places([0]), None).unwrap();
    assert_eq!(ids(&now(&outlet).unwrap()), [1]);
    assert!(!has_ended(&outlet));
}

#[test]
fn a_queue_has_a_bound() {
    let outbox = Outbox::new(2);
    let outlets = [0, 1].map(|place| outlet(&outbox, place));
    let large = entry(0, PART_BYTES_MAX);
    for _ in 0..PARTS_MAX {
        outbox.push(&large, places([0]), None).unwrap();
    }
    assert!(outbox.push(&large, places([0]), None).is_err());
    assert!(outbox.push(&large, places([1]), None).is_ok());
    assert!(now(&outlets[0]).is_some());
    assert!(outbox.push(&large, places([0]), None).is_ok());
}
