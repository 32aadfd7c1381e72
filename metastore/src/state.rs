//! The one place where commands change the state, for every store there is.
//!
//! [`apply`] decides by the rows and the command alone: no clock, no randomness, so the same
//! commands in the same order give the same rows and answers everywhere.

use std::collections::BTreeSet;
use std::ops::{Bound, Range};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::error::Error;
use crate::limits::{
    LEASE_KEYS_MAX, LEASES_MAX, OPERATION_BYTES, PAGE_BYTES_MAX, PAGE_ENTRIES_MAX,
};
use crate::members::MemberStatus;
use crate::messages::{decode_answer, encode_answer};
use crate::rows::{
    COUNTERS, Counters, LEASES, Rows, RowsMut, SEQUENCES, StateError, StoredKey, StoredLease,
    StoredRequest, StoredSequence, decode, key_row, lease_key_row, lease_row, order_row, read,
    request_row, sequence_row, text, write,
};
use crate::types::{Change, Condition, KeyValue, LeaseId, Page, Scan, Transaction, Version, Write};

/// How long an answer is remembered for a retry, by the commands' times, in milliseconds. However
/// many there are: at 5,000 changes a second they take some 60 MB of disk.
pub const REMEMBERED_MS: u64 = 60 * 1000;
/// How far numbers leap when an old copy of the state comes back: more than are given out from one
/// copy to the next.
pub const LEAP: u64 = 1 << 32;
/// The most answers that one command makes forget, so that none pays for many.
const FORGOTTEN_PER_COMMAND: usize = 4;

/// An operation with what makes its outcome the same wherever it is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The request that it came with; a retry has the same.
    pub request: Uuid,
    /// When the request came, in milliseconds of leadership: each leader goes on from the
    /// [`time_ms`] of the state that it took over, so the time stands still while there is none.
    /// Only forgetting goes by it, and it never goes back: a lower one counts as the highest that
    /// was applied.
    pub time_ms: u64,
    /// What is to be done. It has passed [`check_operation`](crate::limits::check_operation).
    pub operation: Operation,
}

/// What changes the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes keys, if its conditions hold.
    Commit(Transaction),
    /// Takes numbers from a sequence.
    NextSequence {
        /// The sequence's name.
        name: String,
        /// How many numbers.
        count: u64,
    },
    /// Begins a lease.
    GrantLease {
        /// How long it lasts without a keep-alive.
        ttl: Duration,
    },
    /// Ends a lease and removes its keys.
    EndLease(LeaseId),
}

/// What a request gives, if it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The key, if it is there.
    Value(Option<KeyValue>),
    /// A page of a scan.
    Page(Page),
    /// The transaction was committed at this revision.
    Committed(Version),
    /// Numbers of a sequence.
    Sequence(Range<u64>),
    /// The lease has begun.
    Granted(LeaseId),
    /// It is done, and there is nothing to say.
    Done,
    /// What a watch has to tell.
    Told(Told),
    /// What a member knows of the cluster.
    Status(MemberStatus),
    /// The next bytes of a backup; none at its end.
    Piece(Bytes),
}

/// What a watch tells at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// The changes, in order of revision, none of a revision left out; none if nothing happened.
    pub changes: Vec<Change>,
    /// The revision up to which everything has been told by now.
    pub seen: Version,
}

impl Answer {
    /// Takes the answer to a read of a key.
    pub fn value(self) -> Result<Option<KeyValue>, Error> {
        match self {
            Self::Value(value) => Ok(value),
            other => Err(other.unexpected()),
        }
    }

    /// Takes the answer to a scan.
    pub fn page(self) -> Result<Page, Error> {
        match self {
            Self::Page(page) => Ok(page),
            other => Err(other.unexpected()),
        }
    }

    /// Takes the answer to a transaction.
    pub fn committed(self) -> Result<Version, Error> {
        match self {
            Self::Committed(version) => Ok(version),
            other => Err(other.unexpected()),
        }
    }

    /// Takes the numbers of a sequence.
    pub fn sequence(self) -> Result<Range<u64>, Error> {
        match self {
            Self::Sequence(range) => Ok(range),
            other => Err(other.unexpected()),
        }
    }

    /// Takes the lease that was granted.
    pub fn granted(self) -> Result<LeaseId, Error> {
        match self {
            Self::Granted(lease) => Ok(lease),
            other => Err(other.unexpected()),
        }
    }

    /// Takes an answer that says nothing more.
    pub fn done(self) -> Result<(), Error> {
        match self {
            Self::Done => Ok(()),
            other => Err(other.unexpected()),
        }
    }

    /// Takes what a watch tells.
    pub fn told(self) -> Result<Told, Error> {
        match self {
            Self::Told(told) => Ok(told),
            other => Err(other.unexpected()),
        }
    }

    /// Takes what a member says of the cluster.
    pub fn status(self) -> Result<MemberStatus, Error> {
        match self {
            Self::Status(status) => Ok(status),
            other => Err(other.unexpected()),
        }
    }

    /// Takes a piece of a backup.
    pub fn piece(self) -> Result<Bytes, Error> {
        match self {
            Self::Piece(bytes) => Ok(bytes),
            other => Err(other.unexpected()),
        }
    }

    fn unexpected(self) -> Error {
        Error::unavailable(format!(
            "the metastore answered something else than was asked: {self:?}"
        ))
    }
}

/// Applies a command to the rows and gives its answer. What becomes of keys is added to `changes`.
///
/// A command whose request has been answered before changes nothing and gets that answer again.
/// After a [`StateError`] the rows are half changed and must be thrown away.
pub fn apply(
    rows: &mut impl RowsMut,
    command: Command,
    changes: &mut Vec<Change>,
) -> Result<Result<Answer, Error>, StateError> {
    let Command { request, time_ms, operation } = command;
    if let Some(answer) = rows.get(&request_row(request))? {
        return decode_answer(answer).map_err(StateError);
    }
    let mut counters = read::<Counters>(rows, COUNTERS)?.unwrap_or_default();
    let time_ms = time_ms.max(counters.time_ms);
    counters.time_ms = time_ms;
    let answer = match operation {
        Operation::Commit(transaction) => commit(rows, &mut counters, transaction, changes)?,
        Operation::NextSequence { name, count } => next_sequence(rows, &name, count)?,
        Operation::GrantLease { ttl } => grant_lease(rows, &mut counters, ttl)?,
        Operation::EndLease(lease) => end_lease(rows, &mut counters, lease, changes)?,
    };
    forget(rows, &mut counters, time_ms)?;
    remember(
        rows,
        &mut counters,
        StoredRequest { request: request.into_bytes().to_vec().into(), time_ms },
    )?;
    rows.insert(&request_row(request), &encode_answer(&answer))?;
    write(rows, COUNTERS, &counters)?;
    Ok(answer)
}

/// Reads one key.
pub fn get(rows: &impl Rows, key: &str) -> Result<Option<KeyValue>, StateError> {
    let stored = read::<StoredKey>(rows, &key_row(key))?;
    Ok(stored.map(|stored| stored.into_key_value(key.into())))
}

/// Reads a page, which has at least one entry if there is any.
pub fn scan(rows: &impl Rows, scan: &Scan) -> Result<Page, StateError> {
    let prefix = key_row(&scan.prefix);
    let from = match &scan.after {
        Some(after) if key_row(after) >= prefix => Bound::Excluded(key_row(after)),
        _ => Bound::Included(prefix.clone()),
    };
    let limit = scan.limit.min(PAGE_ENTRIES_MAX);
    let revision = revision(rows)?;
    let mut page = Page { entries: Vec::new(), more: false, revision };
    let mut bytes = 0;
    for row in rows.walk(from)? {
        let (row, value) = row?;
        if !row.starts_with(&prefix) {
            break;
        }
        let key = text(&row, 1)?;
        let entry = decode::<StoredKey>(&row, value)?.into_key_value(key);
        bytes += entry.key.len() + entry.value.len() + OPERATION_BYTES;
        if page.entries.len() == limit || bytes > PAGE_BYTES_MAX {
            page.more = true;
            break;
        }
        page.entries.push(entry);
    }
    Ok(page)
}

/// Returns how long a lease lasts without a keep-alive, if there is such a lease.
pub fn lease_ttl(rows: &impl Rows, lease: LeaseId) -> Result<Option<Duration>, StateError> {
    let stored = read::<StoredLease>(rows, &lease_row(lease.get()))?;
    Ok(stored.map(|stored| Duration::from_millis(stored.ttl_ms)))
}

/// Returns all leases.
pub fn leases(rows: &impl Rows) -> Result<Vec<LeaseId>, StateError> {
    rows_with_prefix(rows, LEASES.to_vec())?
        .iter()
        .map(|row| match row[LEASES.len()..].try_into() {
            Ok(number) => Ok(LeaseId::new(u64::from_be_bytes(number))),
            Err(_) => Err(StateError(format!("row {}: no lease", row.escape_ascii()))),
        })
        .collect()
}

/// Returns the last revision used; 0 in an empty store.
pub fn revision(rows: &impl Rows) -> Result<Version, StateError> {
    Ok(Version::new(read::<Counters>(rows, COUNTERS)?.unwrap_or_default().revision))
}

/// Returns the highest time of a command that was applied; 0 in an empty store.
pub fn time_ms(rows: &impl Rows) -> Result<u64, StateError> {
    Ok(read::<Counters>(rows, COUNTERS)?.unwrap_or_default().time_ms)
}

/// Moves an old copy of the state past every number that may have been given out since it was
/// made: the revision, the last lease and all sequences leap by [`LEAP`]. Keys and leases stay.
pub fn leap(rows: &mut impl RowsMut) -> Result<(), StateError> {
    let far = |what: &str, number: u64| {
        let used_up = || StateError(format!("{what} cannot leap by {LEAP}: it is at {number}"));
        number.checked_add(LEAP).ok_or_else(used_up)
    };
    let mut counters = read::<Counters>(rows, COUNTERS)?.unwrap_or_default();
    counters.revision = far("the revision", counters.revision)?;
    counters.last_lease = far("the last lease's number", counters.last_lease)?;
    write(rows, COUNTERS, &counters)?;
    for row in rows_with_prefix(rows, SEQUENCES.to_vec())? {
        let sequence = read::<StoredSequence>(rows, &row)?.unwrap_or_default();
        let what = format!("the sequence {:?}", text(&row, SEQUENCES.len())?);
        write(rows, &row, &StoredSequence { next: far(&what, sequence.next)? })?;
    }
    Ok(())
}

type Outcome = Result<Result<Answer, Error>, StateError>;

fn commit(
    rows: &mut impl RowsMut,
    counters: &mut Counters,
    transaction: Transaction,
    changes: &mut Vec<Change>,
) -> Outcome {
    for condition in &transaction.conditions {
        if let Err(conflict) = check_condition(rows, condition)? {
            return Ok(Err(conflict));
        }
    }
    if let Err(refusal) = check_leases(rows, &transaction.writes)? {
        return Ok(Err(refusal));
    }
    counters.revision += 1;
    let revision = Version::new(counters.revision);
    for write in transaction.writes {
        match write {
            Write::Put { key, value, lease } => {
                let version = revision.get();
                let stored = StoredKey { version, lease: lease.map(LeaseId::get), value };
                changes.push(put(rows, key, stored)?);
            }
            Write::Delete { key } => changes.extend(delete(rows, key, revision)?),
        }
    }
    Ok(Ok(Answer::Committed(revision)))
}

fn check_condition(
    rows: &impl Rows,
    condition: &Condition,
) -> Result<Result<(), Error>, StateError> {
    let stored = read::<StoredKey>(rows, &key_row(condition.key()))?;
    let found = stored.map(|stored| Version::new(stored.version));
    let wanted = match condition {
        Condition::Absent { .. } => None,
        Condition::At { version, .. } => Some(*version),
    };
    if found == wanted {
        return Ok(Ok(()));
    }
    Ok(Err(Error::Conflict { key: condition.key().into(), found }))
}

/// Checks that every lease named is there and has room for its keys.
fn check_leases(rows: &impl Rows, writes: &[Write]) -> Result<Result<(), Error>, StateError> {
    let leased = writes.iter().filter_map(|write| match write {
        Write::Put { key, lease: Some(lease), .. } => Some((lease.get(), key)),
        _ => None,
    });
    let leased = leased.collect::<BTreeSet<_>>();
    for lease in leased.iter().map(|(lease, _)| *lease).collect::<BTreeSet<_>>() {
        if lease_ttl(rows, LeaseId::new(lease))?.is_none() {
            return Ok(Err(Error::LeaseNotFound));
        }
        let mut keys = rows_with_prefix(rows, lease_key_row(lease, ""))?;
        keys.extend(
            leased.iter().filter(|(of, _)| *of == lease).map(|(_, key)| lease_key_row(lease, key)),
        );
        if keys.len() > LEASE_KEYS_MAX {
            return Ok(Err(Error::bad_request(format!(
                "{} keys under the lease {lease}: it may have {LEASE_KEYS_MAX}; grant another",
                keys.len()
            ))));
        }
    }
    Ok(Ok(()))
}

fn next_sequence(rows: &mut impl RowsMut, name: &str, count: u64) -> Outcome {
    let row = sequence_row(name);
    let first = read::<StoredSequence>(rows, &row)?.unwrap_or_default().next;
    let Some(next) = first.checked_add(count) else {
        return Ok(Err(Error::bad_request(format!("the sequence {name:?} is used up"))));
    };
    write(rows, &row, &StoredSequence { next })?;
    Ok(Ok(Answer::Sequence(first..next)))
}

fn grant_lease(rows: &mut impl RowsMut, counters: &mut Counters, ttl: Duration) -> Outcome {
    if counters.leases >= LEASES_MAX {
        return Ok(Err(Error::bad_request(format!(
            "there are {LEASES_MAX} leases already: end some, or wait until some expire"
        ))));
    }
    counters.leases += 1;
    counters.last_lease += 1;
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    write(rows, &lease_row(counters.last_lease), &StoredLease { ttl_ms })?;
    Ok(Ok(Answer::Granted(LeaseId::new(counters.last_lease))))
}

fn end_lease(
    rows: &mut impl RowsMut,
    counters: &mut Counters,
    lease: LeaseId,
    changes: &mut Vec<Change>,
) -> Outcome {
    if lease_ttl(rows, lease)?.is_none() {
        return Ok(Err(Error::LeaseNotFound));
    }
    let prefix = lease_key_row(lease.get(), "");
    let keys = rows_with_prefix(rows, prefix.clone())?;
    if !keys.is_empty() {
        counters.revision += 1;
    }
    for row in keys {
        let key = text(&row, prefix.len())?;
        changes.extend(delete(rows, key, Version::new(counters.revision))?);
    }
    rows.remove(&lease_row(lease.get()))?;
    counters.leases -= 1;
    Ok(Ok(Answer::Done))
}

fn put(rows: &mut impl RowsMut, key: String, stored: StoredKey) -> Result<Change, StateError> {
    take_off_lease(rows, &key)?;
    if let Some(lease) = stored.lease {
        rows.insert(&lease_key_row(lease, &key), &[])?;
    }
    write(rows, &key_row(&key), &stored)?;
    // A copy: the value may be a part of something much larger that came over the wire.
    let value = Bytes::copy_from_slice(&stored.value);
    let now = StoredKey { value, ..stored }.into_key_value(key.clone());
    Ok(Change { revision: now.version, key, now: Some(now) })
}

/// Removes a key; it is no change if there was none.
fn delete(
    rows: &mut impl RowsMut,
    key: String,
    revision: Version,
) -> Result<Option<Change>, StateError> {
    if !take_off_lease(rows, &key)? {
        return Ok(None);
    }
    rows.remove(&key_row(&key))?;
    Ok(Some(Change { revision, key, now: None }))
}

/// Lets a key's lease forget it; false if there is no such key.
fn take_off_lease(rows: &mut impl RowsMut, key: &str) -> Result<bool, StateError> {
    let stored = read::<StoredKey>(rows, &key_row(key))?;
    if let Some(StoredKey { lease: Some(lease), .. }) = stored {
        rows.remove(&lease_key_row(lease, key))?;
    }
    Ok(stored.is_some())
}

fn remember(
    rows: &mut impl RowsMut,
    counters: &mut Counters,
    request: StoredRequest,
) -> Result<(), StateError> {
    write(rows, &order_row(counters.next_serial), &request)?;
    counters.next_serial += 1;
    Ok(())
}

/// Forgets the oldest answers, a few at a time: more than one command adds, so that it catches up.
fn forget(rows: &mut impl RowsMut, counters: &mut Counters, now_ms: u64) -> Result<(), StateError> {
    for _ in 0..FORGOTTEN_PER_COMMAND {
        let row = order_row(counters.oldest_serial);
        let Some(oldest) = read::<StoredRequest>(rows, &row)? else {
            return Ok(());
        };
        if now_ms < oldest.time_ms.saturating_add(REMEMBERED_MS) {
            return Ok(());
        }
        let request = Uuid::from_slice(&oldest.request)
            .map_err(|error| StateError(format!("row {}: {error}", row.escape_ascii())))?;
        rows.remove(&row)?;
        rows.remove(&request_row(request))?;
        counters.oldest_serial += 1;
    }
    Ok(())
}

/// Returns the keys of the rows that begin with a prefix, of which there are few.
fn rows_with_prefix(rows: &impl Rows, prefix: Vec<u8>) -> Result<BTreeSet<Vec<u8>>, StateError> {
    let mut found = BTreeSet::new();
    for row in rows.walk(Bound::Included(prefix.clone()))? {
        let (row, _) = row?;
        if !row.starts_with(&prefix) {
            break;
        }
        found.insert(row);
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
