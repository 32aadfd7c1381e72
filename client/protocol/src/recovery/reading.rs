//! The middle of a recovery: reads forward from the last add confirmed, writes back what it
//! finds, and stops at the first entry that was certainly not written.

use std::collections::{BTreeMap, VecDeque};

use super::{RecoveryError, named};
use crate::{Entry, EntryId, Fragment, Places, Refusal, Replication};

/// The entries that are read or written back at once, at most. With the largest entries and
/// three copies under way that is 96 MiB.
const WINDOW: usize = 32;

/// Reads always from the ensemble as it was when the recovery began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Reading {
    replication: Replication,
    fragment: Fragment,
    /// Entries up to here are written without doubt: they need not be written back.
    confirmed: Option<EntryId>,
    /// The last entry that was found, and the ledger's length with it.
    last: Option<EntryId>,
    length: u64,
    /// The first entry that was certainly not written.
    end: Option<EntryId>,
    asked: BTreeMap<EntryId, Answers>,
    writing: BTreeMap<EntryId, Places>,
    /// The places that do not take write-backs.
    refusing: BTreeMap<usize, Refusal>,
    /// What is to be read, place and entry, since this was last taken out.
    pub(super) reads: VecDeque<(usize, EntryId)>,
    /// What is to be written back, likewise.
    pub(super) writes: VecDeque<(usize, Entry)>,
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
        replication: Replication,
        fragment: &Fragment,
        last_add_confirmed: Option<EntryId>,
    ) -> Self {
        let mut reading = Self {
            replication,
            fragment: fragment.clone(),
            confirmed: last_add_confirmed.max(fragment.first.previous()),
            last: fragment.first.previous(),
            length: fragment.length_before,
            end: None,
            asked: BTreeMap::new(),
            writing: BTreeMap::new(),
            refusing: BTreeMap::new(),
            reads: VecDeque::new(),
            writes: VecDeque::new(),
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

    pub(super) fn on_written(&mut self, place: usize, first: EntryId, last: EntryId) {
        let replication = self.replication;
        for (_, written) in self.writing.range_mut(first..=last.max(first)) {
            written.insert(place);
        }
        self.writing.retain(|entry, written| !replication.is_written(entry.get(), *written));
    }

    pub(super) fn on_write_refused(&mut self, place: usize, refusal: Refusal) {
        self.refusing.insert(place, refusal);
    }

    /// Goes as far as the answers allow. Returns the last entry and the ledger's length once the
    /// end is found and everything before it is safe.
    pub(super) fn go_on(&mut self) -> Result<Option<(Option<EntryId>, u64)>, RecoveryError> {
        while self.end.is_none() && self.decide_next()? {}
        self.check_writable()?;
        if self.end.is_some() {
            return Ok(self.writing.is_empty().then_some((self.last, self.length)));
        }
        while self.asked.len() + self.writing.len() < WINDOW {
            let newest = self.asked.last_key_value().map(|(entry, _)| *entry).or(self.last);
            let entry = EntryId::after(newest);
            self.asked.insert(entry, Answers::default());
            self.reads.extend(self.replication.write_set(entry.get()).map(|p| (p, entry)));
        }
        Ok(None)
    }

    /// Decides about the entry behind the last one, if the answers allow it.
    fn decide_next(&mut self) -> Result<bool, RecoveryError> {
        let next = EntryId::after(self.last);
        let Some(answers) = self.asked.get_mut(&next) else { return Ok(false) };
        if let Some(entry) = answers.copy.take() {
            self.asked.remove(&next);
            self.last = Some(next);
            self.length = entry.header().length;
            if Some(next) > self.confirmed {
                self.write_back(entry);
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

    fn write_back(&mut self, entry: Entry) {
        self.writing.insert(entry.id(), Places::default());
        let write_set = self.replication.write_set(entry.id().get());
        let taking = write_set.filter(|place| !self.refusing.contains_key(place));
        self.writes.extend(taking.map(|place| (place, entry.clone())));
    }

    /// Fails if an entry that is being written back can no longer reach an ack quorum.
    fn check_writable(&self) -> Result<(), RecoveryError> {
        let refusing: Places = self.refusing.keys().copied().collect();
        let possible = |(entry, written): (&EntryId, &Places)| {
            let still: Places = (0..self.replication.ensemble())
                .filter(|place| written.contains(*place) || !refusing.contains(*place))
                .collect();
            self.replication.is_written(entry.get(), still)
        };
        if self.writing.iter().all(possible) {
            return Ok(());
        }
        Err(RecoveryError::NotWritten(named(&self.fragment, &self.refusing)))
    }
}
