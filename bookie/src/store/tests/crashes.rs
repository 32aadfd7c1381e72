//! Random work, with the power lost at any step of it.
//!
//! The oracle: what was acknowledged is there with the same bytes, a fence and a first writer that
//! were answered are remembered, and what was never sent is absent.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::*;
use crate::store::compaction;

/// How many ledgers there are at a time.
const LEDGERS: u64 = 6;

/// What is known of a ledger from what was asked and answered.
#[derive(Default)]
struct Expected {
    /// Acknowledged, or read once.
    kept: BTreeSet<u64>,
    sent: BTreeSet<u64>,
    /// An add of its writer was acknowledged.
    has_writer: bool,
    fenced: bool,
    fence_asked: bool,
    deleted: bool,
    delete_asked: bool,
}

#[derive(Default)]
struct Model {
    ledgers: BTreeMap<u64, Expected>,
    /// The lowest ledger that may be written; those of before were deleted.
    first: u64,
    acknowledged: usize,
    compacted: usize,
}

fn bytes_of(ledger: u64, id: u64) -> Entry {
    entry(ledger, id, &"x".repeat(usize::try_from((ledger * 31 + id * 7) % 900).unwrap()))
}

impl Model {
    /// Does one thing; says whether the store still works.
    async fn step(&mut self, world: &World, random: &mut Rng) -> bool {
        match random.u8(..60) {
            0 => return self.delete(world).await,
            1 => return world.store.checkpoint().await.is_ok(),
            2..5 => {
                let step = compaction::step(&world.store, &mut BTreeSet::new()).await;
                self.compacted += usize::from(step == Ok(true));
                return step.is_ok();
            }
            _ => {}
        }
        let id = self.first + random.u64(1..=LEDGERS);
        let expected = self.ledgers.entry(id).or_default();
        if expected.delete_asked {
            return true;
        }
        if random.u8(..20) == 0 {
            expected.fence_asked = true;
            let fenced = world.store.fence(ledger(id)).await;
            expected.fenced |= fenced.is_ok();
            return fenced.is_ok();
        }
        let next = expected.sent.last().map_or(0, |last| last + 1);
        let first = match random.u8(..4) {
            0 => random.u64(..=next),
            _ => next,
        };
        let ids: Vec<u64> = (first..first + random.u64(1..12)).collect();
        let by = if expected.fence_asked { recovery() } else { writer(id.into()) };
        expected.sent.extend(&ids);
        let entries: Vec<_> = ids.iter().map(|entry| bytes_of(id, *entry)).collect();
        let mut happened = world.start_adds(&by, entries).await;
        while let Some(outcome) = happened.recv().await {
            if outcome.result.is_err() {
                return false;
            }
            let (first, last) = (outcome.entries.0.get(), outcome.entries.1.get());
            let done = ids.iter().filter(|id| (first..=last).contains(id));
            expected.kept.extend(done);
            expected.has_writer |= *by != Adder::Recovery;
            self.acknowledged += 1;
        }
        if let Some(entry) = random.choice(&expected.kept) {
            match world.read(id, *entry).await {
                Ok(read) => assert_eq!(read, bytes_of(id, *entry), "{id}/{entry}"),
                Err(Refusal::Absent) => panic!("{id}/{entry} is called absent"),
                // The power is gone.
                Err(_) => return false,
            }
        }
        true
    }

    /// Deletes the first ledger; another comes in its place.
    async fn delete(&mut self, world: &World) -> bool {
        self.first += 1;
        let Some(expected) = self.ledgers.get_mut(&self.first) else { return true };
        expected.delete_asked = true;
        let deleted = world.store.delete(ledger(self.first)).await;
        expected.deleted |= deleted.is_ok();
        deleted.is_ok()
    }

    /// Compares what is on disk with what has to be there.
    async fn check(&mut self, world: &World, at: &str) {
        for (&id, expected) in &mut self.ledgers {
            let state = match world.store.state(ledger(id)).await {
                Ok(state) => state,
                Err(refusal) => {
                    assert_eq!(refusal, Refusal::Deleted, "{at}: {id}");
                    assert!(expected.delete_asked, "{at}: nobody deleted {id}");
                    expected.deleted = true;
                    let last = expected.sent.last().copied().unwrap_or_default();
                    for entry in [0, last, last + 1] {
                        let read = world.read(id, entry).await;
                        assert_eq!(read, Err(Refusal::Deleted), "{at}: {id}/{entry}");
                    }
                    let late = world.add(&recovery(), &bytes_of(id, last + 1)).await;
                    assert_eq!(late, Err(Refusal::Deleted), "{at}: {id}");
                    continue;
                }
            };
            assert!(!expected.deleted, "{at}: that {id} was deleted is forgotten");
            assert!(state.fenced || !expected.fenced, "{at}: the fence of {id} is forgotten");
            assert!(!state.fenced || expected.fence_asked, "{at}: nobody fenced {id}");
            let end = expected.sent.last().map_or(0, |last| last + 1);
            for entry in 0..end + 3 {
                let read = world.read(id, entry).await;
                match &read {
                    Ok(read) => assert_eq!(*read, bytes_of(id, entry), "{at}: {id}/{entry}"),
                    Err(Refusal::Absent) => {}
                    Err(other) => panic!("{at}: {id}/{entry}: {other}"),
                }
                let is_there = read.is_ok();
                assert!(
                    is_there || !expected.kept.contains(&entry),
                    "{at}: {id}/{entry} was there and is lost"
                );
                assert!(!is_there || expected.sent.contains(&entry), "{at}: {id}/{entry}: a ghost");
                if is_there {
                    expected.kept.insert(entry);
                }
            }
            if !state.fenced && expected.has_writer {
                let other = world.add(&writer(9999), &bytes_of(id, end + 50)).await;
                assert_eq!(other, Err(Refusal::OtherWriter), "{at}: the writer of {id}");
            }
        }
        let unknown = world.read(9999, 0).await;
        assert_eq!(unknown, Err(Refusal::Absent), "{at}: of a ledger never heard of");
    }
}

#[tokio::test]
async fn a_power_loss_at_any_step_keeps_what_was_acknowledged() {
    let (mut lives, mut acknowledged, mut indexed, mut rebuilt) = (0, 0, 0, 0);
    let mut compacted = 0;
    for seed in seeds(60) {
        let mut random = Rng::with_seed(seed);
        let disk = Arc::new(MemoryDisk::new());
        log::create(&*disk, LOG).unwrap();
        let mut model = Model::default();
        let mut world = World::open(disk).await;
        for life in 0..5 {
            let at = format!("seed {seed}, life {life}");
            world.disk.lose_power_at(random.u64(1..200));
            while model.step(&world, &mut random).await {}
            lives += 1;
            let disk = world.break_off().await;
            end(&disk, &mut random);
            // It may end again while it starts.
            if random.bool() {
                disk.lose_power_at(random.u64(1..30));
                if let Ok(world) = World::try_open(disk.clone()).await {
                    world.break_off().await;
                }
                end(&disk, &mut random);
            }
            if random.u8(..4) == 0 {
                Index::remove(&*disk).unwrap();
                rebuilt += 1;
            }
            world = World::open(disk).await;
            assert_eq!(world.replayed.damages, [], "{at}");
            model.check(&world, &at).await;
        }
        acknowledged += model.acknowledged;
        compacted += model.compacted;
        indexed += usize::from(world.store.index.known().unwrap().is_some());
    }
    eprintln!(
        "{lives} lives, {acknowledged} adds, {compacted} segments compacted, {indexed} indexes, \
         {rebuilt} made anew"
    );
    assert!(compacted > 20, "{compacted} compacted");
    assert!(acknowledged > 1000 && indexed > 0, "{acknowledged} adds, {indexed} indexes");
}

/// Ends the power, or the process alone.
fn end(disk: &MemoryDisk, random: &mut Rng) {
    match random.u8(..4) {
        0 => disk.crash(Unsynced::Lost),
        1 => disk.crash(Unsynced::Prefix { bytes: random.usize(..9000) }),
        2 => disk.crash(Unsynced::Sectors { seed: random.u64(..) }),
        _ => disk.go_on(),
    }
}

/// The seeds of a test: so many, or the one of `INKFAST_SEED`, or with `INKFAST_LONG` many more.
fn seeds(count: u64) -> Range<u64> {
    if let Some(seed) = std::env::var("INKFAST_SEED").ok().and_then(|seed| seed.parse().ok()) {
        return seed..seed + 1;
    }
    if std::env::var_os("INKFAST_LONG").is_some() { 0..count * 100 } else { 0..count }
}
