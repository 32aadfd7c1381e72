//! How large and how fast. With INKFAST_LONG the numbers are those of a bookie that is used.

#![expect(clippy::print_stdout, reason = "what was measured is to be seen")]

use std::time::{Duration, Instant};

use super::*;
use crate::disk::OsDisk;

pub(super) fn long() -> bool {
    std::env::var_os("INKFAST_LONG").is_some()
}

/// The most memory that the process ever had, as far as the system tells.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn per_second(count: usize, took: Duration) -> u64 {
    (count as u128 * 1000 / took.as_millis().max(1)).try_into().unwrap()
}

#[test]
fn an_entry_takes_few_bytes() {
    let (ledgers, rounds) = if long() { (10_000, 20) } else { (200, 5) };
    let per_round = 5;
    let dir = tempfile::tempdir().unwrap();
    let disk = OsDisk::open(dir.path()).unwrap();
    let index = Index::open(&disk, LOG, 16 << 20).unwrap();
    let mut offset = 0_u32;
    let mut slowest = Duration::ZERO;
    let before_kib = peak_memory_kib();
    for round in 0..rounds {
        let mut checkpoint = checkpoint(round);
        // They come in turn, as they do from many writers.
        for number in 0..per_round {
            for id in 0..ledgers {
                let segment = SegmentNumber(1 + round);
                let place = Place { segment, offset, payload_bytes: 1080 };
                offset = (offset + 1104) % (256 << 20);
                let entry = EntryId::new(u64::from(round) * per_round + number);
                checkpoint.entries.entry(ledger(id)).or_default().push((entry, place));
            }
        }
        let started = Instant::now();
        index.commit(&checkpoint).unwrap();
        slowest = slowest.max(started.elapsed());
    }
    // As a crash would leave it, but that the disk is not lost.
    std::mem::forget(index);
    let started = Instant::now();
    let index = Index::open(&disk, LOG, 16 << 20).unwrap();
    println!("opened after a crash in {:?}", started.elapsed());
    assert_eq!(index.known().unwrap().map(|known| known.mark), Some(mark(rounds - 1)));
    drop(index);
    let entries = u64::from(rounds) * per_round * ledgers;
    let file_bytes = disk.open(FILE).unwrap().len_bytes().unwrap();
    let bytes = file_bytes / entries;
    println!("{entries} entries: {bytes} bytes each, {slowest:?} for the slowest checkpoint");
    let memory_kib = peak_memory_kib() - before_kib;
    println!("at most {memory_kib} KiB of memory more, if no other test runs");
    assert!(!long() || bytes <= 32, "{bytes}");
}

#[test]
fn checkpoints_and_finds_take_their_time() {
    if !long() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let disk = OsDisk::open(dir.path()).unwrap();
    let index = Index::open(&disk, LOG, 16 << 20).unwrap();
    let commit = |batch, entries: BTreeMap<_, _>| {
        let started = Instant::now();
        index.commit(&Checkpoint { entries, ..checkpoint(batch) }).unwrap();
        started.elapsed()
    };
    for batch in 0..4 {
        let from = u64::from(batch) * 300_000;
        let one = [(ledger(1), places(from..from + 300_000, batch, 40))].into();
        println!("300,000 entries of one ledger: {:?}", commit(batch, one));
    }
    let file_bytes = || disk.open(FILE).unwrap().len_bytes().unwrap();
    println!("{} bytes for 1,000 entries of one ledger", file_bytes() / 1200);
    for batch in 4..8 {
        let from = u64::from(batch) * 30;
        let many = (100..10_100).map(|id| (ledger(id), places(from..from + 30, batch, 40)));
        println!("300,000 entries of 10,000 ledgers: {:?}", commit(batch, many.collect()));
    }
    println!("a checkpoint of nothing: {:?}", commit(9, BTreeMap::new()));
    let count = 20_000;
    let mut random = fastrand::Rng::with_seed(7);
    let started = Instant::now();
    for _ in 0..count {
        let entry = EntryId::new(random.u64(..1_200_000));
        assert!(index.find(ledger(1), &[entry]).unwrap()[0].is_some());
    }
    println!("random entries: {} a second", per_second(count, started.elapsed()));
    let started = Instant::now();
    let all: Vec<_> = (0..1_200_000).map(EntryId::new).collect();
    for asked in all.chunks(1000) {
        assert!(index.find(ledger(1), asked).unwrap().iter().all(Option::is_some));
    }
    println!("entries in order: {} a second", per_second(all.len(), started.elapsed()));
}
