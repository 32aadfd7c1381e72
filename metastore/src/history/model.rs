//! What a history says, in the terms of the search: what each operation needs and does, and what
//! is known of each revision.

use std::collections::{BTreeMap, BTreeSet};

use super::{Event, Request, Violation};
use crate::error::Error;
use crate::state::Answer;
use crate::types::{Condition, KeyValue, Transaction, Write};

/// What is known of one moment of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// The key is not there.
    Absent,
    /// The key was written at this revision.
    At(u64),
    /// The key was written at a revision that nobody knows.
    Unseen,
}

/// An operation that has, or may have, a place in the order.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    pub(super) event: &'a Event,
    pub(super) role: Role,
    /// Until when it has happened; without end if it was not answered.
    pub(super) returned: u64,
    /// What must be so right before it, or when it reads.
    pub(super) facts: Vec<(&'a str, State)>,
    pub(super) writes: &'a [Write],
    /// The highest revision that had been answered when it was called.
    pub(super) floor: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It wrote at this revision.
    Written(u64),
    /// It read, at this revision if it says so.
    Read(Option<u64>),
    /// It may have written, at a revision that is not known.
    Loose,
}

/// A revision that the history mentions.
#[derive(Debug)]
pub(super) struct Moment<'a> {
    pub(super) revision: u64,
    /// Who wrote at it, if that is known.
    pub(super) writer: Option<usize>,
    /// Keys that were seen with it as their version, though the writer is not known.
    pub(super) seen: BTreeSet<&'a str>,
    /// Keys for which a loose operation named it, so that it may have been their version.
    pub(super) named: BTreeSet<&'a str>,
}

#[derive(Debug)]
pub(super) struct Model<'a> {
    /// In the order of the calls.
    pub(super) units: Vec<Unit<'a>>,
    /// In the order of the revisions.
    pub(super) moments: Vec<Moment<'a>>,
    /// The loose units that may be needed, in the order of the calls.
    pub(super) loose: Vec<usize>,
}

impl<'a> Model<'a> {
    /// Makes the model, if nothing is wrong at first sight.
    pub(super) fn new(events: &'a [Event]) -> Result<Self, Violation> {
        let revisions = revisions(events)?;
        let keys = written_keys(events);
        let mut units = Vec::new();
        for (event, revision) in events.iter().zip(revisions) {
            units.extend(unit(event, revision, &keys)?);
        }
        set_floors(&mut units);
        let moments = moments(&units)?;
        let loose = loose(&units, &moments);
        Ok(Self { units, moments, loose })
    }
}

/// Lists the revisions that are mentioned, in order.
fn moments<'a>(units: &[Unit<'a>]) -> Result<Vec<Moment<'a>>, Violation> {
    let mut moments = BTreeMap::new();
    for (number, unit) in units.iter().enumerate() {
        let Role::Written(revision) = unit.role else { continue };
        if revision == 0 {
            return Err(Violation::new(
                "a commit has the revision of the empty store",
                [unit.event],
            ));
        }
        if let Some(other) = moment(&mut moments, revision).writer.replace(number) {
            let what = format!("the revision {revision} was given to two commits");
            return Err(Violation::new(what, [units[other].event, unit.event]));
        }
    }
    for unit in units {
        if let Role::Read(Some(revision)) = unit.role {
            moment(&mut moments, revision);
        }
        for (key, state) in &unit.facts {
            let State::At(revision) = state else { continue };
            let moment = moment(&mut moments, *revision);
            if moment.writer.is_none() {
                let keys = match unit.role {
                    Role::Loose => &mut moment.named,
                    _ => &mut moment.seen,
                };
                keys.insert(*key);
            }
        }
    }
    Ok(moments.into_values().collect())
}

fn moment<'m, 'a>(moments: &'m mut BTreeMap<u64, Moment<'a>>, revision: u64) -> &'m mut Moment<'a> {
    moments.entry(revision).or_insert_with(|| Moment {
        revision,
        writer: None,
        seen: BTreeSet::new(),
        named: BTreeSet::new(),
    })
}

/// Lists the loose units that may have removed a key, or have a version that is mentioned. Without
/// any of the others the rest is as right as with it.
fn loose(units: &[Unit<'_>], moments: &[Moment<'_>]) -> Vec<usize> {
    let mentioned = moments.iter().flat_map(|moment| moment.seen.union(&moment.named));
    let mentioned = mentioned.copied().collect::<BTreeSet<_>>();
    let is_needed = |unit: &Unit<'_>| {
        unit.writes.iter().any(|write| match write {
            Write::Put { key, .. } => mentioned.contains(key.as_str()),
            Write::Delete { .. } => true,
        })
    };
    let loose = units.iter().enumerate();
    let loose = loose.filter(|(_, unit)| unit.role == Role::Loose && is_needed(unit));
    loose.map(|(number, _)| number).collect()
}

/// Tells each unit which revision had been answered when it was called.
fn set_floors(units: &mut [Unit<'_>]) {
    let mut answered = Vec::new();
    for unit in &*units {
        if let Role::Written(revision) = unit.role {
            answered.push((unit.returned, revision));
        }
    }
    answered.sort_unstable();
    let mut answered = answered.into_iter().peekable();
    let mut floor = 0;
    for unit in units {
        while let Some((_, revision)) = answered.next_if(|(at, _)| *at < unit.event.called) {
            floor = floor.max(revision);
        }
        unit.floor = floor;
    }
}

/// Returns the revision of each event, as far as it was answered or its value was seen.
fn revisions(events: &[Event]) -> Result<Vec<Option<u64>>, Violation> {
    let mut writers = BTreeMap::new();
    let mut revisions = vec![None; events.len()];
    for (number, event) in events.iter().enumerate() {
        let Request::Commit(transaction) = &event.request else { continue };
        for (key, value) in puts(transaction) {
            writers.insert((key, value), number);
        }
        if let Some(Ok(Answer::Committed(version))) = &event.outcome {
            revisions[number] = Some(version.get());
        }
    }
    let mut seen_by = BTreeMap::new();
    for reader in events {
        for entry in entries(reader) {
            let Some(writer) = writers.get(&(entry.key.as_str(), &entry.value[..])) else {
                let what = format!("{:?} has a value that was never written to it", entry.key);
                return Err(Violation::new(what, [reader]));
            };
            if matches!(events[*writer].outcome, Some(Err(_))) {
                let what = "a commit that failed was seen";
                return Err(Violation::new(what, [&events[*writer], reader]));
            }
            let revision = entry.version.get();
            let known = *revisions[*writer].get_or_insert(revision);
            let first = *seen_by.entry(writer).or_insert(reader);
            if known != revision {
                let what = format!("one write has the versions {known} and {revision}");
                return Err(Violation::new(what, [&events[*writer], first, reader]));
            }
        }
    }
    Ok(revisions)
}

fn written_keys(events: &[Event]) -> BTreeSet<&str> {
    let commits = events.iter().filter_map(|event| match &event.request {
        Request::Commit(transaction) => Some(transaction),
        _ => None,
    });
    commits.flat_map(|transaction| &transaction.writes).map(Write::key).collect()
}

fn puts(transaction: &Transaction) -> impl Iterator<Item = (&str, &[u8])> {
    transaction.writes.iter().filter_map(|write| match write {
        Write::Put { key, value, .. } => Some((key.as_str(), &value[..])),
        Write::Delete { .. } => None,
    })
}

/// Returns what was read of keys that were there.
fn entries(event: &Event) -> &[KeyValue] {
    match &event.outcome {
        Some(Ok(Answer::Value(Some(entry)))) => std::slice::from_ref(entry),
        Some(Ok(Answer::Page(page))) => &page.entries,
        _ => &[],
    }
}

/// Says what an event needs and does; none if it says nothing about any key.
fn unit<'a>(
    event: &'a Event,
    revision: Option<u64>,
    keys: &BTreeSet<&'a str>,
) -> Result<Option<Unit<'a>>, Violation> {
    let mut writes: &[Write] = &[];
    let (role, mut facts) = match (&event.request, &event.outcome) {
        (Request::Commit(transaction), None | Some(Ok(_))) => {
            writes = &transaction.writes;
            let role = revision.map_or(Role::Loose, Role::Written);
            (role, transaction.conditions.iter().map(wanted).collect())
        }
        (Request::Commit(transaction), Some(Err(Error::Conflict { .. }))) => {
            (Role::Read(None), conflict(event, transaction)?)
        }
        (Request::Get(key), Some(Ok(Answer::Value(entry)))) => {
            (Role::Read(None), vec![(key.as_str(), entry.as_ref().map_or(State::Absent, found))])
        }
        (Request::Scan(_), Some(Ok(Answer::Page(page)))) => {
            (Role::Read(Some(page.revision.get())), page_facts(event, keys))
        }
        _ => return Ok(None),
    };
    facts.sort_unstable();
    facts.dedup();
    let returned = event.returned.unwrap_or(u64::MAX);
    Ok(Some(Unit { event, role, returned, facts, writes, floor: 0 }))
}

fn found(entry: &KeyValue) -> State {
    State::At(entry.version.get())
}

fn wanted(condition: &Condition) -> (&str, State) {
    match condition {
        Condition::Absent { key } => (key, State::Absent),
        Condition::At { key, version } => (key, State::At(version.get())),
    }
}

/// Says what a conflict claims: the conditions before the one that is named held, and that one did
/// not.
fn conflict<'a>(
    event: &'a Event,
    transaction: &'a Transaction,
) -> Result<Vec<(&'a str, State)>, Violation> {
    let Some(Err(Error::Conflict { key, found })) = &event.outcome else { return Ok(Vec::new()) };
    let found = (key.as_str(), found.map_or(State::Absent, |version| State::At(version.get())));
    let mut facts = Vec::new();
    for condition in transaction.conditions.iter().map(wanted) {
        if condition.0 == found.0 && condition.1 != found.1 {
            facts.push(found);
            return Ok(facts);
        }
        facts.push(condition);
    }
    Err(Violation::new("a conflict was found where every condition holds", [event]))
}

/// Says what a page claims of each key that the history knows and the page covers.
fn page_facts<'a>(event: &'a Event, keys: &BTreeSet<&'a str>) -> Vec<(&'a str, State)> {
    let (Request::Scan(scan), Some(Ok(Answer::Page(page)))) = (&event.request, &event.outcome)
    else {
        return Vec::new();
    };
    let entries = page.entries.iter().map(|entry| (entry.key.as_str(), found(entry)));
    let mut facts = entries.collect::<BTreeMap<_, _>>();
    let last = page.entries.last().filter(|_| page.more).map(|entry| entry.key.as_str());
    let nothing = page.more && last.is_none();
    for key in keys.iter().copied() {
        let is_after = scan.after.as_deref().is_none_or(|after| key > after);
        let is_covered = !nothing && last.is_none_or(|last| key <= last);
        if key.starts_with(&scan.prefix) && is_after && is_covered {
            facts.entry(key).or_insert(State::Absent);
        }
    }
    facts.into_iter().collect()
}
