//! Random work on a disk that loses power at any step of it, fails to sync, is full, or decays.
//!
//! The oracle: what was acknowledged is there with the same bytes; a fence, a first writer and a
//! deletion that were answered are remembered; what was never sent is absent. Where the log has
//! decayed, what was acknowledged may be said to be damaged or unknown, and is never absent.

use std::collections::{BTreeMap, BTreeSet};

use std::sync::atomic::Ordering;

use fastrand::Rng;
use tokio::time::{Duration, timeout};

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
    /// How often something waited for room.
    waited: usize,
    /// How often the index was made anew.
    rebuilt: usize,
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
            let Ok(Written { entries: (first, last), .. }) = outcome.result else { return false };
            let (first, last) = (first.get(), last.get());
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

    /// Compares what is on disk with what may be said when the log has decayed.
    async fn check_decayed(&self, world: &World, at: &str) {
        for (&id, expected) in &self.ledgers {
            let end = expected.sent.last().map_or(0, |last| last + 1);
            for entry in 0..end + 3 {
                match world.read(id, entry).await {
                    Ok(read) => {
                        assert_eq!(read, bytes_of(id, entry), "{at}: {id}/{entry}");
                        assert!(expected.sent.contains(&entry), "{at}: {id}/{entry}: a ghost");
                    }
                    Err(Refusal::Absent) => {
                        let kept = expected.kept.contains(&entry) && !expected.delete_asked;
                        assert!(!kept, "{at}: {id}/{entry} was there and is called absent");
                    }
                    Err(Refusal::Deleted) => assert!(expected.delete_asked, "{at}: {id}"),
                    Err(Refusal::Corrupt(_) | Refusal::Unknown(_)) => {}
                    Err(other) => panic!("{at}: {id}/{entry}: {other}"),
                }
            }
            if expected.fenced || expected.deleted {
                let late = world.add(&writer(id.into()), &bytes_of(id, end + 50)).await;
                assert!(late.is_err(), "{at}: {id} lets its writer in again");
            }
            if expected.has_writer {
                let other = world.add(&writer(9999), &bytes_of(id, end + 50)).await;
                assert!(other.is_err(), "{at}: {id} lets another writer in");
            }
        }
    }

    /// Works until something has ended the store's life, or long enough.
    async fn live(&mut self, world: &World, random: &mut Rng) {
        match random.u8(..8) {
            0 => {
                self.work(world, random, 40).await;
                world.disk.fail_next_sync();
                self.work(world, random, 1000).await;
            }
            1 => {
                let used: usize = self.used_bytes(world);
                world.disk.set_capacity_bytes(Some(used + random.usize(..200_000)));
                self.work(world, random, 60).await;
                world.disk.set_capacity_bytes(None);
                self.work(world, random, 20).await;
            }
            2 => {
                self.work(world, random, 60).await;
                let bytes = world.disk.open("index.redb").unwrap().len_bytes().unwrap();
                for _ in 0..20 {
                    let at = random.usize(..usize::try_from(bytes).unwrap());
                    world.disk.flip_bit("index.redb", at, random.u8(..8));
                }
                // It is made anew whenever it turns out to be damaged.
                for _ in 0..10 {
                    self.work(world, random, 10).await;
                    let mut index = world.store.index.clone();
                    let made = timeout(Duration::from_secs(60), index.wait_for(Option::is_some));
                    made.await.expect("the index is made anew").unwrap();
                    self.rebuilt += 1;
                }
            }
            _ => {
                let much = random.u8(..4) == 0;
                world.disk.lose_power_at(random.u64(1..if much { 2000 } else { 200 }));
                self.work(world, random, 10_000).await;
            }
        }
    }

    /// Does some things, as long as the store works, and as long as there is room.
    async fn work(&mut self, world: &World, random: &mut Rng, steps: usize) {
        for _ in 0..random.usize(1..=steps) {
            match timeout(Duration::from_secs(30), self.step(world, random)).await {
                Ok(true) => {}
                Ok(false) => return,
                // It waits for room.
                Err(_) => return self.waited += 1,
            }
        }
    }

    fn used_bytes(&self, world: &World) -> usize {
        let names = world.disk.list().unwrap();
        let bytes = names.iter().map(|name| world.disk.open(name).unwrap().len_bytes().unwrap());
        usize::try_from(bytes.sum::<u64>()).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_acknowledged_stays_whatever_the_disk_does() {
    let (mut acknowledged, mut compacted, mut waited, mut rebuilt) = (0, 0, 0, 0);
    for seed in seeds(60) {
        let mut random = Rng::with_seed(seed);
        let disk = Arc::new(MemoryDisk::new());
        log::create(&*disk, LOG).unwrap();
        let mut model = Model::default();
        let mut world = World::open(disk).await;
        for life in 0..5 {
            let at = format!("seed {seed}, life {life}");
            model.live(&world, &mut random).await;
            let disk = world.break_off().await;
            end(&disk, &mut random);
            if random.u8(..4) == 0 {
                Index::remove(&*disk).unwrap();
                model.rebuilt += 1;
            }
            // It may end again while it starts, also while the index is made anew.
            if random.bool() {
                disk.lose_power_at(random.u64(1..60));
                if let Ok(world) = World::try_open(disk.clone()).await {
                    world.break_off().await;
                }
                end(&disk, &mut random);
            }
            world = World::open(disk).await;
            assert_eq!(world.replayed.damages, [], "{at}");
            model.check(&world, &at).await;
        }
        acknowledged += model.acknowledged;
        compacted += model.compacted;
        waited += model.waited;
        rebuilt += model.rebuilt;
    }
    eprintln!(
        "{acknowledged} adds, {compacted} segments compacted, {waited} waits for room, {rebuilt} \
         indexes made anew"
    );
    let happened = acknowledged > 1000 && compacted > 20 && waited > 0 && rebuilt > 0;
    assert!(happened, "or these seeds are poor ones");
}

#[tokio::test(start_paused = true)]
async fn nothing_that_was_acknowledged_is_called_absent_when_the_log_decays() {
    let (mut acknowledged, mut decayed, mut damaged) = (0, 0, 0);
    for seed in seeds(40) {
        let mut random = Rng::with_seed(seed);
        let disk = Arc::new(MemoryDisk::new());
        log::create(&*disk, LOG).unwrap();
        let mut model = Model::default();
        let mut world = World::open(disk).await;
        for life in 0..4 {
            let at = format!("seed {seed}, life {life}");
            model.work(&world, &mut random, 300).await;
            decayed += usize::from(decay(&world.disk, &mut random));
            model.check_decayed(&world, &at).await;
            model.work(&world, &mut random, 50).await;
            let disk = world.break_off().await;
            end(&disk, &mut random);
            decayed += usize::from(decay(&disk, &mut random));
            if random.u8(..3) == 0 {
                Index::remove(&*disk).unwrap();
            }
            world = World::open(disk).await;
            damaged += usize::from(world.store.damaged().load(Ordering::Relaxed));
            model.check_decayed(&world, &at).await;
        }
        acknowledged += model.acknowledged;
    }
    eprintln!("{acknowledged} adds, {decayed} decays, {damaged} damaged logs");
    assert!(acknowledged > 1000 && decayed > 20 && damaged > 10, "or these seeds are poor ones");
}

/// Flips some bits of a segment that has ended, if there is one: in the last one, decay of the last
/// batch could not be told from a batch that was torn.
fn decay(disk: &MemoryDisk, random: &mut Rng) -> bool {
    let mut segments = disk.list().unwrap();
    segments.retain(|name| name.starts_with("log-"));
    segments.pop();
    let Some(segment) = random.choice(&segments) else { return false };
    let bytes = usize::try_from(disk.open(segment).unwrap().len_bytes().unwrap()).unwrap();
    (0..random.u8(1..4)).for_each(|_| {
        disk.flip_bit(segment, random.usize(..bytes), random.u8(..8));
    });
    true
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
