//! Random clients on a store that loses answers, and what the check says when their history is
//! spoilt.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::sleep;
use uuid::Uuid;

use crate::error::Error;
use crate::history::{Event, Failure, History, Request, Summary, check, drive};
use crate::state::Answer;
use crate::types::{KeyValue, LeaseId, Page, Scan, Transaction, Version};
use crate::watch::Watch;
use crate::{MemoryMetastore, Metastore};

/// The longest way of a request to the store, and of its answer back.
const WAY_MAX_MS: u64 = 10;
/// The longest time after which a request may still arrive whose sender has given up.
const LATE_MAX_MS: u64 = 1000;

/// A store behind a network that delays requests and answers, and loses one in `loss`.
struct Far {
    store: Arc<MemoryMetastore>,
    loss: u32,
    bug: Option<Bug>,
    cache: Mutex<BTreeMap<String, Option<KeyValue>>>,
}

/// What a store may do wrong, one time in thirty.
#[derive(Clone, Copy, Debug)]
enum Bug {
    /// Answers a read with what another one got.
    AnswersFromCache,
    /// Writes twice.
    RepeatsWrites,
    /// Writes though a condition does not hold.
    IgnoresConditions,
    /// Says that it has written, and has not.
    ForgetsWrites,
    /// Writes though it says that it has not.
    WritesAfterRefusal,
    /// Gives out numbers again.
    RepeatsNumbers,
}

impl Far {
    fn new(loss: u32) -> Self {
        let store = Arc::new(MemoryMetastore::new());
        Self { store, loss, bug: None, cache: Mutex::default() }
    }

    async fn travel(&self) {
        sleep(Duration::from_millis(fastrand::u64(..WAY_MAX_MS))).await;
    }

    /// Whether there is a bug and it shows now.
    fn shows(&self) -> Option<Bug> {
        self.bug.filter(|_| fastrand::u8(..30) == 0)
    }

    fn loses(&self) -> bool {
        fastrand::u32(..self.loss) == 0
    }

    fn timed_out(&self) -> Error {
        Error::TimedOut { timeout: Duration::from_secs(1), why: "it is lost".into() }
    }
}

#[async_trait]
impl Metastore for Far {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.travel().await;
        if let Some(Bug::AnswersFromCache) = self.shows()
            && let Some(answer) = self.cache.lock().unwrap().get(key)
        {
            return Ok(answer.clone());
        }
        let answer = self.store.get(key).await;
        if let Ok(answer) = &answer {
            self.cache.lock().unwrap().insert(key.into(), answer.clone());
        }
        self.travel().await;
        answer
    }

    async fn scan(&self, scan: Scan) -> Result<Page, Error> {
        self.travel().await;
        let answer = self.store.scan(scan).await;
        self.travel().await;
        answer
    }

    async fn get_stale(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.get(key).await
    }

    async fn scan_stale(&self, scan: Scan) -> Result<Page, Error> {
        self.scan(scan).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Version, Error> {
        self.travel().await;
        if self.loses() {
            return Err(self.timed_out());
        }
        if self.loses() {
            let store = Arc::clone(&self.store);
            let late = Duration::from_millis(fastrand::u64(..LATE_MAX_MS));
            tokio::spawn(async move {
                sleep(late).await;
                store.commit(transaction).await
            });
            return Err(self.timed_out());
        }
        let unconditional = Transaction { conditions: Vec::new(), ..transaction.clone() };
        let answer = match self.shows() {
            Some(Bug::IgnoresConditions) => self.store.commit(unconditional).await,
            Some(Bug::ForgetsWrites) => self.store.commit(Transaction::new()).await,
            Some(Bug::RepeatsWrites) => {
                let _ = self.store.commit(transaction.clone()).await;
                self.store.commit(unconditional).await
            }
            Some(Bug::WritesAfterRefusal) => {
                let answer = self.store.commit(transaction).await;
                let _ = self.store.commit(unconditional).await;
                answer
            }
            _ => self.store.commit(transaction).await,
        };
        self.travel().await;
        if self.loses() { Err(self.timed_out()) } else { answer }
    }

    async fn next_sequence(&self, name: &str, count: u64) -> Result<Range<u64>, Error> {
        self.travel().await;
        let block = self.store.next_sequence(name, count).await?;
        self.travel().await;
        match self.shows() {
            Some(Bug::RepeatsNumbers) if block.start > 0 => Ok(block.start - 1..block.end - 1),
            _ if self.loses() => Err(self.timed_out()),
            _ => Ok(block),
        }
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.store.grant_lease(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.keep_alive(lease).await
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.end_lease(lease).await
    }

    async fn watch(&self, prefix: &str, after: Version) -> Result<Watch, Error> {
        self.store.watch(prefix, after).await
    }

    async fn cluster(&self) -> Result<Uuid, Error> {
        self.store.cluster().await
    }
}

async fn run(store: Far, seed: u64, clients: u64, operations: usize) -> History {
    let history = History::default();
    run_on(&history, &Arc::new(store), seed, clients, operations).await;
    history
}

/// Lets clients work until there are so many operations.
async fn run_on(history: &History, store: &Arc<Far>, seed: u64, clients: u64, operations: usize) {
    fastrand::seed(seed);
    let driven = (0..clients).map(|client| {
        let (store, history) = (Arc::clone(store), history.clone());
        tokio::spawn(async move {
            let stop = || history.lock().events.len() >= operations;
            drive(&*store, &history, "test/", seed ^ client << 32, stop).await;
        })
    });
    for client in driven.collect::<Vec<_>>() {
        client.await.unwrap();
    }
}

/// Writes something else to the store now and then.
async fn bustle(store: Arc<MemoryMetastore>) {
    for number in 0_u64.. {
        store.commit(Transaction::new().put("other", number.to_string())).await.unwrap();
        sleep(Duration::from_millis(fastrand::u64(..WAY_MAX_MS))).await;
    }
}

fn accepted(history: &History) -> Summary {
    history.check().unwrap_or_else(|failure| panic!("{failure}"))
}

#[tokio::test(start_paused = true)]
async fn runs_without_loss_are_right() {
    for seed in 0..20 {
        let history = run(Far::new(u32::MAX), seed, 8, 300).await;
        let summary = accepted(&history);
        assert!(summary.committed > 50 && summary.conflicts > 10, "{summary:?}");
        assert_eq!(summary.unanswered, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn runs_with_loss_are_right() {
    let mut happened = 0;
    for seed in 0..50 {
        let summary = accepted(&run(Far::new(10), seed, 8, 300).await);
        assert!(summary.unanswered > 10, "{summary:?}");
        happened += summary.happened;
    }
    assert!(happened > 200, "{happened}");
}

#[tokio::test(start_paused = true)]
async fn others_may_use_the_store() {
    for seed in 0..20 {
        let store = Far::new(10);
        let others = tokio::spawn(bustle(Arc::clone(&store.store)));
        accepted(&run(store, seed, 8, 300).await);
        others.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_bug_is_found_though_much_may_have_happened_before() {
    let history = History::default();
    let store = Arc::new(Far::new(5));
    let others = tokio::spawn(bustle(Arc::clone(&store.store)));
    run_on(&history, &store, 3, 8, 4000).await;
    accepted(&history);
    let bug = Some(Bug::ForgetsWrites);
    let store = Arc::new(Far { bug, store: Arc::clone(&store.store), ..Far::new(5) });
    run_on(&history, &store, 4, 8, 4500).await;
    others.abort();
    assert!(matches!(history.check(), Err(Failure::Violation(_))));
}

#[tokio::test(start_paused = true)]
async fn bugs_of_a_store_are_found() {
    let bugs = [
        Bug::AnswersFromCache,
        Bug::RepeatsWrites,
        Bug::IgnoresConditions,
        Bug::ForgetsWrites,
        Bug::WritesAfterRefusal,
        Bug::RepeatsNumbers,
    ];
    for bug in bugs {
        let mut found = 0;
        for seed in 0..3 {
            let store = Far { bug: Some(bug), ..Far::new(50) };
            let history = run(store, seed, 8, 2000).await;
            match history.check() {
                Ok(_) => {}
                Err(Failure::Violation(_)) => found += 1,
                Err(Failure::Inconclusive) => panic!("{bug:?}, seed {seed} is too hard"),
            }
        }
        assert_eq!(found, 3, "{bug:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_spoilt_answer_is_found() {
    let (mut spoilt, mut found) = (0, 0);
    for seed in 0..3 {
        let history = run(Far::new(50), seed, 4, 300).await;
        let events = history.lock().events.clone();
        for number in 0..events.len() {
            let mut events = events.clone();
            if !spoil(&mut events, number) {
                continue;
            }
            spoilt += 1;
            match check(&events) {
                Ok(_) => {}
                Err(Failure::Violation(_)) => found += 1,
                Err(Failure::Inconclusive) => panic!("seed {seed}, {number} is too hard"),
            }
        }
    }
    // Not all of it matters: what was changed may have been so as well, a moment before or after.
    assert!(spoilt > 700 && found * 100 > spoilt * 90, "{found} of {spoilt}");
}

/// Changes the answer of one operation into one that it could have got another time; false if it
/// has none.
fn spoil(events: &mut [Event], number: usize) -> bool {
    let before = &events[..number];
    let earlier = before.iter().rev().filter(|event| event.returned < Some(events[number].called));
    let outcome = match (&events[number].request, &events[number].outcome) {
        (Request::Get(key), Some(Ok(answer))) => {
            let mut reads = earlier.filter(|event| match &event.request {
                Request::Get(other) => other == key,
                _ => false,
            });
            reads.find_map(|event| {
                event.outcome.clone().filter(|other| *other != Ok(answer.clone()))
            })
        }
        (Request::Commit(_), Some(Ok(_))) => {
            let mut commits = earlier.filter_map(|event| event.outcome.clone());
            commits.find(|outcome| matches!(outcome, Ok(Answer::Committed(_))))
        }
        (_, Some(Err(Error::Conflict { key, found }))) => {
            let found = found.map(|version| Version::new(version.get() - 1));
            Some(Err(Error::Conflict { key: key.clone(), found }))
        }
        (_, Some(Ok(Answer::Sequence(block)))) if block.start > 0 => {
            Some(Ok(Answer::Sequence(block.start - 1..block.end - 1)))
        }
        (_, Some(Ok(Answer::Page(page)))) => {
            let mut page = page.clone();
            page.entries.pop().map(|_| Ok(Answer::Page(page)))
        }
        _ => None,
    };
    let is_other = outcome.is_some() && outcome != events[number].outcome;
    if is_other {
        events[number].outcome = outcome;
    }
    is_other
}

#[tokio::test(start_paused = true)]
async fn a_long_run_is_right() {
    let history = run(Far::new(200), 7, 32, 20_000).await;
    let summary = accepted(&history);
    assert!(summary.happened > 20, "{summary:?}");
}
