//! Deletion, and what it leaves of the log.

use std::time::Duration;

use tokio::time::sleep;

use super::*;
use crate::store::compaction;

impl World {
    /// The numbers of the segments that have files.
    fn segments(&self) -> Vec<String> {
        let names = self.disk.list().unwrap();
        names.into_iter().filter(|name| name.starts_with("log-")).collect()
    }

    async fn add_many(&self, by: &Arc<Adder>, ledger: u64, ids: Range<u64>, payload: &str) {
        let entries = ids.map(|id| entry(ledger, id, payload)).collect();
        let mut happened = self.start_adds(by, entries).await;
        while let Some(outcome) = happened.recv().await {
            outcome.result.unwrap();
        }
    }

    /// Makes room until there is no more to be made.
    async fn compact(&self) -> usize {
        let mut steps = 0;
        self.store.checkpoint().await.unwrap();
        while compaction::step(&self.store, &mut BTreeSet::new()).await.unwrap() {
            steps += 1;
            assert!(steps < 100, "it does not end");
        }
        // What it has freed is dropped by now.
        self.store.checkpoint().await.unwrap();
        steps
    }

    async fn rebuilt(self) -> Self {
        let disk = self.break_off().await;
        disk.crash(Unsynced::Lost);
        Index::remove(&*disk).unwrap();
        Self::open(disk).await
    }
}

#[tokio::test]
async fn of_a_deleted_ledger_nothing_is_taken_or_given_out_ever_again() {
    let world = World::new().await;
    world.add_many(&writer(1), 7, 0..3, "a").await;
    world.add_many(&writer(1), 8, 0..3, "a").await;
    world.store.checkpoint().await.unwrap();
    world.add_many(&writer(1), 7, 3..6, "a").await;
    world.store.delete(ledger(7)).await.unwrap();
    let mut world = world;
    for life in 0..4 {
        for id in 0..9 {
            assert_eq!(world.read(7, id).await, Err(Refusal::Deleted), "life {life}");
        }
        for by in [writer(1), writer(2), recovery()] {
            let refused = world.add(&by, &entry(7, 9, "late")).await;
            assert_eq!(refused, Err(Refusal::Deleted), "life {life}");
        }
        assert_eq!(world.store.fence(ledger(7)).await, Err(Refusal::Deleted));
        assert!(matches!(world.store.state(ledger(7)).await, Err(Refusal::Deleted)));
        assert_eq!(world.store.delete(ledger(7)).await, Ok(()));
        assert_eq!(world.read(8, 2).await, Ok(entry(8, 2, "a")));
        let both = vec![ledger(6), ledger(7), ledger(8)];
        assert_eq!(world.store.of_use(both).await, Ok(vec![ledger(8)]));
        world = match life {
            0 => world.crash().await,
            1 => {
                world.store.checkpoint().await.unwrap();
                // It is in the index alone then.
                world.store.checkpoint().await.unwrap();
                world
            }
            _ => world.rebuilt().await,
        };
    }
}

#[tokio::test]
async fn segments_in_which_nothing_is_needed_are_dropped_and_used_again() {
    let mut world = World::new().await;
    let payload = "x".repeat(1000);
    for round in 0..6 {
        for id in 0..4 {
            world.add_many(&writer(1), 10 * round + id, 0..60, &payload).await;
        }
        for id in 0..4 {
            world.store.delete(ledger(10 * round + id)).await.unwrap();
        }
        world.compact().await;
        // The one that grows, and the one that has the tombstones.
        assert!(world.segments().len() <= 3, "round {round}: {:?}", world.segments());
        if round % 2 == 1 {
            world = world.crash().await;
            assert_eq!(world.replayed, Replayed::default());
        }
    }
    let files = world.disk.list().unwrap();
    assert!(files.len() < 16, "{files:?}");
    for id in [0, 13, 52] {
        assert_eq!(world.read(id, 0).await, Err(Refusal::Deleted));
    }
}

#[tokio::test]
async fn what_is_needed_of_a_segment_is_moved_before_it_is_dropped() {
    let world = World::new().await;
    let payload = "x".repeat(1000);
    // One in four stays: each segment has some of it, and the first has fences and writers.
    world.store.fence(ledger(99)).await.unwrap();
    world.add_many(&writer(3), 3, 0..1, "of another").await;
    world.store.fence(ledger(3)).await.unwrap();
    for id in 0..30 {
        for of in 4..8 {
            world.add_many(&writer(of.into()), of, id * 4..id * 4 + 4, &payload).await;
        }
    }
    let before = world.segments();
    assert!(before.len() > 5, "{before:?}");
    for id in 5..8 {
        world.store.delete(ledger(id)).await.unwrap();
    }
    assert!(world.compact().await > 2);
    let after = world.segments();
    assert!(after.len() <= before.len() / 2, "{before:?} {after:?}");

    let mut world = world;
    for life in ["the same", "the next", "without its index"] {
        assert_eq!(world.replayed, Replayed::default(), "{life}");
        for id in 0..120 {
            assert_eq!(world.read(4, id).await, Ok(entry(4, id, &payload)), "{life}: {id}");
        }
        assert_eq!(world.read(4, 120).await, Err(Refusal::Absent));
        assert_eq!(world.read(3, 0).await, Ok(entry(3, 0, "of another")));
        assert_eq!(world.add(&writer(9), &entry(4, 500, "b")).await, Err(Refusal::OtherWriter));
        assert_eq!(world.add(&writer(3), &entry(3, 1, "b")).await, Err(Refusal::Fenced));
        assert!(world.store.state(ledger(99)).await.unwrap().fenced);
        assert_eq!(world.read(5, 0).await, Err(Refusal::Deleted));
        let state = world.store.state(ledger(4)).await.unwrap();
        assert_eq!(state.last_add_confirmed, Some(EntryId::new(118)));
        world = match life {
            "the same" => world.crash().await,
            _ => world.rebuilt().await,
        };
    }
}

#[tokio::test]
async fn what_is_moved_takes_no_memory_from_what_is_new() {
    let world = World::new().await;
    let payload = "x".repeat(1000);
    for id in 0..30 {
        for of in 4..8 {
            world.add_many(&writer(of.into()), of, id * 4..id * 4 + 4, &payload).await;
        }
    }
    for id in 5..8 {
        world.store.delete(ledger(id)).await.unwrap();
    }
    world.add_many(&writer(9), 9, 0..50, &payload).await;
    let new = world.store.locate(ledger(9), vec![EntryId::new(49)]).await.unwrap().remove(0);
    assert!(world.compact().await > 2);
    let reads = world.disk.reads();
    world.store.reader.read(new.unwrap()).await.unwrap();
    assert_eq!(world.disk.reads(), reads);
}

#[tokio::test]
async fn a_segment_of_which_something_cannot_be_read_stays() {
    let world = World::new().await;
    let payload = "x".repeat(1000);
    for id in 0..60 {
        world.add_many(&writer(1), 1, id..id + 1, &payload).await;
        world.add_many(&writer(2), 2, 3 * id..3 * id + 3, &payload).await;
    }
    let place = world.store.locate(ledger(1), vec![EntryId::new(5)]).await.unwrap().remove(0);
    let place = place.unwrap();
    world.disk.flip_bit(&place.segment.to_string(), place.offset as usize + 100, 3);
    world.store.delete(ledger(2)).await.unwrap();
    world.store.checkpoint().await.unwrap();
    let mut stuck = BTreeSet::new();
    while compaction::step(&world.store, &mut stuck).await.unwrap() {}
    assert_eq!(stuck, [place.segment].into());
    assert!(world.segments().contains(&place.segment.to_string()));
    for id in 0..60 {
        match world.read(1, id).await {
            Ok(read) => assert_eq!(read, entry(1, id, &payload)),
            Err(refusal) => {
                assert_eq!(id, 5);
                assert!(matches!(refusal, Refusal::Corrupt(_)), "{refusal}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_that_may_be_freed_is_freed_at_one_look() {
    let world = World::new().await;
    let payload = "x".repeat(1000);
    for id in 0..60 {
        world.add_many(&writer(1), 1, id..id + 1, &payload).await;
        world.add_many(&writer(2), 2, 5 * id..5 * id + 5, &payload).await;
    }
    let filled = world.segments();
    assert!(filled.len() > 4, "{filled:?}");
    world.store.delete(ledger(2)).await.unwrap();
    world.store.checkpoint().await.unwrap();
    let compacting = tokio::spawn(compaction::run(world.store.clone()));
    // It looks every ten seconds.
    sleep(Duration::from_secs(15)).await;
    compacting.abort();
    let left: Vec<_> =
        filled[1..filled.len() - 1].iter().filter(|it| world.segments().contains(it)).collect();
    assert!(left.is_empty(), "{left:?} of {filled:?}");
    for id in 0..60 {
        assert_eq!(world.read(1, id).await, Ok(entry(1, id, &payload)));
    }
}
