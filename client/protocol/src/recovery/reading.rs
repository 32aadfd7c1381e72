//! The middle of a recovery: reads forward from the last add confirmed, has what it finds written
//! back, and stops at the first entry that was certainly not written.

use std::collections::{BTreeMap, VecDeque};
use std::mem;

use super::writing::Writing;
use super::{Action, End, RecoveryError, Round, named};
use crate::{Entry, EntryId, Fragment, LedgerMetadata, Places, Refusal, Replication};

/// The entries that are read or written back at once, at most. With the largest entries and
/// three copies under way that is 96 MiB.
const WINDOW: usize = 32;

/// Reads always from the ensemble as it was when the recovery began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    replication: Replication,
    round: Round,
    fragment: Fragment,
    /// Entries up to here are written without doubt: they need not be written back.
    confirmed: Option<EntryId>,
    /// The last entry that was found, and the ledger's length with it.
    last: Option<EntryId>,
    length: u64,
    /// The first entry that was certainly not written.
    end: Option<EntryId>,
    asked: BTreeMap<EntryId, Answers>,
    pub(super) writing: Writing,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Answers {
    copy: Option<Entry>,
    refused: BTreeMap<usize, Refusal>,
}

impl Reading {
    /// Begins behind the highest last add confirmed that a fenced place knows; every entry
    /// before the fragment was confirmed when the fragment was made, whatever they say.
    pub(super) fn new(
        round: Round,
        metadata: &LedgerMetadata,
        last_add_confirmed: Option<EntryId>,
    ) -> Self {
        let (replication, fragment) = (metadata.replication, metadata.last_fragment().clone());
        let mut reading = Self {
            replication,
            round,
            confirmed: last_add_confirmed.max(fragment.first.previous()),
            last: fragment.first.previous(),
            length: fragment.length_before,
            end: None,
            asked: BTreeMap::new(),
            writing: Writing::new(round, replication, fragment.ensemble.clone()),
            fragment,
        };
        // The last confirmed entry itself is read for the ledger's length in its header.
        if reading.confirmed > reading.last {
            reading.last = reading.confirmed.and_then(EntryId::previous);
        }
        reading
    }

    pub(super) fn on_copy(&mut self, entry: Entry) {
        if let Some(answers) = self.asked.get_mut(&entry.id()) {
            answers.copy = Some(entry);
        }
    }

    pub(super) fn on_refused(&mut self, place: usize, entry: EntryId, refusal: Refusal) {
        if let Some(answers) = self.asked.get_mut(&entry) {
            answers.refused.insert(place, refusal);
        }
    }

    /// Goes as far as the answers allow. Returns the end once it is found and everything before it
    /// is safe.
    pub(super) fn go_on(
        &mut self,
        actions: &mut VecDeque<Action>,
    ) -> Result<Option<End>, RecoveryError> {
        while self.end.is_none() && self.decide_next(actions)? {}
        self.writing.go_on(actions)?;
        if self.end.is_some() {
            let changes = self.writing.changes();
            let end = End { last: self.last, length: self.length, changes };
            return Ok((self.writing.unconfirmed() == 0).then_some(end));
        }
        while self.asked.len() + self.writing.unconfirmed() < WINDOW {
            let newest = self.asked.last_key_value().map(|(entry, _)| *entry).or(self.last);
            let entry = EntryId::after(newest);
            self.asked.insert(entry, Answers::default());
            let round = self.round;
            actions.extend(self.replication.write_set(entry.get()).map(|place| Action::Read {
                round,
                place,
                bookie: self.fragment.ensemble[place],
                entry,
            }));
        }
        Ok(None)
    }

    /// Decides about the entry behind the last one, if the answers allow it.
    fn decide_next(&mut self, actions: &mut VecDeque<Action>) -> Result<bool, RecoveryError> {
        let next = EntryId::after(self.last);
        let Some(answers) = self.asked.get_mut(&next) else { return Ok(false) };
        if let Some(entry) = answers.copy.take() {
            self.asked.remove(&next);
            self.last = Some(next);
            let length_before = mem::replace(&mut self.length, entry.header().length);
            if Some(next) > self.confirmed {
                self.writing.add(entry, length_before, actions);
            }
            return Ok(true);
        }
        let absent =
            |(place, said): (&usize, &Refusal)| (*said == Refusal::Absent).then_some(*place);
        let without: Places = answers.refused.iter().filter_map(absent).collect();
        // A confirmed entry was written, whoever does not have it now.
        if self.replication.is_unwritten(next.get(), without) && Some(next) > self.confirmed {
            self.end = Some(next);
            return Ok(true);
        }
        if answers.refused.len() == self.replication.write_quorum() {
            let refused = named(&self.fragment, &answers.refused);
            return Err(RecoveryError::Undecided { entry: next, refused });
        }
        Ok(false)
    }
}
