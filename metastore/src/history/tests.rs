//! Histories made by hand, and what makes them; the others are made at random.

use std::ops::Range;

use super::{Event, Failure, Request, Summary, check};
use crate::error::Error;
use crate::state::Answer;
use crate::types::{KeyValue, Page, Scan, Transaction, Version};

mod illegal;
mod legal;
mod random;
mod reference;

fn event(time: Range<u64>, request: Request, outcome: Result<Answer, Error>) -> Event {
    let returned = Some(time.end);
    Event { client: time.start, called: time.start, returned, request, outcome: Some(outcome) }
}

fn entry(key: &str, value: &str, version: u64) -> KeyValue {
    let value = value.to_string().into();
    KeyValue { key: key.into(), value, version: Version::new(version), lease: None }
}

/// A read that found a value, at a version.
fn read(time: Range<u64>, key: &str, value: &str, version: u64) -> Event {
    let answer = Answer::Value(Some(entry(key, value, version)));
    event(time, Request::Get(key.into()), Ok(answer))
}

fn read_absent(time: Range<u64>, key: &str) -> Event {
    event(time, Request::Get(key.into()), Ok(Answer::Value(None)))
}

/// A scan of all keys.
fn scanned(time: Range<u64>, revision: u64, entries: &[(&str, &str, u64)]) -> Event {
    let entries = entries.iter().map(|(key, value, version)| entry(key, value, *version));
    let page = Page { entries: entries.collect(), more: false, revision: Version::new(revision) };
    event(time, Request::Scan(Scan::new("")), Ok(Answer::Page(page)))
}

fn wrote(time: Range<u64>, transaction: Transaction, revision: u64) -> Event {
    let answer = Answer::Committed(Version::new(revision));
    event(time, Request::Commit(transaction), Ok(answer))
}

fn refused(time: Range<u64>, transaction: Transaction, key: &str, found: Option<u64>) -> Event {
    let conflict = Error::Conflict { key: key.into(), found: found.map(Version::new) };
    event(time, Request::Commit(transaction), Err(conflict))
}

fn failed(time: Range<u64>, transaction: Transaction) -> Event {
    event(time, Request::Commit(transaction), Err(Error::unavailable("nobody is there")))
}

fn unanswered(called: u64, transaction: Transaction) -> Event {
    let request = Request::Commit(transaction);
    Event { client: called, called, returned: None, request, outcome: None }
}

fn took(time: Range<u64>, block: Range<u64>) -> Event {
    let count = block.end - block.start;
    let request = Request::NextSequence { name: "numbers".into(), count };
    event(time, request, Ok(Answer::Sequence(block)))
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.to_string())
}

fn create(key: &str, value: &str) -> Transaction {
    Transaction::new().create(key, value.to_string())
}

fn replace(key: &str, version: u64, value: &str) -> Transaction {
    Transaction::new().replace(key, Version::new(version), value.to_string())
}

fn delete(key: &str) -> Transaction {
    Transaction::new().delete(key)
}

fn remove(key: &str, version: u64) -> Transaction {
    Transaction::new().remove(key, Version::new(version))
}

fn accepts(events: impl IntoIterator<Item = Event>) -> Summary {
    check(&in_order(events)).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Checks that a history is refused for this reason, and that the operations which contradict each
/// other are named: those with these calls.
fn refuses(events: impl IntoIterator<Item = Event>, what: &str, calls: &[u64]) {
    match check(&in_order(events)) {
        Err(Failure::Violation(violation)) => {
            assert!(violation.what.contains(what), "{violation}");
            let named = |call: &u64| {
                let start = format!("client {call}, {call}..");
                violation.events.iter().any(|event| event.starts_with(&start))
            };
            assert!(calls.iter().all(named), "{calls:?} in {violation}");
        }
        other => panic!("{other:?}"),
    }
}

fn in_order(events: impl IntoIterator<Item = Event>) -> Vec<Event> {
    let mut events = events.into_iter().collect::<Vec<_>>();
    events.sort_by_key(|event| event.called);
    events
}
