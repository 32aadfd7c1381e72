//! What was deleted gives its room back, whatever stays next to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::{
    LARGE, SEGMENT_BYTES, check_large, delete, disk_bytes, library, log_bytes, log_names,
    wait_collected, write_mixed,
};
use crate::cluster::Cluster;
use crate::load::{rounds, until};

#[test]
fn what_is_written_and_deleted_takes_no_more_room_each_time() {
    const LEDGERS: usize = 4;
    const ENTRIES: u64 = (80 << 20) / LARGE as u64;
    const TIMES: u64 = 3;
    const BYTES: u64 = TIMES * LEDGERS as u64 * ENTRIES * LARGE as u64;
    let cluster = Cluster::start(1);
    let (library, client) = library(&cluster);
    let dir = cluster.bookie_dir(0);
    for _ in 0..2 * rounds(20) {
        for _ in 0..TIMES {
            let ledgers = library.run(write_mixed(&client, LEDGERS, ENTRIES));
            library.run(delete(&client, &ledgers));
        }
        let since = Instant::now();
        // The segment that grows, and one that has just ended.
        wait_collected(&dir, 2 * SEGMENT_BYTES);
        let taken = disk_bytes(&dir);
        eprintln!("{} MiB taken, collected after {:?}", taken >> 20, since.elapsed());
        assert!(taken <= BYTES + 2 * SEGMENT_BYTES, "{taken} bytes for {BYTES}");
    }
}

#[test]
fn what_stays_is_whole_while_and_after_it_is_moved() {
    // Of three ledgers that are mixed in the log one stays.
    const SETS: usize = 2;
    const MOVED_BYTES: u64 = 16 << 20;
    const ENTRIES: u64 = (100 << 20) / LARGE as u64;
    let mut cluster = Cluster::start(1);
    let (library, client) = library(&cluster);
    let dir = cluster.bookie_dir(0);
    let (mut kept, mut deleted) = (Vec::new(), Vec::new());
    for _ in 0..SETS {
        let mut ledgers = library.run(write_mixed(&client, 3, ENTRIES));
        kept.push(ledgers.remove(1));
        deleted.extend(ledgers);
    }
    library.run(delete(&client, &deleted));

    // In the midst of it.
    let before = log_bytes(&dir);
    let ended = log_names(&dir);
    let ended = &ended[..ended.len() - 1];
    assert!(ended.len() > 1, "{ended:?}");
    until("being moved", || log_bytes(&dir) >= before + MOVED_BYTES);
    cluster.bookies[0].kill();
    cluster.bookies[0].restart();
    let stopped = Arc::new(AtomicBool::new(false));
    let reading = {
        let (client, kept, stopped) = (library.client(), kept.clone(), Arc::clone(&stopped));
        library.spawn(async move {
            let mut times = 0;
            while !stopped.load(Ordering::Relaxed) {
                check_large(&client, &kept, ENTRIES).await;
                times += 1;
            }
            times
        })
    };
    until("collected", || log_names(&dir).iter().all(|name| !ended.contains(name)));
    stopped.store(true, Ordering::Relaxed);
    let times = library.run(reading).unwrap();
    eprintln!("{} MiB, then {} MiB; read {times} times", before >> 20, log_bytes(&dir) >> 20);

    cluster.bookies[0].kill();
    cluster.bookies[0].restart();
    // Another one: a read fails once if its only bookie was lost meanwhile.
    let client = library.client();
    library.run(check_large(&client, &kept, ENTRIES));
    library.run(delete(&client, &kept));
    wait_collected(&dir, SEGMENT_BYTES);
}
