//! What decays is found.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::index::SegmentInfo;
use crate::log::SegmentNumber;
use crate::store::scrub::{Hits, Scrub};

/// A moment in 2026, in milliseconds.
const NOW_MS: u64 = 1_790_000_000_000;
const DAY: Duration = Duration::from_secs(24 * 3600);
const RATE: u64 = 10_000;

impl World {
    /// Has several segments that have ended, of entries of two ledgers, all in the index.
    async fn full() -> Self {
        let world = Self::new().await;
        world.fill([1, 2]).await;
        assert!(world.ended().await.len() >= 3);
        world
    }

    async fn fill(&self, ledgers: [u64; 2]) {
        let payload = "x".repeat(2000);
        for id in 0..50 {
            for ledger in ledgers {
                self.add(&writer(1), &entry(ledger, id, &payload)).await.unwrap();
            }
        }
        self.store.checkpoint().await.unwrap();
    }

    async fn ended(&self) -> BTreeMap<SegmentNumber, SegmentInfo> {
        let (mut segments, growing) = self.store.segments().await.unwrap().unwrap();
        segments.retain(|number, _| *number < growing);
        segments
    }

    fn scrub(&self, now_ms: u64) -> Scrub {
        Scrub::new(self.store.clone(), NonZeroU64::new(RATE).unwrap(), now_ms)
    }

    /// Verifies all whose time has come, and returns how many these are.
    async fn verify(&self, scrub: &mut Scrub) -> usize {
        let mut count = 0;
        while scrub.step().await.unwrap() {
            count += 1;
        }
        self.store.checkpoint().await.unwrap();
        count
    }

    async fn verified(&self) -> Vec<Option<u64>> {
        self.ended().await.values().map(|info| info.verified_at_ms).collect()
    }

    async fn place(&self, ledger: u64, id: u64) -> Place {
        let ids = vec![EntryId::new(id)];
        self.store.locate(self::ledger(ledger), ids).await.unwrap().remove(0).unwrap()
    }

    async fn flip(&self, ledger: u64, id: u64) {
        let place = self.place(ledger, id).await;
        self.disk.flip_bit(&place.segment.to_string(), place.offset as usize + 500, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_read_at_the_rate_and_again_after_a_week() {
    let world = World::full().await;
    let ended = world.ended().await;
    let bytes: u64 = ended.values().map(|info| u64::from(info.bytes)).sum();
    let mut scrub = world.scrub(NOW_MS);
    let began = Instant::now();
    assert_eq!(world.verify(&mut scrub).await, ended.len());
    let took = began.elapsed();
    let least = Duration::from_millis(bytes * 1000 / RATE - 100);
    assert!(least <= took && took < least + Duration::from_secs(1), "{took:?} for {bytes} bytes");
    let verified = world.verified().await;
    assert!(verified.iter().all(|at| at.is_some_and(|at| at > NOW_MS)), "{verified:?}");
    assert!(verified.is_sorted());
    assert_eq!(world.store.damaged_entries(), Hits::default());

    advance(6 * DAY).await;
    assert_eq!(world.verify(&mut scrub).await, 0);
    advance(DAY).await;
    assert_eq!(world.verify(&mut scrub).await, ended.len());
    for (before, after) in verified.iter().zip(world.verified().await) {
        assert!(after > *before);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_filled_meanwhile_is_read_a_week_later() {
    let world = World::full().await;
    let before = world.ended().await.len();
    let mut scrub = world.scrub(NOW_MS);
    assert_eq!(world.verify(&mut scrub).await, before);
    world.fill([3, 4]).await;
    let all = world.ended().await.len();
    assert!(all > before + 2);
    assert_eq!(world.verify(&mut scrub).await, 0);
    advance(6 * DAY).await;
    assert_eq!(world.verify(&mut scrub).await, 0);
    advance(DAY).await;
    assert_eq!(world.verify(&mut scrub).await, all);

    // To the next process it was there before.
    world.fill([5, 6]).await;
    let filled = world.ended().await.len() - all;
    assert_eq!(world.verify(&mut world.scrub(NOW_MS + 9 * 86_400_000)).await, filled);
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_with_what_was_not_verified_for_the_longest() {
    let world = World::full().await;
    let count = world.ended().await.len();
    assert!(world.scrub(NOW_MS).step().await.unwrap());
    world.store.checkpoint().await.unwrap();
    let first = world.verified().await[0].unwrap();
    let world = world.crash().await;
    let after = NOW_MS + 3_600_000;
    assert_eq!(world.verify(&mut world.scrub(after)).await, count - 1);
    let verified = world.verified().await;
    assert_eq!(verified[0], Some(first));
    assert!(verified[1..].iter().all(|at| at.is_some_and(|at| at >= after)), "{verified:?}");
    // By a clock that goes wrong all of this is yet to come.
    assert_eq!(world.verify(&mut world.scrub(NOW_MS - 1)).await, count);
}

#[tokio::test(start_paused = true)]
async fn flipped_bits_are_found_with_the_entries_that_they_hit() {
    let world = World::full().await;
    let count = world.ended().await.len();
    let bad = [(1, 2), (1, 20), (2, 2), (2, 21), (2, 22)];
    for (ledger, id) in bad {
        world.flip(ledger, id).await;
    }
    let mut scrub = world.scrub(NOW_MS);
    assert_eq!(world.verify(&mut scrub).await, count);
    let entries = world.store.damaged_entries();
    let mut found: Vec<_> = entries.entries.iter().map(|(l, e)| (l.get(), e.get())).collect();
    found.sort_unstable();
    assert_eq!((found.as_slice(), entries.beyond), (bad.as_slice(), 0));
    let mut hit = BTreeSet::new();
    for (ledger, id) in bad {
        hit.insert(world.place(ledger, id).await.segment);
    }
    assert!(hit.len() >= 2, "{hit:?}");
    for (number, info) in world.ended().await {
        assert_eq!(info.verified_at_ms.is_none(), hit.contains(&number), "{number}");
    }
    // What was repaired is whole in the next round, and no other is.
    world.flip(2, 21).await;
    advance(7 * DAY).await;
    assert_eq!(world.verify(&mut scrub).await, count);
    assert_eq!(world.store.damaged_entries().entries.len(), bad.len() - 1);
}

#[tokio::test(start_paused = true)]
async fn a_segment_that_is_lost_altogether_hits_all_its_entries_and_some_are_only_counted() {
    let world = World::full().await;
    let number = world.place(1, 0).await.segment;
    world.disk.flip_bit(&number.to_string(), 30, 1);
    world.verify(&mut world.scrub(NOW_MS)).await;
    let mut hit = 0;
    for ledger in [1, 2] {
        for id in 0..50 {
            hit += u64::from(world.place(ledger, id).await.segment == number);
        }
    }
    let Hits { entries, beyond } = world.store.damaged_entries();
    assert_eq!(entries.len() as u64 + beyond, hit);
    let unreadable = world.ended().await.into_keys().nth(1).unwrap();
    world.disk.fail_reads(&unreadable.to_string(), true);
    world.verify(&mut world.scrub(NOW_MS)).await;
    let hits = world.store.damaged_entries();
    assert_eq!(hits.entries.len(), 20);
    assert!(hits.beyond > beyond, "{hits:?}");
}

#[tokio::test(start_paused = true)]
async fn it_is_the_disk_that_is_read_and_not_what_the_system_has_in_memory() {
    let world = World::full().await;
    for number in world.ended().await.into_keys() {
        world.disk.spoil_cache(&number.to_string(), 6000..6100);
    }
    world.verify(&mut world.scrub(NOW_MS)).await;
    assert_eq!(world.store.damaged_entries(), Hits::default());
}

#[tokio::test(start_paused = true)]
async fn of_a_segment_that_is_dropped_meanwhile_nothing_is_said() {
    let world = World::full().await;
    let files = |world: &World| world.disk.list().unwrap();
    let before = files(&world);
    let mut scrub = world.scrub(NOW_MS);
    let scrubbing = tokio::spawn(async move { scrub.step().await.map(|_| scrub) });
    // It is somewhere in the first segment now.
    sleep(Duration::from_secs(3)).await;
    for id in [1, 2] {
        world.store.delete(ledger(id)).await.unwrap();
    }
    world.store.checkpoint().await.unwrap();
    // Whose file is another's soon.
    for id in 0..100 {
        world.add(&writer(1), &entry(3, id, &"y".repeat(2000))).await.unwrap();
    }
    assert!(!files(&world).contains(&before[1]), "{before:?} {:?}", files(&world));
    scrubbing.await.unwrap().unwrap();
    assert!(world.store.decayed.segments().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_found_in_a_segment_goes_with_it() {
    let world = World::full().await;
    world.flip(1, 2).await;
    let mut scrub = world.scrub(NOW_MS);
    world.verify(&mut scrub).await;
    assert_eq!(world.store.damaged_entries().entries.len(), 1);
    for id in [1, 2] {
        world.store.delete(ledger(id)).await.unwrap();
    }
    world.store.checkpoint().await.unwrap();
    world.verify(&mut scrub).await;
    assert_eq!(world.store.damaged_entries(), Hits::default());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_has_failed_is_left_alone() {
    let world = World::full().await;
    world.disk.fail_next_sync();
    world.add(&writer(1), &entry(7, 0, "a")).await.unwrap_err();
    let reads = world.disk.reads();
    assert!(!world.scrub(NOW_MS).step().await.unwrap());
    assert_eq!(world.disk.reads(), reads);
}
