//! What is read for a connection waits for room.

use inkfast_protocol::gate::Adder;
use inkfast_protocol::{Entry, EntryHeader, LedgerId, PAYLOAD_BYTES_MAX, Tenure};
use tokio::sync::mpsc;
use uuid::Uuid;

use super::*;
use crate::directories::Directory;
use crate::disk::{Disk, MemoryDisk};
use crate::executor::Executor;
use crate::log;
use crate::store::{Add, Batch, OUTCOMES_MAX};
use crate::stores::Opened;

const LEDGER: u64 = 7;

/// Stores with so many of the largest entries.
async fn stores(entries: u64) -> Stores {
    let (disk, log): (Arc<dyn Disk>, _) = (Arc::new(MemoryDisk::new()), Uuid::from_u128(9));
    log::create(&*disk, log).unwrap();
    let sound = vec![(Directory { path: "d".into(), disk }, log)];
    let Opened { stores, .. } =
        Stores::open(sound, Vec::new(), None, Executor::Inline).await.unwrap();
    let ledger = LedgerId::new(LEDGER).unwrap();
    let home = stores.home(ledger).await.unwrap();
    let (outcomes, mut happened) = mpsc::channel(OUTCOMES_MAX);
    for entry in (0..entries).map(EntryId::new) {
        let header =
            EntryHeader { ledger, entry, last_add_confirmed: None, length: 0, written_at_ms: 0 };
        let entry = Entry::encode(header, &vec![b'x'; PAYLOAD_BYTES_MAX]);
        let add = Some(Add { run: entry.into(), sequence: 0, tenure: Tenure(0) });
        let batch = Batch { add, confirmed: None };
        home.store().add(ledger, &Arc::new(Adder::Recovery), batch, &outcomes).await.unwrap();
        happened.recv().await.unwrap().result.unwrap();
    }
    stores
}

#[tokio::test]
async fn what_is_read_and_not_sent_is_bounded_for_each_connection() {
    let bookie = BookieService::new(stores(20).await);
    let [slow, other] = [bookie.for_connection(), bookie.for_connection()];
    let ids = (0..20).map(EntryId::new).collect();
    let ledger = LedgerId::new(LEDGER).unwrap();
    let home = bookie.stores.find(ledger).await.unwrap();
    let store = home.store();
    let places = store.locate(ledger, ids).await.unwrap();
    let (mut unsent, mut bytes) = (Vec::new(), 0);
    let mut rest = places.iter().map(|place| vec![place.clone()]);
    let mut waiting = loop {
        let mut read = Box::pin(slow.read_run(store, rest.next().expect("not all is read")));
        // All of it happens on this task, so that it waits for nothing but room.
        match timeout(Duration::ZERO, &mut read).await {
            Ok((entries, room)) => {
                bytes += entries.into_iter().map(|entry| entry.unwrap().len()).sum::<usize>();
                unsent.push(room);
            }
            Err(_) => break read,
        }
    };
    assert!(bytes <= UNSENT_BYTES_MAX && bytes > UNSENT_BYTES_MAX / 2, "{bytes}");
    let read = other.read_run(store, rest.next().unwrap());
    assert!(timeout(Duration::ZERO, read).await.is_ok(), "another connection has room of its own");
    unsent.pop();
    assert!(timeout(Duration::ZERO, &mut waiting).await.is_ok());
}
