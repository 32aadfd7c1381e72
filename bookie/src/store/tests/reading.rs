//! Entries that are not where they were, or cannot be read.

use super::*;

/// A store that was opened anew, so that it has no entry in memory.
async fn reopened(entries: u64) -> World {
    let world = World::new().await;
    for id in 0..entries {
        world.add(&writer(1), &entry(7, id, "payload")).await.unwrap();
    }
    world.crash().await
}

async fn place(world: &World, id: u64) -> Place {
    let places = world.store.locate(ledger(7), vec![EntryId::new(id)]).await.unwrap();
    places.into_iter().next().unwrap().unwrap()
}

#[tokio::test]
async fn an_entry_that_was_moved_since_it_was_located_is_found_again() {
    let world = reopened(4).await;
    let mut places = Vec::new();
    for id in 0..4 {
        places.push(place(&world, id).await);
    }
    // One was where no record is now, and one in a segment that is gone.
    let elsewhere = Place { offset: places[1].offset + 8, ..places[1] };
    let gone = Place { segment: log::SegmentNumber(77), ..places[2] };
    for (second, third) in [(places[1], places[2]), (elsewhere, gone)] {
        let wanted = [places[0], second, third, places[3]].into_iter();
        let wanted = wanted.enumerate().map(|(id, place)| (EntryId::new(id as u64), Ok(place)));
        let read = world.store.read(ledger(7), wanted.collect()).await;
        for (id, read) in (0..).zip(read) {
            assert_eq!(decode(read.unwrap()), entry(7, id, "payload"));
        }
    }
}

#[tokio::test]
async fn what_was_not_located_is_told_among_what_is_read() {
    let world = reopened(2).await;
    let wanted = [
        (EntryId::new(5), Err(Refusal::Absent)),
        (EntryId::new(0), Ok(place(&world, 0).await)),
        (EntryId::new(6), Err(Refusal::Fenced)),
        (EntryId::new(1), Ok(place(&world, 1).await)),
    ];
    let read = world.store.read(ledger(7), wanted.to_vec()).await;
    let read: Vec<_> = read.into_iter().map(|read| read.map(decode)).collect();
    let [first, second] = [0, 1].map(|id| Ok(entry(7, id, "payload")));
    assert_eq!(read, [Err(Refusal::Absent), first, Err(Refusal::Fenced), second]);
}

#[tokio::test]
async fn a_disk_that_fails_makes_an_entry_unknown_and_a_lost_file_makes_it_corrupt() {
    let world = reopened(2).await;
    let segment = place(&world, 1).await.segment.to_string();
    let again = || async { world.add(&writer(1), &entry(7, 1, "payload")).await };
    world.disk.fail_reads(&segment, true);
    let (read, added) = (world.read(7, 1).await, again().await);
    assert!(matches!(read, Err(Refusal::Unknown(_))), "{read:?}");
    assert!(matches!(added, Err(Refusal::Unknown(_))), "{added:?}");
    world.disk.fail_reads(&segment, false);
    assert_eq!((world.read(7, 1).await, again().await), (Ok(entry(7, 1, "payload")), Ok(())));

    let world = reopened(2).await;
    world.disk.remove(&segment).unwrap();
    let read = world.read(7, 1).await;
    assert!(matches!(read, Err(Refusal::Corrupt(_))), "{read:?}");
}
