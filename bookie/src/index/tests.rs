//! The index against a model of it, on disks that lose, tear and decay.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::runs::RUN_ENTRIES_MAX;
use super::*;
use crate::disk::{MemoryDisk, Unsynced};

mod failures;
mod file;
mod measure;

const LOG: Uuid = Uuid::from_u128(0xa11);
/// So little that most is read from the file.
const CACHE_BYTES: usize = 16 << 10;

fn open(disk: &MemoryDisk) -> Result<Index, IndexError> {
    Index::open(disk, LOG, CACHE_BYTES)
}

fn ledger(id: u64) -> LedgerId {
    LedgerId::new(id).unwrap()
}

fn entries_of(ids: impl IntoIterator<Item = u64>) -> Vec<EntryId> {
    ids.into_iter().map(EntryId::new).collect()
}

fn mark(batches: u32) -> Mark {
    let segment = SegmentNumber(1 + batches / 8);
    Mark { segment, offset: batches % 8 * 4096, sequence: batches.into() }
}

/// Makes places in a log as it is written: entries of this length, at the end of what is there.
fn places(
    ids: impl IntoIterator<Item = u64>,
    batch: u32,
    payload_bytes: u32,
) -> Vec<(EntryId, Place)> {
    let place = |(number, id): (u32, u64)| {
        let offset = batch % 8 * 4096 + number * (24 + payload_bytes).next_multiple_of(8);
        (EntryId::new(id), Place { segment: mark(batch).segment, offset, payload_bytes })
    };
    (0..).zip(ids).map(place).collect()
}

/// All segments of a log of at most 1000 batches; the end of one of them has moved.
fn segments(batches: u32) -> BTreeMap<SegmentNumber, u32> {
    let end = |number: u32| (number == mark(batches).segment.0).then_some(batches);
    (1..=126).map(|number| (SegmentNumber(number), end(number).unwrap_or(number))).collect()
}

/// Makes a checkpoint that says nothing but its mark.
fn checkpoint(batches: u32) -> Checkpoint {
    Checkpoint {
        mark: mark(batches),
        segments: segments(batches),
        verified: BTreeMap::new(),
        damaged: false,
        ledgers: BTreeMap::new(),
        entries: BTreeMap::new(),
        emptied: BTreeSet::new(),
    }
}

fn stored_ledger(seed: u32) -> StoredLedger {
    let writer = WriterId(Uuid::from_u128(seed.into()));
    StoredLedger {
        writer: seed.is_multiple_of(2).then(|| (writer, Bytes::from(vec![7; seed as usize % 9]))),
        fenced: seed.is_multiple_of(3),
        deleted: seed.is_multiple_of(5),
        last_add_confirmed: seed.checked_sub(3).map(|last| EntryId::new(last.into())),
        first: seed.is_multiple_of(7).then_some(EntryId::FIRST),
        last: Some(EntryId::new(seed.into())),
        state_segments: (1..=seed % 4).map(SegmentNumber).collect(),
    }
}

/// What an index is to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Model {
    mark: Option<Mark>,
    damaged: bool,
    segments: BTreeMap<SegmentNumber, u32>,
    verified: BTreeMap<SegmentNumber, u64>,
    ledgers: BTreeMap<LedgerId, StoredLedger>,
    entries: BTreeMap<LedgerId, BTreeMap<EntryId, Place>>,
}

impl Model {
    fn commit(&mut self, checkpoint: &Checkpoint) {
        self.mark = Some(checkpoint.mark);
        self.damaged |= checkpoint.damaged;
        self.segments.clone_from(&checkpoint.segments);
        self.verified.extend(&checkpoint.verified);
        self.ledgers.extend(checkpoint.ledgers.clone());
        for (ledger, entries) in &checkpoint.entries {
            self.entries.entry(*ledger).or_default().extend(entries.iter().copied());
        }
        for ledger in &checkpoint.emptied {
            self.entries.remove(ledger);
        }
    }

    /// Returns what is to be known of the segments.
    fn infos(&self) -> BTreeMap<SegmentNumber, SegmentInfo> {
        let info = |(number, bytes): (&SegmentNumber, &u32)| {
            let entries = self.entries.values().flat_map(BTreeMap::values);
            let live = entries.filter(|place| place.segment == *number);
            let states = self.ledgers.values().filter(|it| it.state_segments.contains(number));
            let info = SegmentInfo {
                bytes: *bytes,
                live_bytes: live.map(|place| place.stored_bytes()).sum(),
                states: u32::try_from(states.count()).unwrap(),
                verified_at_ms: self.verified.get(number).copied(),
            };
            (*number, info)
        };
        self.segments.iter().map(info).collect()
    }

    /// Asks an index for everything, and for entries that it does not have.
    fn assert_answers(&self, index: &Index) -> Result<(), IndexError> {
        let segments = self.segments.clone();
        assert_eq!(index.known()?, self.mark.map(|mark| Known { mark, segments }));
        assert_eq!(index.segments()?, self.infos());
        assert_eq!(index.is_damaged()?, self.damaged);
        let all: Vec<_> = self.ledgers.clone().into_iter().collect();
        let mut found = Vec::new();
        loop {
            let next = index.ledgers(found.last().map(|(id, _)| *id), 3)?;
            if next.is_empty() {
                break;
            }
            found.extend(next);
        }
        assert_eq!(found, all);
        for id in 0..8 {
            assert_eq!(index.ledger(ledger(id))?, self.ledgers.get(&ledger(id)).cloned());
            self.assert_answers_of(index, ledger(id))?;
        }
        Ok(())
    }

    fn assert_answers_of(&self, index: &Index, ledger: LedgerId) -> Result<(), IndexError> {
        let none = BTreeMap::new();
        let has = self.entries.get(&ledger).unwrap_or(&none);
        let around = has.keys().flat_map(|id| [id.get().saturating_sub(1), id.get(), id.get() + 1]);
        let asked: BTreeSet<_> = around.chain([0, 1 << 61]).map(EntryId::new).collect();
        let asked: Vec<_> = asked.into_iter().collect();
        let expected: Vec<_> = asked.iter().map(|id| has.get(id).copied()).collect();
        assert_eq!(index.find(ledger, &asked)?, expected);
        for (id, place) in asked.iter().zip(&expected).step_by(97) {
            assert_eq!(index.find(ledger, &[*id])?, [*place]);
        }

        let mut found = Vec::new();
        loop {
            let next = index.places(ledger, found.last().map(|(id, _)| *id), 700)?;
            if next.is_empty() {
                break;
            }
            found.extend(next);
        }
        assert_eq!(found, has.clone().into_iter().collect::<Vec<_>>());
        Ok(())
    }
}

/// Any entries of one ledger: some stretches, with gaps and overlaps, in places of any order.
fn any_entries() -> impl Strategy<Value = Vec<(EntryId, Place)>> {
    let stretch = (0..6000_u64, 1..1500_u64, 1..4_usize);
    (prop::collection::vec(stretch, 1..4), 0..1000_u32, any::<bool>()).prop_map(
        |(stretches, batch, far)| {
            let ids: BTreeSet<u64> = stretches
                .into_iter()
                .flat_map(|(from, count, step)| (from..from + count).step_by(step))
                .map(|id| if far { id << 40 } else { id })
                .collect();
            places(ids, batch, 1000)
        },
    )
}

fn any_checkpoint() -> impl Strategy<Value = Checkpoint> {
    let id = || (0..8_u64).prop_map(ledger);
    let entries = prop::collection::btree_map(id(), any_entries(), 0..4);
    let ledgers = prop::collection::btree_map(id(), (0..60_u32).prop_map(stored_ledger), 0..4);
    let verified = prop::collection::btree_map((1..20_u32).prop_map(SegmentNumber), 0..9_u64, 0..4);
    let emptied = prop::collection::btree_set(id(), 0..2);
    (0..1000_u32, verified, any::<bool>(), ledgers, entries, emptied).prop_map(
        |(batch, verified, damaged, ledgers, entries, emptied)| Checkpoint {
            verified,
            damaged,
            ledgers,
            entries,
            emptied,
            ..checkpoint(batch)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn an_index_knows_what_was_committed(
        steps in prop::collection::vec((any_checkpoint(), any::<bool>()), 1..8),
    ) {
        let disk = MemoryDisk::new();
        let mut index = open(&disk).unwrap();
        let mut model = Model::default();
        model.assert_answers(&index).unwrap();
        for (checkpoint, reopens) in steps {
            if model.mark.is_some_and(|mark| checkpoint.mark < mark) {
                let refused = index.commit(&checkpoint).unwrap_err();
                prop_assert!(matches!(refused, IndexError::Refused(_)), "{refused}");
            } else {
                let infos = index.commit(&checkpoint).unwrap();
                model.commit(&checkpoint);
                prop_assert_eq!(infos, model.infos());
            }
            if reopens {
                drop(index);
                index = open(&disk).unwrap();
            }
            model.assert_answers(&index).unwrap();
        }
    }

    #[test]
    fn any_places_are_found_again(
        any in prop::collection::btree_map(0..=u64::MAX - 1, any::<(u32, u32, u32)>(), 1..300),
    ) {
        let place = |(segment, offset, payload_bytes)| {
            Place { segment: SegmentNumber(segment), offset, payload_bytes }
        };
        let all: Vec<_> =
            any.into_iter().map(|(id, parts)| (EntryId::new(id), place(parts))).collect();
        let index = open(&MemoryDisk::new()).unwrap();
        let entries = [(ledger(1), all.clone())].into();
        index.commit(&Checkpoint { entries, ..checkpoint(1) }).unwrap();
        prop_assert_eq!(index.places(ledger(1), None, usize::MAX).unwrap(), all);
    }
}

#[test]
fn a_ledger_that_grows_slowly_has_few_rows() {
    let index = open(&MemoryDisk::new()).unwrap();
    for batch in 0..100 {
        let from = u64::from(batch) * 20;
        let entries = [(ledger(3), places(from..from + 20, batch, 100))].into();
        index.commit(&Checkpoint { entries, ..checkpoint(batch) }).unwrap();
    }
    let runs = rows_of(&index, 3);
    assert_eq!(runs.iter().sum::<usize>(), 2000);
    assert!(runs.iter().rev().skip(1).all(|entries| *entries >= 128), "{runs:?}");
}

#[test]
fn a_run_that_is_full_is_split() {
    let index = open(&MemoryDisk::new()).unwrap();
    let full = places((0..RUN_ENTRIES_MAX as u64).map(|id| id * 2), 1, 100);
    let entries = [(ledger(3), full)].into();
    index.commit(&Checkpoint { entries, ..checkpoint(1) }).unwrap();
    assert_eq!(rows_of(&index, 3), [RUN_ENTRIES_MAX]);
    let entries = [(ledger(3), places([7], 2, 100))].into();
    index.commit(&Checkpoint { entries, ..checkpoint(2) }).unwrap();
    assert_eq!(rows_of(&index, 3), [RUN_ENTRIES_MAX / 2 + 1, RUN_ENTRIES_MAX / 2]);
}

/// Tells how many entries are in each row of a ledger.
fn rows_of(index: &Index, id: u64) -> Vec<usize> {
    let mut rows = Vec::new();
    let mut next = EntryId::FIRST;
    index
        .read(|transaction| {
            let runs = transaction.open_table(RUNS)?;
            while let Some(run) = runs::at_or_behind(&runs, ledger(id), next)? {
                rows.push(run.entries.len());
                next = run.last().next();
            }
            Ok(())
        })
        .unwrap();
    rows
}

#[test]
fn who_reads_is_not_disturbed_by_who_writes() {
    let index = open(&MemoryDisk::new()).unwrap();
    let all = places(0..3000, 1, 100);
    let entries = [(ledger(1), all.clone())].into();
    index.commit(&Checkpoint { entries, ..checkpoint(1) }).unwrap();
    let asked = entries_of(0..3000);
    let expected: Vec<_> = all.iter().map(|(_, place)| Some(*place)).collect();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for batch in 2..40 {
                let grows = places(0..u64::from(batch) * 100, batch, 100);
                let entries = [(ledger(0), grows.clone()), (ledger(2), grows)].into();
                let emptied = [ledger(u64::from(batch % 2) * 2)].into();
                index.commit(&Checkpoint { entries, emptied, ..checkpoint(batch) }).unwrap();
            }
        });
        while !writer.is_finished() {
            assert_eq!(index.find(ledger(1), &asked).unwrap(), expected);
        }
    });
}

#[test]
fn an_index_of_another_log_is_refused() {
    let disk = MemoryDisk::new();
    drop(open(&disk).unwrap());
    let refused = Index::open(&disk, Uuid::from_u128(1), CACHE_BYTES).err().unwrap();
    assert!(matches!(&refused, IndexError::Refused(why) if why.contains("log")), "{refused}");
}

#[test]
fn an_index_that_was_removed_is_empty() {
    let disk = MemoryDisk::new();
    Index::remove(&disk).unwrap();
    let index = open(&disk).unwrap();
    index.commit(&checkpoint(1)).unwrap();
    drop(index);
    Index::remove(&disk).unwrap();
    disk.crash(Unsynced::Lost);
    assert_eq!(disk.list().unwrap(), Vec::<String>::new());
    assert_eq!(open(&disk).unwrap().known().unwrap(), None);
}
