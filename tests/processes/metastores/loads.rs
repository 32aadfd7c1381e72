//! What keeps a metastore busy, and knows afterwards what it was promised: ledgers that are created,
//! and counters.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use inkfast::{Client, CreateOptions, LedgerId};
use inkfast_metastore::{Error, Metastore, Transaction, Version};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::load::until;
use crate::metastores::library::Library;

/// The pause between two requests of one loop, so that the machine has time for the cluster.
const PAUSE: Duration = Duration::from_millis(10);

/// How often a read is tried that is needed to know an outcome.
const READS_MAX: usize = 20;

/// Loops that create ledgers.
pub(crate) struct Creations<'a> {
    library: &'a Library,
    loops: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stopped: AtomicBool,
    created: Mutex<Vec<Creation>>,
    failures: Mutex<Vec<String>>,
}

#[derive(Clone, Copy)]
struct Creation {
    begun: Instant,
    done: Instant,
    ledger: LedgerId,
}

impl<'a> Creations<'a> {
    pub(crate) fn start(library: &'a Library, loops: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let creations = (0..loops).map(|_| create(library.client(), Arc::clone(&shared)));
        let loops = creations.map(|creations| library.spawn(creations)).collect();
        Self { library, loops, shared }
    }

    /// Waits for a creation that was begun after this moment, and gives when the first was done.
    pub(crate) fn first_begun_after(&self, moment: Instant) -> Instant {
        let mut first = None;
        until("created", || {
            let created = self.shared.created.lock().unwrap();
            let later = created.iter().filter(|creation| creation.begun >= moment);
            first = later.map(|creation| creation.done).min();
            first.is_some()
        });
        first.expect("it was waited for")
    }

    /// Waits until so many more ledgers have been created.
    pub(crate) fn go_on(&self, ledgers: usize) {
        let count = || self.shared.created.lock().unwrap().len();
        let goal = count() + ledgers;
        until("created", || count() >= goal);
    }

    /// Gives what has been created so far.
    pub(crate) fn so_far(&self) -> Vec<LedgerId> {
        self.shared.created.lock().unwrap().iter().map(|creation| creation.ledger).collect()
    }

    /// Ends the loops. Panics if a creation has failed or one ledger was created twice; gives the
    /// ledgers.
    pub(crate) fn stop(self) -> BTreeSet<LedgerId> {
        self.shared.stopped.store(true, Ordering::Relaxed);
        for task in self.loops {
            self.library.run(task).unwrap();
        }
        let failures = self.shared.failures.lock().unwrap();
        assert!(failures.is_empty(), "creations failed: {failures:?}");
        let created = self.shared.created.lock().unwrap();
        let ledgers: BTreeSet<_> = created.iter().map(|creation| creation.ledger).collect();
        assert_eq!(ledgers.len(), created.len(), "an id was used twice");
        ledgers
    }
}

async fn create(client: Client, shared: Arc<Shared>) {
    while !shared.stopped.load(Ordering::Relaxed) {
        let begun = Instant::now();
        match client.create_ledger(CreateOptions::default()).await {
            Ok(writer) => {
                let creation = Creation { begun, done: Instant::now(), ledger: writer.id() };
                shared.created.lock().unwrap().push(creation);
            }
            Err(error) => shared.failures.lock().unwrap().push(error.to_string()),
        }
        sleep(PAUSE).await;
    }
}

/// Panics unless the cluster knows all of these ledgers.
pub(crate) fn assert_known(library: &Library, ledgers: &BTreeSet<LedgerId>) {
    let known = library.ledgers().into_iter().collect();
    let lost: Vec<_> = ledgers.difference(&known).collect();
    assert!(lost.is_empty(), "{} of {} ledgers are lost: {lost:?}", lost.len(), ledgers.len());
}

/// Loops that count, each with a counter of its own, one that all share, and a sequence.
///
/// Nobody but its loop writes a loop's own counter, so that a conflict there is the loop's own
/// write that it was not told of.
pub(crate) struct Counters<'a> {
    library: &'a Library,
    loops: Vec<JoinHandle<Count>>,
    stopped: Arc<AtomicBool>,
}

/// What became of a loop's requests.
#[derive(Default)]
struct Count {
    own: u64,
    shared: u64,
    /// Changes of the shared counter of which nobody knows whether they were made.
    unknown: u64,
    numbers: Vec<Range<u64>>,
    /// Requests that had no answer in time.
    unanswered: Vec<String>,
    /// Whether a change of its own counter may have been made, or be made yet, unknown to it.
    in_doubt: bool,
}

const SHARED: &str = "counters/shared";

impl<'a> Counters<'a> {
    pub(crate) fn start(library: &'a Library, loops: usize) -> Self {
        let stopped = Arc::new(AtomicBool::new(false));
        let store = library.store();
        let made = Transaction::new().create(SHARED, encode(0));
        library.run(store.commit(made)).unwrap();
        let counting = |n: usize| {
            let own = format!("counters/{n}");
            library.spawn(Counter::run(library.store(), own, Arc::clone(&stopped)))
        };
        let loops = (0..loops).map(counting).collect();
        Self { library, loops, stopped }
    }

    /// Ends the loops. Panics if a change was lost or made twice, or a request had no answer.
    pub(crate) fn stop(self) {
        let unanswered = self.stop_with_outages();
        assert!(unanswered.is_empty(), "{unanswered:?}");
    }

    /// Ends the loops. Panics if a change was lost or made twice; gives what had no answer.
    pub(crate) fn stop_with_outages(self) -> Vec<String> {
        self.stopped.store(true, Ordering::Relaxed);
        let counts = self.loops.into_iter().map(|task| self.library.run(task).unwrap());
        let counts: Vec<_> = counts.collect();
        let store = self.library.store();
        for (n, count) in counts.iter().enumerate() {
            let value = self.library.run(read(store.as_ref(), &format!("counters/{n}"))).1;
            let most = count.own + u64::from(count.in_doubt);
            assert!((count.own..=most).contains(&value), "counter {n}: {value}, not {}", count.own);
        }
        let shared = self.library.run(read(store.as_ref(), SHARED)).1;
        let (sure, unknown) = counts
            .iter()
            .fold((0, 0), |(sure, unknown), count| (sure + count.shared, unknown + count.unknown));
        assert!((sure..=sure + unknown).contains(&shared), "{sure} <= {shared} <= +{unknown}");
        let mut numbers: Vec<_> = counts.iter().flat_map(|count| count.numbers.clone()).collect();
        numbers.sort_by_key(|block| block.start);
        let is_apart = numbers.windows(2).all(|pair| pair[0].end <= pair[1].start);
        assert!(is_apart, "numbers were given out twice: {numbers:?}");
        assert!(sure > 0 && !numbers.is_empty(), "nothing was counted");
        counts.into_iter().flat_map(|count| count.unanswered).collect()
    }
}

/// One loop, and what it knows of its own counter.
struct Counter {
    store: Arc<dyn Metastore>,
    key: String,
    version: Version,
    count: Count,
}

impl Counter {
    async fn run(store: Arc<dyn Metastore>, key: String, stopped: Arc<AtomicBool>) -> Count {
        let made = Transaction::new().create(&key, encode(0));
        let version = store.commit(made).await.unwrap();
        let mut counter = Self { store, key, version, count: Count::default() };
        while !stopped.load(Ordering::Relaxed) {
            counter.count_own().await;
            counter.count_shared().await;
            match counter.store.next_sequence("numbers", 2).await {
                Ok(block) => counter.count.numbers.push(block),
                Err(error) => counter.unanswered("a block of numbers", error),
            }
            sleep(PAUSE).await;
        }
        if counter.count.in_doubt {
            counter.find_out().await;
        }
        counter.count
    }

    async fn count_own(&mut self) {
        let next = encode(self.count.own + 1);
        let change = Transaction::new().replace(&self.key, self.version, next);
        match self.store.commit(change).await {
            Ok(version) => {
                assert!(version > self.version, "{version} after {}", self.version);
                self.version = version;
                self.count.own += 1;
            }
            Err(Error::Conflict { .. }) if self.count.in_doubt => self.find_out().await,
            Err(error @ Error::TimedOut { .. }) => {
                self.count.in_doubt = true;
                self.unanswered("its own counter", error);
                self.find_out().await;
            }
            Err(error) => self.unanswered("its own counter", error),
        }
    }

    /// Reads whether its last change was made, so far.
    async fn find_out(&mut self) {
        let (version, value) = read(self.store.as_ref(), &self.key).await;
        let own = self.count.own;
        assert!(value == own || value == own + 1, "{}: {value} after {own}", self.key);
        assert!(version >= self.version, "{version} after {}", self.version);
        (self.version, self.count.own) = (version, value);
    }

    async fn count_shared(&mut self) {
        let found = match self.store.get(SHARED).await {
            Ok(found) => found.expect("it was made before"),
            Err(error) => return self.unanswered("a read", error),
        };
        let next = encode(decode(&found.value) + 1);
        let change = Transaction::new().replace(SHARED, found.version, next);
        match self.store.commit(change).await {
            Ok(_) => self.count.shared += 1,
            // Another was quicker.
            Err(Error::Conflict { .. }) => {}
            Err(error) => {
                self.count.unknown += u64::from(matches!(error, Error::TimedOut { .. }));
                self.unanswered("the shared counter", error);
            }
        }
    }

    /// Panics unless the error says that nobody answered.
    fn unanswered(&mut self, what: &str, error: Error) {
        let is_outage = matches!(error, Error::TimedOut { .. } | Error::Unavailable { .. });
        assert!(is_outage, "{}, {what}: {error}", self.key);
        self.count.unanswered.push(format!("{what}: {error}"));
    }
}

async fn read(store: &dyn Metastore, key: &str) -> (Version, u64) {
    for _ in 0..READS_MAX {
        if let Ok(found) = store.get(key).await {
            let found = found.unwrap_or_else(|| panic!("{key} is lost"));
            return (found.version, decode(&found.value));
        }
        sleep(PAUSE).await;
    }
    panic!("{key} cannot be read");
}

fn encode(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn decode(value: &[u8]) -> u64 {
    u64::from_le_bytes(value.try_into().unwrap())
}
