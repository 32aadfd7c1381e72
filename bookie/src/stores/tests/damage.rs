//! Damage that is found while the stores are open.

use super::*;
use crate::disk::BLOCK_BYTES;

#[tokio::test(start_paused = true)]
async fn damage_that_is_found_while_running_is_known_to_all() {
    let world = World::new(2).await;
    world.one_on_each().await;
    let mut on_first = Vec::new();
    for id in 100..200 {
        if world.disk_of(id).await == Some(0) {
            on_first.push(id);
        }
    }
    // All of it is in the index alone then.
    let store = world.stores.all().next().unwrap();
    store.checkpoint().await.unwrap();
    store.checkpoint().await.unwrap();
    let bytes = world.disks[0].open("index.redb").unwrap().len_bytes().unwrap();
    for page in 0..usize::try_from(bytes).unwrap() / BLOCK_BYTES {
        world.disks[0].flip_bit("index.redb", page * BLOCK_BYTES + 999, 3);
    }
    // The records of the ledger that came first: its writer and its entry.
    for offset in [30, 90] {
        world.disks[0].flip_bit("log-0000000000000001", BLOCK_BYTES + offset, 1);
    }
    let lost = on_first[0];
    let mut read_only = world.stores.read_only();
    for id in &on_first {
        // The first that needs a page which is not in memory finds the damage.
        if world.read(*id, 0).await.is_err() {
            break;
        }
    }
    read_only.wait_for(|read_only| *read_only).await.unwrap();
    let made = async {
        while store.checkpoint().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), made).await.expect("the index is made anew");

    assert_read_only(world.add(lost, 1).await);
    assert_unknown(world.read(lost, 0).await);
    assert_unknown(world.read(999, 0).await);
    for id in &on_first[1..] {
        assert_eq!(world.read(*id, 0).await, Ok(()), "{id}");
    }
}
