//! The check as one would write it first: tries all orders. Both must agree on small histories.

use std::collections::BTreeMap;

use bytes::Bytes;
use fastrand::Rng;

use super::{create, delete, in_order, put, remove, replace};
use crate::error::Error;
use crate::history::{Event, Failure, Request, check};
use crate::state::Answer;
use crate::types::{Condition, KeyValue, Page, Scan, Transaction, Version, Write};

const CASES: usize = 40_000;
const OPERATIONS_MAX: u64 = 8;
const KEYS: [&str; 2] = ["a", "b"];
/// How far operations reach at most to either side of the moments at which they happen, which are
/// ten apart.
const REACH_MAX: u64 = 20;

#[derive(Clone, Default)]
struct World {
    keys: BTreeMap<String, (Bytes, u64)>,
    revision: u64,
    next: u64,
}

#[test]
fn agrees_with_the_reference() {
    let [mut legal, mut illegal, mut happened] = [0; 3];
    for seed in 0..CASES {
        let events = random_history(&mut Rng::with_seed(seed as u64));
        let expected = is_possible(&events);
        let lines = || events.iter().map(|event| format!("{event}\n")).collect::<String>();
        match check(&events) {
            Ok(summary) => {
                assert!(expected, "seed {seed} was accepted:\n{}", lines());
                legal += 1;
                happened += usize::from(summary.happened > 0);
            }
            Err(Failure::Violation(violation)) => {
                assert!(!expected, "seed {seed} was refused: {violation}\nof\n{}", lines());
                illegal += 1;
            }
            Err(Failure::Inconclusive) => panic!("seed {seed} is too hard:\n{}", lines()),
        }
    }
    assert!(legal > CASES / 10 && illegal > CASES / 10 && happened > CASES / 20);
}

/// Whether there is an order in which all that was answered is right.
fn is_possible(events: &[Event]) -> bool {
    // A revision that is above all that are mentioned, and how many there may be above it.
    let last = events.iter().flat_map(revisions).max().unwrap_or(0) + OPERATIONS_MAX;
    fits(events, &mut vec![false; events.len()], &World::default(), last)
}

fn fits(events: &[Event], done: &mut [bool], world: &World, last: u64) -> bool {
    let left = || events.iter().enumerate().filter(|(number, _)| !done[*number]);
    let answered = left().filter_map(|(_, event)| event.returned);
    let Some(deadline) = answered.min() else { return true };
    let next = left().filter(|(_, event)| event.called < deadline).map(|(number, _)| number);
    for number in next.collect::<Vec<_>>() {
        done[number] = true;
        for after in world.after(&events[number], last) {
            if fits(events, done, &after, last) {
                return true;
            }
        }
        done[number] = false;
    }
    false
}

fn revisions(event: &Event) -> Vec<u64> {
    let mut revisions = Vec::new();
    if let Request::Commit(transaction) = &event.request {
        revisions.extend(transaction.conditions.iter().filter_map(|condition| match condition {
            Condition::At { version, .. } => Some(version.get()),
            Condition::Absent { .. } => None,
        }));
    }
    match &event.outcome {
        Some(Ok(Answer::Value(Some(entry)))) => revisions.push(entry.version.get()),
        Some(Ok(Answer::Committed(version))) => revisions.push(version.get()),
        Some(Ok(Answer::Page(page))) => revisions.push(page.revision.get()),
        Some(Err(Error::Conflict { found: Some(found), .. })) => revisions.push(found.get()),
        _ => {}
    }
    revisions
}

impl World {
    /// Lists what may be after an event; nothing if it cannot be now.
    fn after(&self, event: &Event, last: u64) -> Vec<Self> {
        match (&event.request, &event.outcome) {
            (Request::Commit(transaction), None) => {
                let revisions = self.revision + 1..=last;
                revisions.filter_map(|revision| self.commit(transaction, revision).ok()).collect()
            }
            (Request::Commit(transaction), Some(Ok(Answer::Committed(version)))) => {
                let after = self.commit(transaction, version.get()).ok();
                after.filter(|_| self.revision < version.get()).into_iter().collect()
            }
            (Request::Commit(transaction), Some(Err(error @ Error::Conflict { .. }))) => {
                let is_right = self.commit(transaction, last).err().as_ref() == Some(error);
                self.clone().when(is_right)
            }
            (Request::Get(key), Some(Ok(Answer::Value(found)))) => {
                self.clone().when(self.entries(key).find(|entry| entry.key == *key) == *found)
            }
            (Request::Scan(scan), Some(Ok(Answer::Page(page)))) => {
                let entries = self.entries(&scan.prefix);
                let revision = page.revision.get();
                let is_right = entries.eq(page.entries.clone()) && self.revision <= revision;
                Self { revision, ..self.clone() }.when(is_right)
            }
            (Request::NextSequence { .. }, Some(Ok(Answer::Sequence(block)))) => {
                Self { next: block.end, ..self.clone() }.when(self.next <= block.start)
            }
            (_, Some(Err(_))) => vec![self.clone()],
            (_, None) => Vec::new(),
            other => panic!("{other:?}"),
        }
    }

    fn when(self, is_right: bool) -> Vec<Self> {
        if is_right { vec![self] } else { Vec::new() }
    }

    fn entries(&self, prefix: &str) -> impl Iterator<Item = KeyValue> {
        let keys = self.keys.iter().filter(move |(key, _)| key.starts_with(prefix));
        keys.map(|(key, (value, version))| KeyValue {
            key: key.clone(),
            value: value.clone(),
            version: Version::new(*version),
            lease: None,
        })
    }

    fn commit(&self, transaction: &Transaction, revision: u64) -> Result<Self, Error> {
        for condition in &transaction.conditions {
            let key = condition.key();
            let found = self.keys.get(key).map(|(_, version)| Version::new(*version));
            let wanted = match condition {
                Condition::Absent { .. } => None,
                Condition::At { version, .. } => Some(*version),
            };
            if found != wanted {
                return Err(Error::Conflict { key: key.into(), found });
            }
        }
        let mut after = Self { revision, ..self.clone() };
        for write in &transaction.writes {
            match write {
                Write::Put { key, value, .. } => {
                    after.keys.insert(key.clone(), (value.clone(), revision));
                }
                Write::Delete { key } => drop(after.keys.remove(key)),
            }
        }
        Ok(after)
    }
}

/// Makes a history in which some operations have no answer. Three of four are spoilt: the store
/// falls back to an earlier state, or an answer is changed.
fn random_history(random: &mut Rng) -> Vec<Event> {
    let how = random.u8(..4);
    let reach = random.u64(1..=REACH_MAX);
    let mut world = World::default();
    let mut worlds = Vec::new();
    let mut events = Vec::new();
    for number in 1..=random.u64(4..=OPERATIONS_MAX) {
        worlds.push(world.clone());
        if how >= 2 && random.bool() {
            let earlier = worlds[random.usize(..worlds.len())].clone();
            world = World { revision: world.revision, ..earlier };
        }
        events.push(random_event(random, &mut world, number, reach));
    }
    if how == 1 {
        let number = random.usize(..events.len());
        spoil(random, &mut events[number]);
    }
    in_order(events)
}

fn random_event(random: &mut Rng, world: &mut World, number: u64, reach: u64) -> Event {
    let request = random_request(random, world, number);
    let gap = if random.u8(..3) == 0 { 2 } else { 1 };
    let at = 10 * number + 4 * REACH_MAX;
    // Calls are even and answers odd: no two things are at the same moment.
    let mut called = 2 * (at - random.u64(..reach));
    let mut returned = Some(2 * (at + random.u64(..reach)) + 1);
    let mut outcome = None;
    match random.u8(..20) {
        // It does not happen.
        0..2 => returned = None,
        // It happens, at once or late, but is not answered.
        2..8 => {
            drop(perform(world, &request, gap));
            called -= random.u64(..REACH_MAX) * 4;
            returned = None;
        }
        _ => outcome = Some(perform(world, &request, gap)),
    }
    Event { client: number, called, returned, request, outcome }
}

fn random_request(random: &mut Rng, world: &World, number: u64) -> Request {
    let key = if random.u8(..4) == 0 { KEYS[1] } else { KEYS[0] };
    match random.u8(..20) {
        0..8 => Request::Get(key.into()),
        8..10 => Request::Scan(Scan::new(if random.bool() { "" } else { key })),
        10..11 => Request::NextSequence { name: "numbers".into(), count: random.u64(1..3) },
        11..14 => {
            let mut both = random_transaction(random, world, KEYS[0], number);
            let other = random_transaction(random, world, KEYS[1], number);
            both.conditions.extend(other.conditions);
            both.writes.extend(other.writes);
            Request::Commit(both)
        }
        _ => Request::Commit(random_transaction(random, world, key, number)),
    }
}

fn random_transaction(random: &mut Rng, world: &World, key: &str, number: u64) -> Transaction {
    let now = world.keys.get(key).map_or(world.revision, |(_, version)| *version);
    let version = if random.u8(..4) == 0 { random.u64(1..8) } else { now };
    let value = number.to_string();
    match random.u8(..5) {
        0 => put(key, &value),
        1 => delete(key),
        2 => replace(key, version, &value),
        3 => remove(key, version),
        _ => create(key, &value),
    }
}

fn perform(world: &mut World, request: &Request, gap: u64) -> Result<Answer, Error> {
    match request {
        Request::Get(key) => Ok(Answer::Value(world.entries(key).find(|entry| entry.key == *key))),
        Request::Scan(scan) => Ok(Answer::Page(Page {
            entries: world.entries(&scan.prefix).collect(),
            more: false,
            revision: Version::new(world.revision),
        })),
        Request::Commit(transaction) => {
            *world = world.commit(transaction, world.revision + gap)?;
            Ok(Answer::Committed(Version::new(world.revision)))
        }
        Request::NextSequence { count, .. } => {
            let start = world.next;
            world.next += count;
            Ok(Answer::Sequence(start..world.next))
        }
    }
}

/// Changes something, which may or may not matter.
fn spoil(random: &mut Rng, event: &mut Event) {
    let mut other = |version: Version| match version.get() {
        0 => Version::new(1),
        number => Version::new(if number == 1 || random.bool() { number + 1 } else { number - 1 }),
    };
    match &mut event.outcome {
        Some(Ok(Answer::Value(found))) => *found = None,
        Some(Ok(Answer::Page(page))) => page.revision = other(page.revision),
        Some(Ok(Answer::Committed(version))) => *version = other(*version),
        Some(Ok(Answer::Sequence(block))) => *block = block.start + 1..block.end + 1,
        Some(Err(Error::Conflict { found, .. })) => *found = found.map(other),
        // It is asked for after all.
        _ => event.called += 100 * REACH_MAX,
    }
}
