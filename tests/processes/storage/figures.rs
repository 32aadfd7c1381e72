//! How long a start takes, what it reads, and how much memory a bookie needs.

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use inkfast::{Error, LedgerWriter};

use super::{LARGE, append, check_large, create, figure, library, write_mixed};
use crate::cluster::Cluster;
use crate::load::is_long;
use crate::process::Signal;

/// What a start may read: what the log has since the last checkpoint, that is 64 MiB and what came
/// while that was made, and parts of the index.
const READ_MAX: u64 = 200 << 20;
/// For a machine that has other things to do.
const READY_MAX: Duration = Duration::from_secs(10);
const MEMORY_MAX_KIB: u64 = 400 << 10;

/// Kills and restarts a bookie. Gives how many bytes it has read until it was ready.
fn restart(cluster: &mut Cluster, bookie: usize) -> u64 {
    let bookie = &mut cluster.bookies[bookie];
    bookie.kill();
    let started = Instant::now();
    bookie.restart();
    let (took, read) = (started.elapsed(), figure(bookie.running().id(), "io", "rchar"));
    eprintln!("ready after {took:?}, {} KiB read", read >> 10);
    assert!(took < READY_MAX, "ready only after {took:?}");
    read
}

#[test]
fn a_start_reads_what_came_since_the_last_checkpoint_only() {
    const ENTRIES: u64 = (256 << 20) / LARGE as u64;
    let mut cluster = Cluster::start(1);
    let (library, client) = library(&cluster);
    let ledgers = library.run(write_mixed(&client, if is_long() { 40 } else { 4 }, ENTRIES));
    let read = restart(&mut cluster, 0);
    assert!(read < READ_MAX, "{read} bytes were read");
    library.run(check_large(&library.client(), &ledgers[..1], ENTRIES));
}

#[test]
fn a_bookie_needs_little_memory_for_many_ledgers_and_a_reader_that_does_not_read() {
    const ROUNDS: u64 = 10;
    let ledgers = if is_long() { 10_000 } else { 1000 };
    let mut cluster = Cluster::start(3);
    let (library, client) = library(&cluster);

    // It has its input, and does not take what it asked for.
    let mut writer = cluster.client.writer(&["--chunk-bytes", "65536"]);
    let input = vec![b'x'; 64 << 20];
    writer.send(&input[..65536]);
    writer.wait_confirmed(0);
    let reading = cluster.client.start(&["ledger", "tail", &writer.ledger]);
    reading.signal(Signal::Stop);
    writer.send(&input[65536..]);
    writer.wait_confirmed(1023);

    let creations = stream::iter(0..ledgers).map(|_| create(&client, 3, 2));
    let writers: Result<Vec<LedgerWriter>, Error> =
        library.run(creations.buffer_unordered(64).try_collect());
    let writers = writers.unwrap();
    for round in 0..ROUNDS {
        let appends = writers.iter().map(|writer| append(writer, round..round + 1, |_| 1000));
        library.run(try_join_all(appends)).unwrap();
    }
    for bookie in &mut cluster.bookies {
        let most = figure(bookie.running().id(), "status", "VmHWM");
        eprintln!("{ledgers} ledgers: at most {} MiB of memory", most >> 10);
        assert!(most < MEMORY_MAX_KIB, "{most} KiB of memory");
    }
}
