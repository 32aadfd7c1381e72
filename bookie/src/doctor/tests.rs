//! What the doctor finds, on directories with known faults.

use std::collections::BTreeSet;
use std::sync::Arc;

use inkfast_protocol::gate::Adder;
use inkfast_protocol::{BookieId, Entry, EntryHeader, WriterId};
use tokio::sync::mpsc;

use super::*;
use crate::disk::MemoryDisk;
use crate::index::Checkpoint;
use crate::log::Place;
use crate::store::{Add, Batch};

const LOG: Uuid = Uuid::from_u128(3);
const ENTRIES: u64 = 100;

/// Makes a bookie's directory with some ledgers, of which one was deleted and one fenced. The index
/// has all of it, or, after a kill, not all.
async fn directory(killed: bool) -> MemoryDisk {
    let disk = MemoryDisk::new();
    let bookie = BookieIdentity {
        id: BookieId(Uuid::from_u128(1)),
        cluster: Uuid::from_u128(2),
        name: "b1".to_owned(),
        reset_key: [7; 64],
    };
    let label = Label { bookie, log: LOG, logs: BTreeSet::from([LOG]) };
    identity::format(&disk, Path::new("d"), &label).unwrap();
    let opened =
        Store::open(Arc::new(disk.clone()), LOG, Executor::Inline, Memory::LITTLE).await.unwrap();
    let (store, _, task) = opened;
    for id in 0..ENTRIES {
        add(&store, 1 + id % 3, id).await;
    }
    store.delete(ledger(3)).await.unwrap();
    store.fence(ledger(2)).await.unwrap();
    if killed {
        let copy = disk.copy();
        task.abort();
        return copy;
    }
    drop(store);
    task.await.unwrap();
    disk
}

async fn add(store: &Store, ledger: u64, id: u64) {
    let header = EntryHeader {
        ledger: self::ledger(ledger),
        entry: EntryId::new(id),
        last_add_confirmed: None,
        length: 0,
        written_at_ms: 0,
    };
    let run = Entry::encode(header, "x".repeat(2000).as_bytes()).into();
    let add = Some(Add { run, sequence: 0 });
    let writer = WriterId(Uuid::from_u128(1));
    let by = Arc::new(Adder::Writer { id: writer, fragment: "brief".into() });
    let (outcomes, mut happened) = mpsc::unbounded_channel();
    let batch = Batch { ledger: self::ledger(ledger), by, adder: 0, add, confirmed: None };
    store.add(&mut vec![batch], &outcomes).await.unwrap();
    happened.recv().await.unwrap().result.unwrap();
}

fn ledger(id: u64) -> LedgerId {
    LedgerId::new(id).unwrap()
}

fn contents(disk: &MemoryDisk) -> BTreeMap<String, Vec<u8>> {
    let read = |name: String| {
        let file = disk.open(&name).unwrap();
        let mut bytes = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
        file.read_at(0, &mut bytes).unwrap();
        (name, bytes)
    };
    disk.list().unwrap().into_iter().map(read).collect()
}

/// Examines a disk, on which nothing must change.
fn look(disk: &MemoryDisk) -> Report {
    let before = contents(disk);
    let patient = Patient::of(Arc::new(disk.clone()), Path::new("d")).unwrap();
    let report = examination::examine(&patient).unwrap();
    drop(patient);
    assert!(contents(disk) == before, "something has changed");
    report
}

/// Returns the entries that are hit by what is wrong with the log.
fn hit(report: &Report) -> BTreeSet<(u64, u64)> {
    let troubles = report.troubles.iter().filter(|trouble| trouble.in_log);
    let entries = troubles.flat_map(|trouble| &trouble.entries);
    entries.map(|(ledger, entry)| (ledger.get(), entry.get())).collect()
}

fn words(report: &Report) -> String {
    let words: Vec<_> = report.troubles.iter().map(|trouble| trouble.what.as_str()).collect();
    words.join("; ")
}

/// The place of each entry that is not deleted.
fn places(disk: &MemoryDisk) -> BTreeMap<(u64, u64), Place> {
    let mut places = BTreeMap::new();
    let index = Index::open(&disk.copy(), LOG, 1 << 20).unwrap();
    let last = index.each_place(None, 100, &mut |ledger, entry, place| {
        places.insert((ledger.get(), entry.get()), place);
    });
    last.unwrap();
    places
}

#[tokio::test]
async fn a_sound_directory_is_called_sound_whenever_the_bookie_ended() {
    for killed in [false, true] {
        let disk = directory(killed).await;
        let report = look(&disk);
        assert_eq!(report.troubles, [], "killed: {killed}");
        assert_eq!(report.bookie, BookieId(Uuid::from_u128(1)));
        assert_eq!(report.entries, ENTRIES);
        assert!(matches!(report.index, IndexReport::Sound(Some(_))), "{:?}", report.index);
        assert_eq!(report.unindexed > 0, killed, "{}", report.unindexed);
        assert!(report.segments.len() > 2);
        assert!(report.segments.values().all(|segment| segment.is_whole));
    }
}

#[tokio::test]
async fn flipped_bits_are_found_and_what_they_hit() {
    let disk = directory(false).await;
    let places = places(&disk);
    let bad = [(1, 0), (1, 45), (2, 49), (2, 82)];
    for key in bad {
        let place = places[&key];
        disk.flip_bit(&place.segment.to_string(), place.offset as usize + 300, 2);
    }
    let report = look(&disk);
    assert_eq!(hit(&report), bad.into(), "{}", words(&report));
    for key in bad {
        let Place { segment, offset, .. } = places[&key];
        assert!(!report.segments[&segment].is_whole);
        let named = format!("{segment} is corrupt: ");
        let at = format!("from offset {offset} on");
        assert!(words(&report).contains(&named) && words(&report).contains(&at));
    }
}

#[tokio::test]
async fn lost_segments_are_missed_also_the_last() {
    let disk = directory(false).await;
    let places = places(&disk);
    let segments: Vec<_> = look(&disk).segments.into_keys().collect();
    for number in segments {
        let disk = disk.copy();
        disk.remove(&number.to_string()).unwrap();
        let report = look(&disk);
        let lost = places.iter().filter(|(_, place)| place.segment == number);
        assert_eq!(hit(&report), lost.map(|(key, _)| *key).collect(), "{}", words(&report));
        assert!(!report.segments[&number].is_whole, "{number}");
        assert!(words(&report).contains(&number.to_string()), "{}", words(&report));
    }
}

#[tokio::test]
async fn a_log_that_was_cut_off_below_what_the_index_knows_is_damaged() {
    let disk = directory(false).await;
    let report = look(&disk);
    let (&last, segment) = report.segments.last_key_value().unwrap();
    disk.open(&last.to_string()).unwrap().set_len(u64::from(segment.bytes) - 4096).unwrap();
    let report = look(&disk);
    assert!(words(&report).contains("is lost"), "{}", words(&report));
}

#[tokio::test]
async fn a_lost_or_damaged_index_is_no_damage_of_the_log() {
    let disk = directory(false).await;
    let without = disk.copy();
    without.remove(crate::index::FILE).unwrap();
    let report = look(&without);
    assert_eq!(report.index, IndexReport::Missing);
    assert!(report.troubles.iter().all(|trouble| !trouble.in_log), "{}", words(&report));
    let mut damaged = 0;
    let blocks = contents(&disk)[crate::index::FILE].len() / 4096;
    for block in 0..blocks {
        let disk = disk.copy();
        disk.flip_bit(crate::index::FILE, block * 4096 + 100, 2);
        let report = look(&disk);
        assert!(report.troubles.iter().all(|trouble| !trouble.in_log), "{}", words(&report));
        // What is in no page that counts does no harm.
        damaged += usize::from(matches!(report.index, IndexReport::Damaged(_)));
    }
    assert!(damaged > 3, "{damaged} of {blocks} blocks");
}

#[tokio::test]
async fn what_the_index_does_not_find_is_missed() {
    let disk = directory(false).await;
    let index = Index::open(&disk, LOG, 1 << 20).unwrap();
    let known = index.known().unwrap().unwrap();
    let checkpoint = Checkpoint {
        mark: known.mark,
        segments: known.segments,
        verified: BTreeMap::new(),
        damaged: false,
        ledgers: BTreeMap::new(),
        entries: BTreeMap::new(),
        emptied: BTreeSet::from([ledger(1)]),
    };
    index.commit(&checkpoint).unwrap();
    drop(index);
    let report = look(&disk);
    let [trouble] = &report.troubles[..] else { panic!("{}", words(&report)) };
    assert!(!trouble.in_log && trouble.what.contains("does not find"), "{trouble:?}");
    assert_eq!(trouble.entries.len() as u64, ENTRIES.div_ceil(3));
}

#[tokio::test]
async fn what_cannot_be_read_is_told_and_the_rest_is_examined() {
    let disk = directory(false).await;
    let number = *look(&disk).segments.first_key_value().unwrap().0;
    disk.fail_reads(&number.to_string(), true);
    let patient = Patient::of(Arc::new(disk.clone()), Path::new("d")).unwrap();
    let report = examination::examine(&patient).unwrap();
    assert!(words(&report).contains("cannot be read at offset"), "{}", words(&report));
    assert!(!report.segments[&number].is_whole);
    assert!(report.entries > 0);
    let lost = places(&disk).values().filter(|place| place.segment == number).count();
    assert_eq!(hit(&report).len(), lost);
}
