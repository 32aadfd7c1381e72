//! The write-backs of a recovery: has an ack quorum store what was found, and replaces the bookies
//! that fail. Only the close tells the metastore of the replacements.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use super::{Action, RecoveryError, Round};
use crate::{
    BookieId, Entry, EntryId, Fragment, LedgerMetadata, Places, Refusal, Replication, Tenure,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Writing {
    replication: Replication,
    round: Round,
    ensemble: Vec<BookieId>,
    tenures: Vec<Tenure>,
    /// What was found and is not confirmed, without a gap. It is confirmed in order: replaced is
    /// an ensemble from the first of these on.
    found: VecDeque<Found>,
    /// What each bookie said that takes no write-backs, whether it has been replaced or not.
    refused: BTreeMap<BookieId, Refusal>,
    /// The places that bookies are being chosen for.
    asked: Option<Places>,
    /// The places that no bookie was found for.
    given_up: Places,
    /// The fragments that the close is to add.
    changes: Vec<Fragment>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Found {
    entry: Entry,
    /// The ledger's length before it.
    length_before: u64,
    written: Places,
}

impl Writing {
    pub(super) fn new(round: Round, replication: Replication, ensemble: Vec<BookieId>) -> Self {
        Self {
            replication,
            round,
            tenures: vec![Tenure::default(); ensemble.len()],
            ensemble,
            found: VecDeque::new(),
            refused: BTreeMap::new(),
            asked: None,
            given_up: Places::default(),
            changes: Vec::new(),
        }
    }

    /// Takes the next entry that was found, and sends it to its write set.
    pub(super) fn add(&mut self, entry: Entry, length_before: u64, actions: &mut VecDeque<Action>) {
        let write_set = self.replication.write_set(entry.id().get());
        let taking = write_set.filter(|place| !self.has_failed(*place));
        actions.extend(taking.map(|place| self.write_back(place, &entry)));
        self.found.push_back(Found { entry, length_before, written: Places::default() });
    }

    pub(super) fn on_written(
        &mut self,
        place: usize,
        tenure: Tenure,
        entries: &RangeInclusive<EntryId>,
    ) {
        if self.tenures[place] != tenure {
            return;
        }
        for found in self.found.iter_mut().filter(|found| entries.contains(&found.entry.id())) {
            found.written.insert(place);
        }
        while self.found.front().is_some_and(|lowest| {
            self.replication.is_written(lowest.entry.id().get(), lowest.written)
        }) {
            self.found.pop_front();
        }
    }

    pub(super) fn on_refused(&mut self, place: usize, tenure: Tenure, refusal: Refusal) {
        if self.tenures[place] == tenure {
            self.refused.entry(self.ensemble[place]).or_insert(refusal);
        }
    }

    /// Puts bookies to the places that lack one, from the first entry on that is not confirmed,
    /// and sends them all from there.
    pub(super) fn on_chosen(
        &mut self,
        chosen: &BTreeMap<usize, BookieId>,
        known: &LedgerMetadata,
        actions: &mut VecDeque<Action>,
    ) {
        let Some(asked) = self.asked.take() else { return };
        let lacking = self.lacking();
        let replaced = self.replace(lacking, chosen, known);
        let in_vain = |place: &usize| {
            self.given_up.contains(*place) || asked.contains(*place) && lacking.contains(*place)
        };
        self.given_up =
            (0..self.ensemble.len()).filter(in_vain).filter(|p| !replaced.contains(*p)).collect();
        for place in replaced.iter() {
            self.tenures[place].0 += 1;
        }
        for found in &mut self.found {
            replaced.iter().for_each(|place| found.written.remove(place));
        }
        for Found { entry, .. } in &self.found {
            let write_set = self.replication.write_set(entry.id().get());
            let again = write_set.filter(|place| replaced.contains(*place));
            actions.extend(again.map(|place| self.write_back(place, entry)));
        }
    }

    /// Has bookies chosen if a place lacks one for which there was none to be found; fails if
    /// there is none and too few take write-backs.
    pub(super) fn go_on(&mut self, actions: &mut VecDeque<Action>) -> Result<(), RecoveryError> {
        let lacking = self.lacking();
        if self.asked.is_none() && lacking.iter().any(|place| !self.given_up.contains(place)) {
            self.asked = Some(lacking);
            actions.push_back(Action::Choose { round: self.round });
        }
        if self.asked.is_some() || self.found.iter().all(|found| self.can_be_written(found)) {
            return Ok(());
        }
        let refused = self.refused.iter().map(|(bookie, said)| (*bookie, said.clone()));
        Err(RecoveryError::NotWritten(refused.collect()))
    }

    /// Returns the fragments that the close is to add, in order.
    pub(super) fn changes(&self) -> Vec<Fragment> {
        self.changes.clone()
    }

    /// Returns how many entries are not confirmed.
    pub(super) fn unconfirmed(&self) -> usize {
        self.found.len()
    }

    pub(super) fn ensemble(&self) -> &[BookieId] {
        &self.ensemble
    }

    pub(super) fn refused(&self) -> BTreeSet<BookieId> {
        self.refused.keys().copied().collect()
    }

    /// Returns the places that have failed and have not acknowledged all that they are to.
    pub(super) fn lacking(&self) -> Places {
        let lacks = |found: &Found, place: usize| {
            let mut write_set = self.replication.write_set(found.entry.id().get());
            !found.written.contains(place) && write_set.any(|p| p == place)
        };
        (0..self.ensemble.len())
            .filter(|&place| self.has_failed(place))
            .filter(|&place| self.found.iter().any(|found| lacks(found, place)))
            .collect()
    }

    /// Replaces what can be replaced, and says which places that is: none if the metadata would
    /// become larger than it may be.
    fn replace(
        &mut self,
        lacking: Places,
        chosen: &BTreeMap<usize, BookieId>,
        known: &LedgerMetadata,
    ) -> Places {
        let (mut ensemble, mut replaced) = (self.ensemble.clone(), Places::default());
        for (place, bookie) in chosen.iter().filter(|(place, _)| lacking.contains(**place)) {
            if !ensemble.contains(bookie) && !self.refused.contains_key(bookie) {
                ensemble[*place] = *bookie;
                replaced.insert(*place);
            }
        }
        let lowest = self.found.front().filter(|_| ensemble != self.ensemble);
        let Some(Found { entry, length_before, .. }) = lowest else { return replaced };
        let change = Fragment { first: entry.id(), length_before: *length_before, ensemble };
        let mut metadata = known.clone();
        change_all(&mut metadata, self.changes.iter().chain([&change]));
        if metadata.encode().is_err() {
            return Places::default();
        }
        self.ensemble.clone_from(&change.ensemble);
        self.changes.push(change);
        replaced
    }

    fn write_back(&self, place: usize, entry: &Entry) -> Action {
        Action::WriteBack {
            round: self.round,
            place,
            tenure: self.tenures[place],
            bookie: self.ensemble[place],
            entry: entry.clone(),
        }
    }

    /// Says whether those that have an entry and those that still take it are an ack quorum.
    fn can_be_written(&self, found: &Found) -> bool {
        let may_have = |place: &usize| found.written.contains(*place) || !self.has_failed(*place);
        let may_have = (0..self.ensemble.len()).filter(may_have).collect();
        self.replication.is_written(found.entry.id().get(), may_have)
    }

    fn has_failed(&self, place: usize) -> bool {
        self.refused.contains_key(&self.ensemble[place])
    }
}

/// Makes changes of the ensemble one after the other.
pub(super) fn change_all<'a>(
    metadata: &mut LedgerMetadata,
    changes: impl IntoIterator<Item = &'a Fragment>,
) {
    for Fragment { first, length_before, ensemble } in changes {
        metadata.change_ensemble(*first, *length_before, ensemble.clone());
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::metadata::{FORMAT_VERSION, FRAGMENTS_MAX};
    use crate::{EntryHeader, LedgerId, State, WriterId};

    fn bookie(number: u128) -> BookieId {
        BookieId(Uuid::from_u128(number))
    }

    fn entry(id: usize) -> Entry {
        let header = EntryHeader {
            ledger: LedgerId::new(7).unwrap(),
            entry: EntryId::new(id as u64),
            last_add_confirmed: None,
            length: 0,
            written_at_ms: 0,
        };
        Entry::encode(header, b"")
    }

    /// A ledger of as many fragments as it may have, an entry each.
    fn largest() -> LedgerMetadata {
        let ensemble: Vec<_> = (0..2).map(bookie).collect();
        let fragment = |number: usize| Fragment {
            first: EntryId::new(number as u64),
            length_before: 0,
            ensemble: ensemble.clone(),
        };
        LedgerMetadata {
            ledger: LedgerId::new(7).unwrap(),
            namespace: "default".to_owned(),
            owner: "client".to_owned(),
            writer: WriterId(Uuid::from_u128(1)),
            replication: Replication::new(2, 2, 1).unwrap(),
            state: State::InRecovery,
            fragments: (0..FRAGMENTS_MAX).map(fragment).collect(),
            created_at_ms: 0,
            request: None,
            custom: BTreeMap::new(),
            modifiable_from: FORMAT_VERSION,
        }
    }

    /// Finds an entry of the last fragment, has a place fail, and offers a bookie for it. Says
    /// whether that was taken.
    fn takes_a_replacement_from(entry: Entry) -> bool {
        let (metadata, mut actions) = (largest(), VecDeque::new());
        let ensemble = metadata.last_fragment().ensemble.clone();
        let mut writing = Writing::new(Round(1), metadata.replication, ensemble);
        writing.add(entry, 0, &mut actions);
        writing.on_refused(1, Tenure::default(), Refusal::Unknown("no answer".to_owned()));
        writing.go_on(&mut actions).unwrap();
        assert_eq!(actions.back(), Some(&Action::Choose { round: Round(1) }));
        writing.on_chosen(&BTreeMap::from([(1, bookie(5))]), &metadata, &mut actions);
        // As without another bookie, it goes on with those that are left.
        assert_eq!(writing.go_on(&mut actions), Ok(()));
        writing.ensemble() == [bookie(0), bookie(5)]
    }

    #[test]
    fn nothing_is_replaced_that_would_make_the_metadata_too_large() {
        assert!(takes_a_replacement_from(entry(FRAGMENTS_MAX - 1)), "it replaces the fragment");
        assert!(!takes_a_replacement_from(entry(FRAGMENTS_MAX)), "it adds one");
    }
}
