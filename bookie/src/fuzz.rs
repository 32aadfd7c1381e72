//! Whatever bytes are on a disk, they are read without a panic, and nothing is read that was not
//! written.
//!
//! A *target* takes the bytes of a file, or of a payload, and returns what can be read of them. Each
//! is fed with bytes of chance, with valid ones in which some were changed, and with the files in
//! `testdata/fuzz`: those that made trouble once, and some to begin with.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use inkfast_protocol::{BookieId, Entry, EntryHeader, EntryId, LedgerId};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index as Choice;
use smallvec::smallvec;
use uuid::Uuid;

use crate::disk::{BLOCK_BYTES, Disk, MemoryDisk};
use crate::executor::Executor;
use crate::identity::{self, BookieIdentity, Label};
use crate::index::{self, Checkpoint, Index, IndexError};
use crate::log::{self, Found, Mark, Place, Reader, SegmentNumber, Settings, Shown};
use crate::record;

const LOG: Uuid = Uuid::from_u128(9);
const SEGMENT: SegmentNumber = SegmentNumber::FIRST;

/// Takes bytes, and returns what was read, each thing in words.
type Target = fn(&[u8]) -> BTreeSet<String>;

const TARGETS: [(&str, Target); 4] =
    [("segment", segment), ("index", index), ("payload", payload), ("identity", identity)];

fn disk_with(name: &str, bytes: &[u8]) -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new();
    disk.create(name).unwrap().write_at(0, bytes).unwrap();
    Arc::new(disk)
}

fn bytes_of(disk: &MemoryDisk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len_bytes().unwrap()).unwrap()];
    file.read_at(0, &mut bytes).unwrap();
    bytes
}

/// The only segment of a log, looked through and opened.
fn segment(bytes: &[u8]) -> BTreeSet<String> {
    let disk = disk_with(&SEGMENT.to_string(), bytes);
    let mut read = BTreeSet::new();
    let mut note = |place: Place, kind: u8, payload: &[u8]| {
        read.insert(format!("{place:?} {kind} {payload:?}"));
    };
    let reader = Reader::new(disk.clone(), LOG, Executor::Inline, 0);
    let end = u32::try_from(bytes.len()).unwrap();
    let mut from = Some(0).filter(|_| end > 0);
    while let Some(offset) = from {
        let mut visit = |found: Found<'_>| {
            if let Found::Record(place, kind, payload) = found {
                note(place, kind, payload);
            }
        };
        from = reader.scan(SEGMENT, (offset, end), 1 << 20, &mut visit).unwrap_or(None);
    }
    let settings = Settings { log: LOG, segment_bytes_max: 1 << 20 };
    let opened = log::open(disk, settings, None, &mut |shown| {
        if let Shown::Record(place, kind, payload) = shown {
            note(place, kind, payload);
        }
        Ok(())
    });
    drop(opened);
    read
}

/// All that an index says, or nothing if some of it cannot be read.
fn index(bytes: &[u8]) -> BTreeSet<String> {
    let disk = disk_with(index::FILE, bytes);
    let read = || {
        let index = Index::open(&*disk, LOG, 1 << 20)?;
        let mut read = BTreeSet::new();
        read.insert(format!("{:?} {}", index.known()?, index.is_damaged()?));
        read.insert(format!("{:?}", index.segments()?));
        read.insert(format!("{:?}", index.ledgers(None, 1000)?));
        index.each_place(None, 1000, &mut |ledger, entry, place| {
            read.insert(format!("{ledger} {entry} {place:?}"));
        })?;
        Ok::<_, IndexError>(read)
    };
    read().unwrap_or_default()
}

/// A record's payload; the first byte is its kind.
fn payload(bytes: &[u8]) -> BTreeSet<String> {
    let Some((kind, payload)) = bytes.split_first() else { return BTreeSet::new() };
    record::decode(*kind, payload).into_iter().map(|read| format!("{read:?}")).collect()
}

/// The file that says whose a directory is.
fn identity(bytes: &[u8]) -> BTreeSet<String> {
    let loaded = identity::load(&*disk_with(identity::FILE, bytes), Path::new("d"));
    loaded.into_iter().flatten().map(|label| format!("{label:?}")).collect()
}

fn an_entry(id: u64) -> Entry {
    let header = EntryHeader {
        ledger: LedgerId::new(7).unwrap(),
        entry: EntryId::new(id),
        last_add_confirmed: None,
        length: 1,
        written_at_ms: 5,
    };
    Entry::encode(header, format!("payload {id}").as_bytes())
}

fn a_segment() -> Vec<u8> {
    let disk = Arc::new(MemoryDisk::new());
    log::create(&*disk, LOG).unwrap();
    let settings = Settings { log: LOG, segment_bytes_max: 1 << 20 };
    let (tail, _) = log::open(disk.clone(), settings, None, &mut |_| Ok(())).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (appender, mut completions) = tail.start(Executor::Inline);
        for id in 0..6 {
            let payloads =
                smallvec![an_entry(2 * id).bytes().clone(), an_entry(2 * id + 1).bytes().clone()];
            appender.push(log::Append { kind: record::ENTRY, payloads, token: () });
            assert!(completions.next().await.unwrap().is_some());
        }
    });
    bytes_of(&disk, &SEGMENT.to_string())
}

fn an_index() -> Vec<u8> {
    let disk = MemoryDisk::new();
    let ledger = LedgerId::new(7).unwrap();
    let place = |id: u64| {
        let offset = u32::try_from(id).unwrap() * 64 + 4096;
        (EntryId::new(id), Place { segment: SEGMENT, offset, payload_bytes: 40 })
    };
    let checkpoint = Checkpoint {
        mark: Mark { segment: SEGMENT, offset: 1 << 20, sequence: 3 },
        segments: [(SEGMENT, 1 << 20)].into(),
        verified: [(SEGMENT, 77)].into(),
        damaged: false,
        ledgers: [(ledger, index::StoredLedger { fenced: true, ..Default::default() })].into(),
        entries: [(ledger, (0..600).map(place).collect())].into(),
        emptied: BTreeSet::new(),
    };
    Index::open(&disk, LOG, 1 << 20).unwrap().commit(&checkpoint).unwrap();
    bytes_of(&disk, index::FILE)
}

fn an_identity() -> Vec<u8> {
    let bookie = BookieIdentity {
        id: BookieId(Uuid::from_u128(1)),
        cluster: Uuid::from_u128(2),
        name: "b1".to_owned(),
        reset_key: [7; 64],
    };
    let label = Label { bookie, log: LOG, logs: [LOG, Uuid::from_u128(4)].into() };
    let disk = MemoryDisk::new();
    identity::write(&disk, Path::new("d"), &label).unwrap();
    bytes_of(&disk, identity::FILE)
}

fn a_payload() -> Vec<u8> {
    [&[record::ENTRY][..], an_entry(3).bytes()].concat()
}

/// Changes some bytes of those that say something, copies some elsewhere, and cuts off the end.
fn change(
    bytes: &mut Vec<u8>,
    flips: Vec<(Choice, u8)>,
    copy: Option<(Choice, Choice, usize)>,
    cut: Option<Choice>,
) {
    let telling: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    for (at, flip) in flips {
        bytes[*at.get(&telling)] ^= flip;
    }
    if let Some((from, to, length)) = copy {
        let (from, to) = (*from.get(&telling), *to.get(&telling));
        let length = length.min(bytes.len() - from.max(to));
        bytes.copy_within(from..from + length, to);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
}

type Changes = (Vec<(Choice, u8)>, Option<(Choice, Choice, usize)>, Option<Choice>);

fn changes() -> impl Strategy<Value = Changes> {
    let flips = vec((any::<Choice>(), 1_u8..), 0..6);
    let copy = prop::option::of((any::<Choice>(), any::<Choice>(), 1..2 * BLOCK_BYTES));
    (flips, copy, prop::option::weighted(0.2, any::<Choice>()))
}

/// Feeds a target with a file that was changed.
fn survives(
    target: Target,
    valid: Vec<u8>,
    (flips, copy, cut): Changes,
) -> (bool, BTreeSet<String>) {
    let mut changed = valid.clone();
    change(&mut changed, flips, copy, cut);
    let read = target(&changed);
    (changed != valid, read)
}

#[test]
fn what_is_changed_below_is_read_when_it_is_not() {
    assert_eq!(segment(&a_segment()).len(), 12);
    assert_eq!(index(&an_index()).len(), 603);
    assert_eq!(payload(&a_payload()).len(), 1);
    assert_eq!(identity(&an_identity()).len(), 1);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
        for (name, target) in TARGETS.iter().filter(|(name, _)| *name != "payload") {
            prop_assert_eq!(target(&bytes).len(), 0, "{}", name);
        }
        payload(&bytes);
    }

    #[test]
    fn any_bytes_behind_a_valid_beginning_are_no_records(bytes in vec(any::<u8>(), 0..20_000)) {
        let mut whole = a_segment();
        whole.truncate(BLOCK_BYTES);
        whole.extend(bytes);
        prop_assert_eq!(segment(&whole).len(), 0);
    }

    #[test]
    fn of_a_changed_segment_only_what_was_written_is_read(changes in changes()) {
        let (_, read) = survives(segment, a_segment(), changes);
        prop_assert!(read.is_subset(&segment(&a_segment())));
    }

    #[test]
    fn a_changed_index_says_the_same_or_nothing(changes in changes()) {
        let (_, read) = survives(index, an_index(), changes);
        prop_assert!(read.is_empty() || read == index(&an_index()));
    }

    #[test]
    fn a_changed_entry_or_identity_is_none(changes in changes()) {
        let (_, read) = survives(payload, a_payload(), changes.clone());
        let is_entry = |read: &String| read.contains("Entries");
        prop_assert!(!read.iter().any(is_entry) || read == payload(&a_payload()));
        let (changed, read) = survives(identity, an_identity(), changes);
        prop_assert_eq!(read.is_empty(), changed);
    }
}

#[test]
fn the_corpus_is_read_without_panic() {
    for (name, target) in TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/fuzz").join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let mut count = 0;
        for file in files {
            target(&fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{folder:?} is empty");
    }
}
