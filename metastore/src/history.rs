//! Histories of concurrent operations on a metastore, and the check that they are linearizable.
//!
//! Any number of clients perform operations through [`Client`], which does nothing else than to
//! write down what was asked, what was answered, and when. [`History::check`] then decides whether
//! each operation can have taken effect at one moment between its call and its answer. For tests of
//! this repository, and for whoever implements [`Metastore`]; [`drive`] is a client that does
//! random things.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use inkfast_metastore::history::History;
//! use inkfast_metastore::{MemoryMetastore, Transaction};
//!
//! let store = MemoryMetastore::new();
//! let history = History::default();
//! let mut client = history.client();
//! client.commit(&store, |value| Transaction::new().create("key", value)).await?;
//! client.get(&store, "key").await?;
//! assert_eq!(history.check()?.operations, 2);
//! # Ok(())
//! # }
//! ```
//!
//! # What is checked
//!
//! Whether there is an order of all operations in which each of them does what it should, and in
//! which none comes before another that had been answered before it was called:
//!
//! - a commit that was answered has a revision above those of all commits before it, and each of
//!   its conditions held;
//! - a conflict was true: the key had the version that was found, which the condition did not want,
//!   and the conditions before that one held;
//! - a read tells the last write of its key, and a page tells those of all keys that it covers, at
//!   the revision that it names;
//! - blocks of a sequence are as long as was asked for, share no number, and grow;
//! - what failed with any other error than [`Error::TimedOut`] did nothing;
//! - what failed with that one, or was dropped, did all of what was asked, once, at any time after
//!   its call, or nothing. It is counted as a client of its own from then on.
//!
//! There are no false alarms, and nothing that breaks these rules is missed, if the history knows
//! all that happened to its keys: they were absent at first, and nobody else writes them or has
//! keys under a prefix that is scanned. The rest of the store may do what it likes.
//!
//! # Why it is quick, and where it has to search
//!
//! To check any history for linearizability is NP-complete. But here nearly all is told: the
//! revisions say in which order the writes happened, every write writes a value of its own, and
//! whoever reads is told value and version, so it is known which write was seen. It remains to walk
//! once along the revisions, and to fit each read in as early as it can be. That is never wrong: a
//! read changes nothing, so to have it behind us can only help. The walk takes time in proportion
//! to the operations, times the logarithm of their number, times the clients.
//!
//! Of writes without an answer, one that was seen has a revision as well, and one of which nothing
//! was seen can be thought away. Two kinds are left: those that may have *removed* a key, which
//! shows (the key is absent) but does not tell who did it and when; and those of which only the
//! version was seen, in a conflict, and not the value. Only for these the walk tries one way and
//! then the other, and goes back when it is stuck. It puts each of them only where there is a
//! revision that nobody has, where it does not spoil what is still to be seen, and where it is of
//! use. What has failed is remembered by all that matters for the rest of the way, so that it is
//! not tried again. Before that, a walk in which each of them may happen any number of times finds
//! most violations without trying who of many did what. The steps are bounded by
//! [`SEARCH_STEPS_MAX`], past which the answer is [`Failure::Inconclusive`].

use std::fmt::{self, Display, Formatter};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::Metastore;
use crate::error::Error;
use crate::state::Answer;
use crate::types::{Condition, KeyValue, Page, Scan, Transaction, Version, Write};

mod drive;
mod model;
mod search;
mod sequences;
#[cfg(test)]
mod tests;

pub use drive::drive;

/// How many steps a search may take, beside one for each operation.
pub const SEARCH_STEPS_MAX: usize = 300_000;

/// What clients did, and what they were answered. Clones are the same history.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// Counts calls and answers: no two are at the same moment, whatever the clock says.
    now: u64,
    clients: u64,
    /// In the order of the calls.
    events: Vec<Event>,
}

/// One client: it asks a thing at a time.
#[derive(Debug)]
pub struct Client {
    history: History,
    number: u64,
    unanswered: bool,
}

/// An operation.
#[derive(Clone, Debug)]
struct Event {
    client: u64,
    called: u64,
    /// When it was answered, if the outcome is known.
    returned: Option<u64>,
    request: Request,
    outcome: Option<Result<Answer, Error>>,
}

#[derive(Clone, Debug)]
enum Request {
    Get(String),
    Scan(Scan),
    Commit(Transaction),
    NextSequence { name: String, count: u64 },
}

/// What a history that is right consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// All operations.
    pub operations: usize,
    /// The keys that were read.
    pub gets: usize,
    /// The pages that were read.
    pub scans: usize,
    /// The blocks of sequences that were given out.
    pub blocks: usize,
    /// The commits that were answered.
    pub committed: usize,
    /// The commits that were refused by a conflict.
    pub conflicts: usize,
    /// The operations without an answer.
    pub unanswered: usize,
    /// The commits without an answer that were seen to have happened, or must have.
    pub happened: usize,
}

/// Says why a history is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The history is not linearizable.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It was not found out whether the history is linearizable: too many writes without an answer
    /// may have happened at too many moments.
    #[error("the history is too hard: {SEARCH_STEPS_MAX} steps of search gave no answer")]
    Inconclusive,
}

/// Operations that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    what: String,
    events: Vec<String>,
}

impl History {
    /// Adds a client.
    pub fn client(&self) -> Client {
        Client { history: self.clone(), number: self.next_client(), unanswered: false }
    }

    /// Decides whether all that has been recorded is [linearizable](self#what-is-checked).
    /// Operations that are under way count as those without an answer.
    pub fn check(&self) -> Result<Summary, Failure> {
        check(&self.lock().events)
    }

    fn next_client(&self) -> u64 {
        let mut inner = self.lock();
        inner.clients += 1;
        inner.clients
    }

    fn tick(&self) -> u64 {
        let mut inner = self.lock();
        inner.now += 1;
        inner.now
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Reads a key.
    pub async fn get(
        &mut self,
        store: &dyn Metastore,
        key: &str,
    ) -> Result<Option<KeyValue>, Error> {
        let call = self.called(Request::Get(key.into()));
        let outcome = store.get(key).await;
        self.returned(call, outcome.clone().map(Answer::Value));
        outcome
    }

    /// Reads a page.
    pub async fn scan(&mut self, store: &dyn Metastore, scan: Scan) -> Result<Page, Error> {
        let call = self.called(Request::Scan(scan.clone()));
        let outcome = store.scan(scan).await;
        self.returned(call, outcome.clone().map(Answer::Page));
        outcome
    }

    /// Commits the transaction that is made of a value which no other operation writes.
    ///
    /// # Panics
    ///
    /// Panics if the transaction writes another value, or a key with a lease.
    pub async fn commit(
        &mut self,
        store: &dyn Metastore,
        make: impl FnOnce(Bytes) -> Transaction,
    ) -> Result<Version, Error> {
        let unique = Bytes::from(self.history.tick().to_string());
        let transaction = make(unique.clone());
        for write in &transaction.writes {
            if let Write::Put { value, lease, .. } = write {
                assert_eq!(
                    value, &unique,
                    "only by its own value a write is known when it is read"
                );
                assert_eq!(
                    *lease, None,
                    "the end of a lease is a write that is not in the history"
                );
            }
        }
        let call = self.called(Request::Commit(transaction.clone()));
        let outcome = store.commit(transaction).await;
        self.returned(call, outcome.clone().map(Answer::Committed));
        outcome
    }

    /// Takes numbers from a sequence.
    pub async fn next_sequence(
        &mut self,
        store: &dyn Metastore,
        name: &str,
        count: u64,
    ) -> Result<Range<u64>, Error> {
        let call = self.called(Request::NextSequence { name: name.into(), count });
        let outcome = store.next_sequence(name, count).await;
        self.returned(call, outcome.clone().map(Answer::Sequence));
        outcome
    }

    fn called(&mut self, request: Request) -> usize {
        if self.unanswered {
            self.number = self.history.next_client();
        }
        self.unanswered = true;
        let mut inner = self.history.lock();
        inner.now += 1;
        let called = inner.now;
        let client = self.number;
        inner.events.push(Event { client, called, returned: None, request, outcome: None });
        inner.events.len() - 1
    }

    fn returned(&mut self, call: usize, outcome: Result<Answer, Error>) {
        if matches!(outcome, Err(Error::TimedOut { .. })) {
            return;
        }
        self.unanswered = false;
        let mut inner = self.history.lock();
        inner.now += 1;
        let now = inner.now;
        let event = &mut inner.events[call];
        event.returned = Some(now);
        event.outcome = Some(outcome);
    }
}

/// Checks events in the order of their calls.
fn check(events: &[Event]) -> Result<Summary, Failure> {
    sequences::check(events)?;
    let model = model::Model::new(events)?;
    let happened = search::search(&model)?;
    let count = |matches: fn(&Event) -> bool| events.iter().filter(|event| matches(event)).count();
    Ok(Summary {
        operations: events.len(),
        gets: count(|event| matches!(event.outcome, Some(Ok(Answer::Value(_))))),
        scans: count(|event| matches!(event.outcome, Some(Ok(Answer::Page(_))))),
        blocks: count(|event| matches!(event.outcome, Some(Ok(Answer::Sequence(_))))),
        committed: count(|event| matches!(event.outcome, Some(Ok(Answer::Committed(_))))),
        conflicts: count(|event| matches!(event.outcome, Some(Err(Error::Conflict { .. })))),
        unanswered: count(|event| event.outcome.is_none()),
        happened,
    })
}

impl Violation {
    fn new<'a>(what: impl Into<String>, events: impl IntoIterator<Item = &'a Event>) -> Self {
        let mut lines = Vec::new();
        for event in events {
            let line = event.to_string();
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
        Self { what: what.into(), events: lines }
    }
}

impl std::error::Error for Violation {}

impl Display for Violation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "not linearizable: {}", self.what)?;
        self.events.iter().try_for_each(|event| write!(f, "\n  {event}"))
    }
}

/// Writes all operations, a line each, in the order of their calls.
impl Display for History {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.lock().events.iter().try_for_each(|event| writeln!(f, "{event}"))
    }
}

impl Display for Event {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "client {}, {}..", self.client, self.called)?;
        if let Some(returned) = self.returned {
            returned.fmt(f)?;
        }
        write!(f, ": {}: ", self.request)?;
        match &self.outcome {
            None => f.write_str("no answer"),
            Some(Err(error)) => error.fmt(f),
            Some(Ok(Answer::Value(None))) => f.write_str("absent"),
            Some(Ok(Answer::Value(Some(entry)))) => write_entry(f, entry),
            Some(Ok(Answer::Committed(version))) => write!(f, "revision {version}"),
            Some(Ok(Answer::Sequence(block))) => write!(f, "{block:?}"),
            Some(Ok(Answer::Page(page))) => {
                write!(f, "at revision {}", page.revision)?;
                page.entries.iter().try_for_each(|entry| {
                    write!(f, ", {:?} = ", entry.key)?;
                    write_entry(f, entry)
                })?;
                f.write_str(if page.more { ", and more" } else { "" })
            }
            Some(Ok(other)) => write!(f, "{other:?}"),
        }
    }
}

impl Display for Request {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(key) => write!(f, "get {key:?}"),
            Self::Scan(scan) => {
                write!(f, "scan {:?} after {:?}", scan.prefix, scan.after.as_deref().unwrap_or(""))
            }
            Self::Commit(transaction) => {
                f.write_str("commit")?;
                for condition in &transaction.conditions {
                    match condition {
                        Condition::Absent { key } => write!(f, ", if {key:?} is absent")?,
                        Condition::At { key, version } => {
                            write!(f, ", if {key:?} is at {version}")?
                        }
                    }
                }
                for write in &transaction.writes {
                    match write {
                        Write::Put { key, value, .. } => {
                            write!(f, ", put {key:?} = {}", value.escape_ascii())?;
                        }
                        Write::Delete { key } => write!(f, ", delete {key:?}")?,
                    }
                }
                Ok(())
            }
            Self::NextSequence { name, count } => write!(f, "take {count} of sequence {name:?}"),
        }
    }
}

fn write_entry(f: &mut Formatter<'_>, entry: &KeyValue) -> fmt::Result {
    write!(f, "{} at {}", entry.value.escape_ascii(), entry.version)
}
