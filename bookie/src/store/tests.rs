//! The store on a disk that loses what was not synced.

use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use inkfast_protocol::{Entry, EntryHeader, WriterId};
use inkfast_wire::FRAME_HEADER_BYTES;
use tokio::sync::mpsc::UnboundedReceiver;

use super::*;
use crate::disk::{BLOCK_BYTES, MemoryDisk, Unsynced};
use crate::log;
use crate::memory::Memory;
use crate::store::checkpoint::RECENT_ENTRIES_MAX;

mod reading;
mod scrub;
mod simulation;
mod upkeep;

const LOG: Uuid = Uuid::from_u128(9);

struct World {
    disk: Arc<MemoryDisk>,
    store: Store,
    replayed: Replayed,
    task: JoinHandle<()>,
}

impl World {
    async fn new() -> Self {
        let disk = Arc::new(MemoryDisk::new());
        log::create(&*disk, LOG).unwrap();
        Self::open(disk).await
    }

    async fn open(disk: Arc<MemoryDisk>) -> Self {
        Self::try_open(disk).await.unwrap()
    }

    async fn try_open(disk: Arc<MemoryDisk>) -> Result<Self, StoreError> {
        let dyn_disk = Arc::clone(&disk) as Arc<dyn Disk>;
        let (store, replayed, task) =
            Store::open(dyn_disk, LOG, Executor::Late, Memory::LITTLE).await?;
        Ok(Self { disk, store, replayed, task })
    }

    /// Loses power, and whatever was not synced.
    async fn crash(self) -> Self {
        let disk = self.break_off().await;
        disk.crash(Unsynced::Lost);
        Self::open(disk).await
    }

    /// Ends all that is under way, wherever it is.
    async fn break_off(self) -> Arc<MemoryDisk> {
        // What has not come to the disk must not come there when the power is back.
        self.disk.lose_power_at(0);
        self.task.abort();
        let _ = self.task.await;
        drop(self.store);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.disk
    }

    async fn add(&self, by: &Arc<Adder>, entry: &Entry) -> Result<(), Refusal> {
        let mut outcomes = self.start_add(by, entry).await;
        outcomes.recv().await.unwrap().result.map(drop)
    }

    async fn start_add(&self, by: &Arc<Adder>, entry: &Entry) -> UnboundedReceiver<Outcome> {
        self.start_adds(by, vec![entry.clone()]).await
    }

    async fn start_adds(&self, by: &Arc<Adder>, entries: Vec<Entry>) -> UnboundedReceiver<Outcome> {
        let (outcomes, happened) = mpsc::unbounded_channel();
        let run = Run::new(entries).unwrap();
        let ledger = run.first().header().ledger;
        let add = Some(Add { run, sequence: 0 });
        let batch = Batch { ledger, by: by.clone(), adder: 0, add, confirmed: None };
        self.store.add(&mut vec![batch], &outcomes).await.unwrap();
        happened
    }

    /// Tells the last add confirmed by itself.
    async fn tell(&self, ledger: u64, by: Arc<Adder>, confirmed: u64) {
        let (outcomes, _happened) = mpsc::unbounded_channel();
        let (ledger, confirmed) = (self::ledger(ledger), Some(EntryId::new(confirmed)));
        let batch = Batch { ledger, by, adder: 0, add: None, confirmed };
        self.store.add(&mut vec![batch], &outcomes).await.unwrap();
    }

    async fn read(&self, ledger: u64, id: u64) -> Result<Entry, Refusal> {
        let ids = vec![EntryId::new(id)];
        let place = self.store.locate(self::ledger(ledger), ids).await?.remove(0);
        let wanted = vec![(EntryId::new(id), place)];
        self.store.read(self::ledger(ledger), wanted).await.remove(0).map(decode)
    }
}

/// Decodes what was read, behind the room for a frame's header.
fn decode(read: BytesMut) -> Entry {
    Entry::decode(read.freeze().slice(FRAME_HEADER_BYTES..)).unwrap()
}

fn ledger(id: u64) -> LedgerId {
    LedgerId::new(id).unwrap()
}

fn entry(ledger: u64, id: u64, payload: &str) -> Entry {
    let header = EntryHeader {
        ledger: self::ledger(ledger),
        entry: EntryId::new(id),
        last_add_confirmed: EntryId::new(id).previous(),
        length: 0,
        written_at_ms: 0,
    };
    Entry::encode(header, payload.as_bytes())
}

fn writer(id: u128) -> Arc<Adder> {
    Arc::new(Adder::Writer { id: WriterId(Uuid::from_u128(id)), fragment: "brief".into() })
}

fn recovery() -> Arc<Adder> {
    Arc::new(Adder::Recovery)
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_loss() {
    let world = World::new().await;
    for id in 0..20 {
        world.add(&writer(1), &entry(7, id, "payload")).await.unwrap();
    }
    let world = world.crash().await;
    for id in 0..20 {
        assert_eq!(world.read(7, id).await, Ok(entry(7, id, "payload")));
    }
    assert_eq!(world.read(7, 20).await, Err(Refusal::Absent));
    let state = world.store.state(ledger(7)).await.unwrap();
    assert_eq!(state.last_add_confirmed, Some(EntryId::new(18)));
}

#[tokio::test]
async fn a_fence_survives_a_power_loss_also_of_a_ledger_never_heard_of() {
    let world = World::new().await;
    world.add(&writer(1), &entry(7, 0, "a")).await.unwrap();
    assert_eq!(world.store.fence(ledger(7)).await, Ok(None));
    assert_eq!(world.store.fence(ledger(8)).await, Ok(None));
    let world = world.crash().await;
    for id in [7, 8] {
        assert!(world.store.state(ledger(id)).await.unwrap().fenced);
        assert_eq!(world.add(&writer(1), &entry(id, 1, "b")).await, Err(Refusal::Fenced));
        assert_eq!(world.add(&recovery(), &entry(id, 1, "b")).await, Ok(()));
    }
}

#[tokio::test]
async fn the_first_writer_survives_a_power_loss() {
    let world = World::new().await;
    world.add(&recovery(), &entry(7, 0, "a")).await.unwrap();
    world.add(&writer(1), &entry(7, 1, "b")).await.unwrap();
    let world = world.crash().await;
    assert_eq!(world.add(&writer(2), &entry(7, 2, "c")).await, Err(Refusal::OtherWriter));
    assert_eq!(world.add(&writer(1), &entry(7, 2, "c")).await, Ok(()));
}

#[tokio::test]
async fn adds_let_in_before_a_fence_can_be_read_once_it_is_answered() {
    let world = World::new().await;
    let mut started = Vec::new();
    for id in 0..50 {
        started.push(world.start_add(&writer(1), &entry(7, id, "payload")).await);
    }
    world.store.fence(ledger(7)).await.unwrap();
    for id in 0..50 {
        assert_eq!(world.read(7, id).await, Ok(entry(7, id, "payload")));
    }
}

#[tokio::test]
async fn an_entry_that_is_there_is_not_written_again_and_not_overwritten() {
    let world = World::new().await;
    world.add(&writer(1), &entry(7, 0, "a")).await.unwrap();
    let syncs = world.disk.data_syncs();
    assert_eq!(world.add(&writer(1), &entry(7, 0, "a")).await, Ok(()));
    assert_eq!(world.add(&recovery(), &entry(7, 0, "other")).await, Err(Refusal::Conflict));
    assert_eq!(world.disk.data_syncs(), syncs);
    assert_eq!(world.read(7, 0).await, Ok(entry(7, 0, "a")));
}

#[tokio::test]
async fn a_run_has_one_outcome_or_one_for_each_entry_if_some_are_there() {
    let world = World::new().await;
    let run = |ids: Range<u64>| ids.map(|id| entry(7, id, "payload")).collect::<Vec<_>>();
    let all_of = |happened: UnboundedReceiver<Outcome>| async move {
        let mut happened = happened;
        let mut outcomes = Vec::new();
        while let Some(outcome) = happened.recv().await {
            outcomes.push(outcome.result.unwrap());
        }
        outcomes
    };
    let written = |first, last, sequences| {
        let entries = (EntryId::new(first), EntryId::new(last));
        Written { entries, sequences }
    };
    let outcomes = all_of(world.start_adds(&writer(1), run(3..6)).await).await;
    assert_eq!(outcomes, [written(3, 5, 0..3)]);
    let outcomes = all_of(world.start_adds(&recovery(), run(4..8)).await).await;
    let each = (4..8).zip(0..).map(|(entry, before)| written(entry, entry, before..before + 1));
    assert_eq!(outcomes, each.collect::<Vec<_>>());
    let world = world.crash().await;
    for id in 3..8 {
        assert_eq!(world.read(7, id).await, Ok(entry(7, id, "payload")));
    }
    // Below what is there, and around it.
    let outcomes = all_of(world.start_adds(&recovery(), run(0..3)).await).await;
    assert_eq!(outcomes, [written(0, 2, 0..3)]);
}

#[tokio::test]
async fn a_failed_sync_ends_writes_and_makes_no_answer_certain() {
    let world = World::new().await;
    world.add(&writer(1), &entry(7, 0, "a")).await.unwrap();
    world.store.fence(ledger(6)).await.unwrap();
    assert!(!*world.store.read_only().borrow());
    world.disk.fail_next_sync();
    let refused = world.add(&writer(1), &entry(7, 1, "b")).await;
    assert!(matches!(refused, Err(Refusal::ReadOnly(_))), "{refused:?}");
    // The disk would take it now, but what is on it cannot be known.
    let refused = world.add(&recovery(), &entry(7, 2, "c")).await;
    assert!(matches!(refused, Err(Refusal::ReadOnly(_))), "{refused:?}");
    let refused = world.store.fence(ledger(7)).await;
    assert!(matches!(refused, Err(Refusal::ReadOnly(_))), "{refused:?}");
    assert!(matches!(world.read(7, 1).await, Err(Refusal::Unknown(_))));
    assert_eq!(world.read(7, 0).await, Ok(entry(7, 0, "a")));
    // What is on disk already needs no write.
    assert_eq!(world.store.fence(ledger(6)).await, Ok(None));
    assert!(*world.store.read_only().borrow());
}

#[tokio::test]
async fn a_damaged_log_calls_nothing_absent_and_lets_no_writer_in() {
    let world = World::new().await;
    for id in 0..3 {
        world.add(&writer(1), &entry(7, id, "payload")).await.unwrap();
    }
    // It has the entries in memory no more.
    let world = world.crash().await;
    let places = world.store.locate(ledger(7), vec![EntryId::new(1)]).await.unwrap();
    let place = places.into_iter().next().unwrap().unwrap();
    world.disk.flip_bit(&place.segment.to_string(), place.offset as usize + 40, 3);
    let corrupt = world.read(7, 1).await;
    assert!(matches!(corrupt, Err(Refusal::Corrupt(_))), "{corrupt:?}");
    let again = world.add(&writer(1), &entry(7, 1, "payload")).await;
    assert!(matches!(again, Err(Refusal::Corrupt(_))), "{again:?}");

    let world = world.crash().await;
    assert_eq!(world.replayed.damages.len(), 1);
    assert!(matches!(world.read(7, 1).await, Err(Refusal::Unknown(_))));
    assert!(matches!(world.read(7, 9).await, Err(Refusal::Unknown(_))));
    assert!(matches!(world.read(8, 0).await, Err(Refusal::Unknown(_))));
    assert_eq!(world.read(7, 2).await, Ok(entry(7, 2, "payload")));
    let refused = world.add(&writer(1), &entry(7, 3, "d")).await;
    assert!(matches!(refused, Err(Refusal::ReadOnly(_))), "{refused:?}");
    assert_eq!(world.add(&recovery(), &entry(7, 1, "payload")).await, Ok(()));
    assert_eq!(world.read(7, 1).await, Ok(entry(7, 1, "payload")));
}

#[tokio::test]
async fn more_than_there_is_room_for_goes_through_and_is_there_at_the_next_start() {
    let world = World::new().await;
    let many = 3 * RECENT_ENTRIES_MAX as u64;
    let mut started = Vec::new();
    for first in (0..many).step_by(10) {
        let entries = (first..first + 10).map(|id| entry(7, id, "payload")).collect();
        started.push(world.start_adds(&writer(1), entries).await);
    }
    for mut happened in started {
        assert!(happened.recv().await.unwrap().result.is_ok());
    }
    let disk = world.break_off().await;
    disk.crash(Unsynced::Lost);
    Index::remove(&*disk).unwrap();
    let world = World::open(disk).await;
    for id in 0..many {
        assert_eq!(world.read(7, id).await, Ok(entry(7, id, "payload")));
    }
    assert_eq!(world.add(&writer(1), &entry(7, many, "more")).await, Ok(()));
}

#[tokio::test]
async fn what_is_confirmed_after_a_ledger_left_the_memory_is_told() {
    let world = World::new().await;
    let mut tip = world.store.follow(ledger(7)).await.unwrap();
    world.add(&writer(1), &entry(7, 0, "a")).await.unwrap();
    for id in 0..10 * RECENT_ENTRIES_MAX as u64 {
        world.add(&writer(1), &entry(8, id, "b")).await.unwrap();
    }
    world.tell(7, writer(1), 0).await;
    let confirmed = Some(EntryId::new(0));
    let told = |tip: &Tip| tip.confirmed == confirmed && tip.durable == confirmed;
    tokio::time::timeout(std::time::Duration::from_secs(10), tip.wait_for(told))
        .await
        .expect("it is told")
        .unwrap();
}

#[tokio::test]
async fn a_tip_tells_what_is_confirmed_and_what_is_durable() {
    let world = World::new().await;
    let mut tip = world.store.follow(ledger(7)).await.unwrap();
    assert!(*tip.borrow_and_update() == Tip::default());
    for id in 0..3 {
        world.add(&writer(1), &entry(7, id, "payload")).await.unwrap();
        // Of another ledger, and of no concern here.
        world.add(&writer(1), &entry(8, id + 9, "payload")).await.unwrap();
    }
    let now = *tip.borrow_and_update();
    assert_eq!((now.confirmed, now.durable), (Some(EntryId::new(1)), Some(EntryId::new(2))));

    world.tell(7, writer(2), 9).await;
    world.tell(7, writer(1), 2).await;
    tip.changed().await.unwrap();
    let now = *tip.borrow_and_update();
    assert_eq!((now.confirmed, now.durable), (Some(EntryId::new(2)), Some(EntryId::new(2))));
    assert!(*world.store.follow(ledger(7)).await.unwrap().borrow() == now);

    // It is of no use to say so twice.
    world.tell(7, writer(1), 2).await;
    world.store.state(ledger(7)).await.unwrap();
    assert!(!tip.has_changed().unwrap());
    drop(world);
    assert!(tip.changed().await.is_err());
}

#[tokio::test]
async fn an_index_that_is_damaged_is_made_anew_while_the_store_runs() {
    let world = World::new().await;
    for id in 0..400 {
        world.add(&writer(1), &entry(7, id, "payload")).await.unwrap();
        world.add(&writer(1), &entry(id + 1000, 0, "another")).await.unwrap();
    }
    world.store.fence(ledger(8)).await.unwrap();
    // All of it is in the index alone then.
    world.store.checkpoint().await.unwrap();
    world.store.checkpoint().await.unwrap();
    let index = world.disk.open("index.redb").unwrap();
    let pages = usize::try_from(index.len_bytes().unwrap()).unwrap() / BLOCK_BYTES;
    (0..pages).for_each(|page| world.disk.flip_bit("index.redb", page * BLOCK_BYTES + 999, 3));

    let mut now = world.store.index.clone();
    now.mark_unchanged();
    let told = (0..400).step_by(7).map(|id| world.read(7, id));
    for read in futures::future::join_all(told).await {
        assert!(matches!(read, Ok(_) | Err(Refusal::Unknown(_))), "{read:?}");
    }
    now.changed().await.unwrap();
    now.wait_for(Option::is_some).await.unwrap();
    for id in 0..400 {
        assert_eq!(world.read(7, id).await, Ok(entry(7, id, "payload")));
        assert_eq!(world.read(id + 1000, 0).await, Ok(entry(id + 1000, 0, "another")));
    }
    assert_eq!(world.read(7, 400).await, Err(Refusal::Absent));
    assert_eq!(world.add(&writer(1), &entry(8, 0, "late")).await, Err(Refusal::Fenced));
    assert_eq!(world.add(&writer(1), &entry(7, 400, "more")).await, Ok(()));
    assert!(!*world.store.read_only().borrow());
}
