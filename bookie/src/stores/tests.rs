//! Stores on several disks, of which some fail.

use inkfast_protocol::gate::Adder;
use inkfast_protocol::{Entry, EntryHeader, EntryId, WriterId};
use inkfast_wire::FRAME_HEADER_BYTES;
use tokio::sync::mpsc;

use super::*;
use crate::disk::{Disk, MemoryDisk, Unsynced};
use crate::log;
use crate::store::{Add, Batch};

mod damage;

/// So little that the stores also read their disks.
const MEMORY_BYTES: u64 = 64 << 10;
const MIN_FREE: MinFree = MinFree::Bytes(4 << 20);

struct World {
    disks: Vec<MemoryDisk>,
    stores: Stores,
    tasks: Vec<JoinHandle<()>>,
}

impl World {
    async fn new(disks: usize) -> Self {
        let disks: Vec<_> = (0..disks).map(|_| MemoryDisk::new()).collect();
        for (number, disk) in disks.iter().enumerate() {
            log::create(disk, log_of(number)).unwrap();
        }
        Self::open(disks).await
    }

    async fn open(disks: Vec<MemoryDisk>) -> Self {
        let order = (0..disks.len()).collect();
        Self::open_in(disks, order, Vec::new()).await
    }

    /// Opens the stores of some disks, in this order; the others are not there.
    async fn open_in(disks: Vec<MemoryDisk>, order: Vec<usize>, broken: Vec<Error>) -> Self {
        let sound = order.into_iter().map(|number| {
            let disk: Arc<dyn Disk> = Arc::new(disks[number].clone());
            (Directory { path: format!("d{number}").into(), disk }, log_of(number))
        });
        let opened =
            Stores::open(sound.collect(), broken, (Some(MIN_FREE), MEMORY_BYTES), Executor::Late)
                .await
                .unwrap();
        let Opened { stores, tasks, .. } = opened;
        Self { disks, stores, tasks }
    }

    /// Loses power, and whatever was not synced.
    async fn crash(self) -> Vec<MemoryDisk> {
        self.disks.iter().for_each(|disk| disk.lose_power_at(0));
        drop(self.stores);
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.disks.iter().for_each(|disk| disk.crash(Unsynced::Lost));
        self.disks
    }

    /// Leaves so much room on a disk, and waits until that is noticed.
    async fn leave(&self, disk: usize, bytes: usize) {
        self.disks[disk].set_capacity_bytes(None);
        let Space { capacity_bytes, free_bytes, .. } = self.disks[disk].space().unwrap();
        let used = usize::try_from(capacity_bytes - free_bytes).unwrap();
        self.disks[disk].set_capacity_bytes(Some(used + bytes));
        let mut space = self.stores.space();
        // The one that is under way may have been before.
        for _ in 0..2 {
            space.mark_unchanged();
            space.changed().await.unwrap();
        }
    }

    async fn add(&self, id: u64, entry: u64) -> Result<(), Refusal> {
        let home = self.stores.home(ledger(id)).await?;
        add(&home, &writer(), id, entry).await
    }

    async fn recover(&self, id: u64, entry: u64) -> Result<(), Refusal> {
        let home = self.stores.home(ledger(id)).await?;
        add(&home, &Arc::new(Adder::Recovery), id, entry).await
    }

    async fn fence(&self, id: u64) -> Result<(), Refusal> {
        let home = self.stores.home(ledger(id)).await?;
        home.store().fence(ledger(id)).await.map(drop)
    }

    async fn read(&self, id: u64, entry: u64) -> Result<(), Refusal> {
        let home = self.stores.find(ledger(id)).await?;
        let places = home.store().locate(ledger(id), vec![EntryId::new(entry)]).await?;
        let wanted = (EntryId::new(entry), places.into_iter().next().unwrap());
        let read = home.store().read(ledger(id), vec![wanted]).await.remove(0)?;
        assert_eq!(read[FRAME_HEADER_BYTES..], self::entry(id, entry).bytes()[..]);
        Ok(())
    }

    async fn is_fenced(&self, id: u64) -> bool {
        let home = self.stores.find(ledger(id)).await.unwrap();
        home.store().state(ledger(id)).await.unwrap().fenced
    }

    /// The number of the disk on which a ledger is, if it is on one.
    async fn disk_of(&self, id: u64) -> Option<usize> {
        self.stores.look_up(ledger(id)).await.unwrap()
    }

    /// Adds to ledgers until each disk has one of them, and returns one of each.
    async fn one_on_each(&self) -> Vec<u64> {
        let mut found = BTreeMap::new();
        for id in 100..200 {
            self.add(id, 0).await.unwrap();
            found.entry(self.disk_of(id).await.unwrap()).or_insert(id);
        }
        assert_eq!(found.len(), self.disks.len(), "{found:?}");
        found.into_values().collect()
    }
}

fn log_of(number: usize) -> Uuid {
    Uuid::from_u128(9 + number as u128)
}

fn ledger(id: u64) -> LedgerId {
    LedgerId::new(id).unwrap()
}

fn writer() -> Arc<Adder> {
    Arc::new(Adder::Writer { id: WriterId(Uuid::from_u128(1)), fragment: "brief".into() })
}

fn entry(ledger: u64, entry: u64) -> Entry {
    let (ledger, entry) = (self::ledger(ledger), EntryId::new(entry));
    let header =
        EntryHeader { ledger, entry, last_add_confirmed: None, length: 0, written_at_ms: 0 };
    Entry::encode(header, b"payload")
}

async fn add(home: &Home, by: &Arc<Adder>, id: u64, number: u64) -> Result<(), Refusal> {
    let (outcomes, mut happened) = mpsc::unbounded_channel();
    let add = Some(Add { run: entry(id, number).into(), sequence: 0 });
    let batch = Batch { ledger: ledger(id), by: by.clone(), adder: 0, add, confirmed: None };
    home.let_in(by)?;
    home.store().add(&mut vec![batch], &outcomes).await?;
    happened.recv().await.unwrap().result.map(drop)
}

fn assert_unknown(answer: Result<(), Refusal>) {
    assert!(matches!(answer, Err(Refusal::Unknown(_))), "{answer:?}");
}

fn assert_read_only(answer: Result<(), Refusal>) {
    assert!(matches!(answer, Err(Refusal::ReadOnly(_))), "{answer:?}");
}

#[tokio::test]
async fn a_ledger_stays_where_it_began_whatever_the_order_of_directories() {
    let world = World::new(3).await;
    let ids = world.one_on_each().await;
    world.fence(7).await.unwrap();
    let fence_at = world.disk_of(7).await.unwrap();
    let disks = world.crash().await;
    let world = World::open_in(disks, vec![2, 0, 1], Vec::new()).await;
    for (id, expected) in ids.into_iter().zip([1, 2, 0]) {
        assert_eq!(world.disk_of(id).await, Some(expected));
        assert_eq!(world.read(id, 0).await, Ok(()));
        assert_eq!(world.read(id, 1).await, Err(Refusal::Absent));
        assert_eq!(world.add(id, 1).await, Ok(()));
        assert_eq!(world.disk_of(id).await, Some(expected));
    }
    assert_eq!(world.disk_of(7).await, Some([1, 2, 0][fence_at]));
    assert!(world.is_fenced(7).await);
    assert_eq!(world.add(7, 0).await, Err(Refusal::Fenced));
    assert_eq!(world.read(8, 0).await, Err(Refusal::Absent));
    assert!(!*world.stores.read_only().borrow());
}

#[tokio::test]
async fn all_who_come_before_the_first_record_are_given_one_home() {
    let world = World::new(3).await;
    for id in 1..50 {
        let asked = (0..8).map(|_| world.stores.home(ledger(id)));
        let homes: Vec<_> =
            join_all(asked).await.into_iter().map(|home| home.ok().unwrap()).collect();
        let first = homes[0].member;
        assert!(homes.iter().all(|home| home.member == first));
        // A fence goes by another way, and nobody writes before it.
        world.fence(id).await.unwrap();
        for home in &homes {
            assert_eq!(add(home, &writer(), id, 0).await, Err(Refusal::Fenced));
        }
        drop(homes);
        assert_eq!(world.disk_of(id).await, Some(first));
    }
    assert!(world.stores.0.homes().held.len() < 20, "decisions that nobody holds are dropped");
}

#[tokio::test]
async fn who_gives_up_after_a_record_was_sent_does_not_undo_the_decision() {
    let world = World::new(2).await;
    for id in 1..20 {
        let mut fence = Box::pin(world.fence(id));
        // It has got as far as it does without the store's answer.
        while world.stores.0.homes().find(ledger(id)).is_none_or(|it| it.0.get().is_none()) {
            assert!(futures::poll!(&mut fence).is_pending());
            tokio::task::yield_now().await;
        }
        assert!(futures::poll!(&mut fence).is_pending());
        drop(fence);
        assert_eq!(world.add(id, 0).await, Err(Refusal::Fenced));
    }
}

#[tokio::test]
async fn directories_with_as_much_room_get_ledgers_by_turns_and_one_with_more_gets_all() {
    let world = World::new(2).await;
    for (id, expected) in [(1, 0), (2, 1), (3, 0), (4, 1)] {
        world.add(id, 0).await.unwrap();
        assert_eq!(world.disk_of(id).await, Some(expected));
    }
    world.disks[0].set_capacity_bytes(Some(1 << 30));
    world.disks[1].set_capacity_bytes(Some(2 << 30));
    let mut space = world.stores.space();
    space.wait_for(|space| space.capacity_bytes == 3 << 30).await.unwrap();
    for id in 10..14 {
        world.add(id, 0).await.unwrap();
        assert_eq!(world.disk_of(id).await, Some(1));
    }
}

#[tokio::test]
async fn with_a_directory_missing_nothing_is_absent_and_nothing_new_begins() {
    let world = World::new(2).await;
    let ids = world.one_on_each().await;
    let mut fenced = BTreeMap::new();
    for id in 300..304 {
        world.fence(id).await.unwrap();
        fenced.entry(world.disk_of(id).await.unwrap()).or_insert(id);
    }
    let disks = world.crash().await;
    let gone = vec![Error::directory("d1".as_ref(), "it is gone")];
    let world = World::open_in(disks, vec![0], gone).await;
    assert!(*world.stores.read_only().borrow());
    assert_eq!(world.read(ids[0], 0).await, Ok(()));
    assert_eq!(world.read(ids[0], 1).await, Err(Refusal::Absent));
    assert_eq!(world.add(ids[0], 1).await, Ok(()));
    assert_eq!(world.add(fenced[&0], 0).await, Err(Refusal::Fenced));
    assert_eq!(world.recover(fenced[&0], 0).await, Ok(()));
    // In the one that is gone, or nowhere.
    for id in [ids[1], fenced[&1], 999] {
        assert_unknown(world.read(id, 0).await);
        assert_unknown(world.add(id, 1).await);
        assert_unknown(world.recover(id, 1).await);
        assert_unknown(world.fence(id).await);
        assert!(world.stores.find(ledger(id)).await.is_err());
    }
    let words = world.add(999, 0).await.unwrap_err().to_string();
    assert!(words.contains("d1") && words.contains("it is gone"), "{words}");

    let world = World::open(world.crash().await).await;
    assert_eq!(world.add(ids[1], 1).await, Ok(()));
    assert_eq!(world.add(fenced[&1], 0).await, Err(Refusal::Fenced));
    assert_eq!(world.add(999, 0).await, Ok(()));
}

#[tokio::test]
async fn a_store_that_cannot_be_opened_is_as_a_missing_one() {
    let world = World::new(2).await;
    let ids = world.one_on_each().await;
    let disks = world.crash().await;
    disks[0].lose_power_at(0);
    let world = World::open(disks).await;
    assert!(*world.stores.read_only().borrow());
    assert_unknown(world.read(ids[0], 0).await);
    assert_unknown(world.add(ids[0], 1).await);
    assert_eq!(world.read(ids[1], 0).await, Ok(()));
    assert_eq!(world.add(ids[1], 1).await, Ok(()));
    assert_unknown(world.fence(999).await);

    world.disks[1].lose_power_at(0);
    let sound = world.disks.iter().enumerate().map(|(number, disk)| {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        (Directory { path: format!("d{number}").into(), disk }, log_of(number))
    });
    let none =
        Stores::open(sound.collect(), Vec::new(), (Some(MIN_FREE), MEMORY_BYTES), Executor::Late)
            .await;
    let words = none.err().expect("none is left").to_string();
    assert!(words.contains("d0") && words.contains("d1"), "{words}");
}

#[tokio::test]
async fn a_store_that_fails_refuses_its_own_ledgers_and_the_other_takes_what_is_new() {
    let world = World::new(2).await;
    let ids = world.one_on_each().await;
    world.fence(301).await.unwrap();
    world.fence(302).await.unwrap();
    // The first record of a ledger is under way when the log fails.
    world.disks[0].fail_next_sync();
    let mut lost = None;
    for id in 400..403 {
        if world.add(id, 0).await.is_err() {
            lost = Some(id);
            break;
        }
    }
    let lost = lost.expect("one of them was for the disk that fails");
    assert_read_only(world.add(ids[0], 1).await);
    assert_eq!(world.read(ids[0], 0).await, Ok(()));
    assert_unknown(world.read(ids[0], 1).await);
    // It may be there at the next start, so it is nowhere else.
    assert_eq!(world.disk_of(lost).await, Some(0));
    assert_read_only(world.add(lost, 0).await);
    assert_read_only(world.fence(lost).await);
    assert_unknown(world.read(lost, 0).await);
    // What it does not know is not there.
    assert_eq!(world.read(999, 0).await, Err(Refusal::Absent));
    for id in 500..505 {
        assert_eq!(world.add(id, 0).await, Ok(()));
        assert_eq!(world.disk_of(id).await, Some(1));
    }
    assert!(world.is_fenced(301).await && world.is_fenced(302).await);
    assert!(!*world.stores.read_only().borrow());

    let mut read_only = world.stores.read_only();
    world.disks[1].fail_next_sync();
    assert_read_only(world.add(ids[1], 1).await);
    read_only.wait_for(|read_only| *read_only).await.unwrap();
    assert_read_only(world.fence(998).await);
    assert_unknown(world.read(999, 0).await);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_answer_keeps_ledgers_from_beginning_and_the_other_serves_its_own() {
    let world = World::new(2).await;
    let ids = world.one_on_each().await;
    world.tasks[0].abort();
    assert_unknown(world.add(999, 0).await);
    assert_unknown(world.fence(999).await);
    assert_unknown(world.read(999, 0).await);
    assert_unknown(world.read(ids[0], 0).await);
    assert_eq!(world.read(ids[1], 0).await, Ok(()));
    assert_eq!(world.add(ids[1], 1).await, Ok(()));
    world.stores.read_only().wait_for(|read_only| *read_only).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_say_what_it_has_is_asked_again() {
    let world = World::new(2).await;
    let mut read_only = world.stores.read_only();
    let health = &world.stores.0.members[0].health;
    health.set_unsure_of(Some(ledger(7)));
    // As at the next look, before it is asked again.
    let told = Watcher {
        healths: vec![health.clone()],
        broken: false,
        executor: Executor::Late,
        read_only: watch::Sender::new(false),
        space: watch::Sender::default(),
    };
    told.tell();
    assert!(*told.read_only.borrow());
    sleep(2 * LOOK_EVERY).await;
    assert_eq!(health.unsure_of(), None);
    assert!(!*read_only.borrow_and_update());
}

#[tokio::test]
async fn a_fence_that_was_not_answered_stays_with_the_store_that_failed() {
    let world = World::new(2).await;
    world.disks[0].fail_next_sync();
    assert_read_only(world.fence(7).await);
    assert_eq!(world.disk_of(7).await, Some(0));
    assert_read_only(world.add(7, 0).await);
    // A fence of what failed to be added, too.
    assert_eq!(world.fence(8).await, Ok(()));
    let world = World::open(world.crash().await).await;
    assert!(world.is_fenced(8).await);
    assert_eq!(world.add(8, 0).await, Err(Refusal::Fenced));
    assert_eq!(world.add(7, 0).await, Ok(()));
}

#[tokio::test]
async fn what_a_damaged_store_may_have_lost_goes_by_its_rules() {
    let world = World::new(2).await;
    let ids = world.one_on_each().await;
    world.add(ids[0], 1).await.unwrap();
    let home = world.stores.find(ledger(ids[0])).await.unwrap();
    let places = home.store().locate(ledger(ids[0]), vec![EntryId::new(0)]).await.unwrap();
    let place = places.into_iter().next().unwrap().unwrap();
    drop(home);
    let disks = world.crash().await;
    disks[0].flip_bit(&place.segment.to_string(), place.offset as usize + 40, 3);
    crate::index::Index::remove(&disks[0]).unwrap();
    let world = World::open(disks).await;
    assert!(*world.stores.read_only().borrow());
    assert_unknown(world.read(999, 0).await);
    assert_read_only(world.add(999, 0).await);
    assert_eq!(world.fence(999).await, Ok(()));
    assert_eq!(world.recover(999, 0).await, Ok(()));
    assert_eq!(world.read(ids[1], 1).await, Err(Refusal::Absent));
    assert_eq!(world.add(ids[1], 1).await, Ok(()));
    assert_unknown(world.read(ids[0], 0).await);
}

#[tokio::test]
async fn a_ledger_that_is_merely_looked_for_is_not_known() {
    let world = World::new(2).await;
    let home = world.stores.home(ledger(7)).await.unwrap();
    let tip = home.store().follow(ledger(7)).await.unwrap();
    assert_eq!(world.disk_of(7).await, None);
    // Whoever follows it is told of it, wherever it begins.
    assert_eq!(world.add(7, 0).await, Ok(()));
    assert_eq!(world.disk_of(7).await, Some(home.member));
    assert_eq!(tip.borrow().durable, Some(EntryId::new(0)));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_fills_refuses_writers_then_recoveries_and_never_fences() {
    let world = World::new(1).await;
    world.add(7, 0).await.unwrap();
    world.leave(0, 5 << 20).await;
    assert_eq!(world.add(7, 1).await, Ok(()));
    assert!(!*world.stores.read_only().borrow());

    world.leave(0, 3 << 20).await;
    assert!(*world.stores.read_only().borrow());
    let refused = world.add(7, 2).await;
    assert_read_only(refused.clone());
    let words = refused.unwrap_err().to_string();
    assert!(words.contains("d0") && words.contains(" bytes free"), "{words}");
    assert_eq!(world.recover(7, 2).await, Ok(()));
    world.leave(0, 5 << 20).await;
    assert_read_only(world.add(7, 3).await);

    world.leave(0, 900 << 10).await;
    assert_read_only(world.recover(7, 3).await);
    assert_eq!(world.fence(8).await, Ok(()));
    assert_eq!(world.read(7, 2).await, Ok(()));
    world.leave(0, 2 << 20).await;
    assert_read_only(world.recover(7, 3).await);
    world.leave(0, 5 << 20).await;
    assert_eq!(world.recover(7, 3).await, Ok(()));
    assert_read_only(world.add(7, 4).await);

    world.leave(0, 6 << 20).await;
    assert_eq!(world.add(7, 4).await, Ok(()));
    assert!(!*world.stores.read_only().borrow());
}

#[tokio::test(start_paused = true)]
async fn new_ledgers_go_where_there_is_room() {
    let world = World::new(2).await;
    let ids = world.one_on_each().await;
    world.leave(0, 3 << 20).await;
    world.leave(1, 6 << 20).await;
    assert!(!*world.stores.read_only().borrow());
    assert_read_only(world.add(ids[0], 1).await);
    for id in 300..303 {
        assert_eq!(world.add(id, 0).await, Ok(()));
        assert_eq!(world.disk_of(id).await, Some(1));
    }
    world.disks[1].fail_next_sync();
    assert_read_only(world.add(ids[1], 1).await);
    // The one that is low takes fences still.
    assert_eq!(world.fence(400).await, Ok(()));
    assert_eq!(world.disk_of(400).await, Some(0));
    world.stores.read_only().wait_for(|read_only| *read_only).await.unwrap();
}
