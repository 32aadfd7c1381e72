//! Bookies that are killed (SIGKILL) and started again all the time, while ledgers are written, read,
//! abandoned and deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use inkfast::{Client, Error, LedgerId, LedgerWriter};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{append, check, create, library, payload};
use crate::cluster::Cluster;
use crate::load::{PATIENCE, is_long, until};
use crate::metastores::library::Library;
use crate::random::{Random, seed};

const BOOKIES: usize = 3;
/// The ack quorum of each writer's ledgers.
const WRITERS: [usize; 4] = [2, 3, 2, 3];
const READERS: u64 = 2;
/// How many ledgers of a writer stay.
const KEPT_MAX: usize = 12;
/// How many entries are under way at once.
const TOGETHER: u64 = 40;
const BATCHES_MAX: u64 = 12;
/// How many ledgers are checked at once: who asks a dead bookie first waits for a second.
const CHECKS_MAX: usize = 32;
/// The pause before what a dead bookie has refused is tried again.
const PAUSE: Duration = Duration::from_millis(50);
/// Bookies are ready in a moment; this is for a machine that has other things to do.
const READY_MAX: Duration = Duration::from_secs(10);

/// How many bytes an entry has.
fn bytes(entry: u64) -> usize {
    let random = Random::new(entry).next();
    if random.is_multiple_of(50) { 100_000 } else { 16 + usize::try_from(random % 3000).unwrap() }
}

#[test]
fn bookies_that_are_killed_all_the_time_lose_nothing() {
    let time = Duration::from_secs(if is_long() { 3600 } else { 60 });
    let seed = seed();
    let mut cluster = Cluster::start(BOOKIES);
    let (library, client) = library(&cluster);
    let load = Load::start(&library, &client, seed);
    let (mut random, since) = (Random::new(seed), Instant::now());
    let (mut kills, mut slowest) = (0, Duration::ZERO);
    while since.elapsed() < time {
        load.wait_for_progress();
        thread::sleep(Duration::from_millis(random.below(400)));
        // Sometimes all of them, as if the power had failed.
        let all = 0..BOOKIES;
        let one = usize::try_from(random.below(BOOKIES as u64)).unwrap();
        let killed = if random.below(5) == 0 { all } else { one..one + 1 };
        cluster.bookies[killed.clone()].iter_mut().for_each(|bookie| bookie.kill());
        kills += killed.len();
        for bookie in &mut cluster.bookies[killed] {
            let started = Instant::now();
            bookie.restart();
            slowest = slowest.max(started.elapsed());
        }
        assert!(slowest < READY_MAX, "ready only after {slowest:?}");
    }
    let (kept, deleted) = load.stop(&library);
    eprintln!("{kills} kills; the slowest start took {slowest:?}");

    library.run(assert_deleted(&library.client(), &deleted));
    for alone in 0..BOOKIES {
        let [next, last] = [1, 2].map(|more| (alone + more) % BOOKIES);
        cluster.bookies[next].kill();
        library.run(assert_kept(&library.client(), &kept, &[2, 3]));
        cluster.bookies[last].kill();
        library.run(assert_kept(&library.client(), &kept, &[3]));
        cluster.restart_killed();
    }
    library.run(assert_kept(&library.client(), &kept, &[2, 3]));
}

/// A ledger that is closed.
#[derive(Clone, Copy)]
struct Kept {
    entries: u64,
    ack_quorum: usize,
}

/// Writers and readers.
struct Load {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    confirmed: AtomicU64,
    read: AtomicU64,
    reads_again: AtomicU64,
    kept: Mutex<BTreeMap<LedgerId, Kept>>,
    deleted: Mutex<BTreeSet<LedgerId>>,
}

impl Load {
    fn start(library: &Library, client: &Client, seed: u64) -> Self {
        let shared = Arc::new(Shared::default());
        let writers = WRITERS.iter().zip(1..).map(|(&ack_quorum, n)| {
            let (client, shared, random) = (client.clone(), shared.clone(), Random::new(seed ^ n));
            library.spawn(write(client, shared, ack_quorum, random))
        });
        let readers = (0..READERS).map(|n| {
            let random = Random::new(!seed ^ n);
            library.spawn(read(client.clone(), shared.clone(), random))
        });
        let tasks = writers.chain(readers).collect();
        Self { shared, tasks }
    }

    /// Waits until more was confirmed.
    fn wait_for_progress(&self) {
        let confirmed = || self.shared.confirmed.load(Ordering::Relaxed);
        let before = confirmed();
        until("confirmed", || {
            assert!(
                !self.tasks.iter().any(JoinHandle::is_finished),
                "a writer or reader has failed"
            );
            confirmed() > before
        });
    }

    /// Gives the ledgers that are left, and those that were deleted.
    fn stop(self, library: &Library) -> (BTreeMap<LedgerId, Kept>, BTreeSet<LedgerId>) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for task in self.tasks {
            library.run(task).unwrap();
        }
        let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let (kept, deleted) = (&self.shared.kept, &self.shared.deleted);
        let (kept, deleted) = (kept.lock().unwrap().clone(), deleted.lock().unwrap().clone());
        let (read, again) = (number(&self.shared.read), number(&self.shared.reads_again));
        let confirmed = number(&self.shared.confirmed);
        eprintln!(
            "{confirmed} entries in {} ledgers, of which {} are left",
            kept.len() + deleted.len(),
            kept.len()
        );
        eprintln!("{read} ledgers read, {again} again because bookies were away");
        assert!(!deleted.is_empty() && read > 0, "too little was done");
        (kept, deleted)
    }
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    async fn delete(&self, client: &Client, ledger: LedgerId) {
        // In this order, so that a reader who is refused finds it here.
        self.deleted.lock().unwrap().insert(ledger);
        self.kept.lock().unwrap().remove(&ledger);
        client.delete_ledger(ledger).await.unwrap();
    }
}

async fn write(client: Client, shared: Arc<Shared>, ack_quorum: usize, mut random: Random) {
    let mut own = Vec::new();
    while !shared.is_stopped() {
        let writer = again(|| create(&client, BOOKIES, ack_quorum)).await;
        let ledger = writer.id();
        let mut entries = 0;
        for _ in 0..random.below(BATCHES_MAX) {
            append(&writer, entries..entries + TOGETHER, bytes).await.unwrap();
            entries += TOGETHER;
            shared.confirmed.fetch_add(TOGETHER, Ordering::Relaxed);
        }
        match random.below(4) {
            0 => {
                shared.delete(&client, ledger).await;
                continue;
            }
            1 => entries = abandon(&client, writer, entries).await,
            _ => {
                assert_eq!(writer.close().await.unwrap().map_or(0, |last| last.get() + 1), entries)
            }
        }
        shared.kept.lock().unwrap().insert(ledger, Kept { entries, ack_quorum });
        own.push(ledger);
        if own.len() > KEPT_MAX {
            let one = usize::try_from(random.below(own.len() as u64)).unwrap();
            shared.delete(&client, own.swap_remove(one)).await;
        }
    }
}

/// Leaves a ledger to its recovery, with entries under way; gives how many it has then.
async fn abandon(client: &Client, writer: LedgerWriter, confirmed: u64) -> u64 {
    let ledger = writer.id();
    for entry in confirmed..confirmed + TOGETHER {
        drop(writer.append(payload(ledger, entry, bytes(entry))).await.unwrap());
    }
    drop(writer);
    let reader = again(|| client.recover_ledger(ledger)).await;
    let entries = reader.last_add_confirmed().await.unwrap().map_or(0, |last| last.get() + 1);
    let possible = confirmed..=confirmed + TOGETHER;
    assert!(possible.contains(&entries), "ledger {ledger}: {entries} entries, not {possible:?}");
    entries
}

async fn read(client: Client, shared: Arc<Shared>, mut random: Random) {
    while !shared.is_stopped() {
        let kept: Vec<_> =
            shared.kept.lock().unwrap().iter().map(|(id, kept)| (*id, *kept)).collect();
        if kept.is_empty() {
            sleep(PAUSE).await;
            continue;
        }
        let (ledger, kept) = random.pick(&kept);
        let since = Instant::now();
        loop {
            match check(&client, ledger, bytes).await {
                Ok(entries) => {
                    assert_eq!(entries, kept.entries, "ledger {ledger}");
                    shared.read.fetch_add(1, Ordering::Relaxed);
                    break;
                }
                Err(_) if shared.deleted.lock().unwrap().contains(&ledger) => break,
                Err(error) => {
                    assert!(since.elapsed() < PATIENCE, "{error}");
                    shared.reads_again.fetch_add(1, Ordering::Relaxed);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Tries until it succeeds: bookies may be away.
async fn again<T, F: Future<Output = Result<T, Error>>>(mut attempt: impl FnMut() -> F) -> T {
    let since = Instant::now();
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => assert!(since.elapsed() < PATIENCE, "{error}"),
        }
        sleep(PAUSE).await;
    }
}

/// Panics unless the ledgers with these ack quorums are read as they were closed.
async fn assert_kept(client: &Client, kept: &BTreeMap<LedgerId, Kept>, ack_quorums: &[usize]) {
    let ledgers = kept.iter().filter(|(_, kept)| ack_quorums.contains(&kept.ack_quorum));
    let checks = stream::iter(ledgers).map(|(&ledger, kept)| async move {
        assert_eq!(check(client, ledger, bytes).await.unwrap(), kept.entries, "ledger {ledger}");
    });
    checks.buffer_unordered(CHECKS_MAX).collect::<()>().await;
}

async fn assert_deleted(client: &Client, ledgers: &BTreeSet<LedgerId>) {
    for &ledger in ledgers {
        let refused = client.open_ledger(ledger).await.err();
        assert!(matches!(refused, Some(Error::LedgerDeleted(_))), "{ledger}: {refused:?}");
    }
}
