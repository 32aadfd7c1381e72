//! The writer's ensemble change: gives the places whose bookies have failed other bookies, from
//! the first entry that is not confirmed on.
//!
//! While the compare-and-set is with the metastore, and as long as it is not known whether it took
//! effect, both ensembles may be the one that recoveries and readers will find. So an entry
//! counts only on places that are the same in both: what the replaced bookies have acknowledged
//! is taken back, and their replacements are sent nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Phase, Standing, Writer};
use crate::{BookieId, EntryId, Fragment, LedgerMetadata, MetadataVersion, Places, Tenure};

/// An ensemble change that may land at any moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Change {
    replacements: BTreeMap<usize, BookieId>,
    /// The last fragment that it makes.
    fragment: Fragment,
}

impl Writer {
    /// Returns the places whose bookies have failed and are not being replaced.
    pub fn lacking(&self) -> Places {
        let lacking = |&place: &usize| {
            let failed = matches!(self.places[place].standing, Standing::Failed(_));
            failed && !self.is_being_replaced(place)
        };
        (0..self.places.len()).filter(lacking).collect()
    }

    /// Says whether bookies are sought for the places that lack one.
    pub fn is_choosing(&self) -> bool {
        self.phase == Phase::Writing && self.choosing
    }

    /// Returns the bookies that have refused entries of this ledger for a reason that stays.
    pub const fn refused(&self) -> &BTreeSet<BookieId> {
        &self.refused
    }

    /// Takes bookies for some of the places that lack one. The bookie of such a place itself says
    /// that it has come back; during a change only such are taken.
    ///
    /// A bookie that stands at another place, or that has refused this ledger, is not taken. While
    /// none is taken they are still sought.
    pub fn on_chosen(&mut self, chosen: &BTreeMap<usize, BookieId>) {
        if self.phase != Phase::Writing {
            return;
        }
        let lacking = self.lacking();
        let ensemble = &self.metadata.last_fragment().ensemble;
        let may_change = self.change.is_none() && self.full.is_none();
        let mut replacements = BTreeMap::new();
        let mut back = Places::default();
        for (&place, bookie) in chosen {
            if !lacking.contains(place) || self.refused.contains(bookie) {
                continue;
            }
            let taken = ensemble.contains(bookie) || replacements.values().any(|b| b == bookie);
            if ensemble[place] == *bookie {
                back.insert(place);
            } else if may_change && !taken {
                replacements.insert(place, *bookie);
            }
        }
        self.choosing &= back == Places::default() && replacements.is_empty();
        self.take_on(back);
        if !replacements.is_empty() {
            let replaced: Places = replacements.keys().copied().collect();
            for pending in &mut self.pending {
                replaced.iter().for_each(|place| pending.acknowledged.remove(place));
            }
            self.change = Some(self.change_to(replacements));
        }
        self.go_on();
    }

    /// Says whether what the place acknowledges may not be in the ensemble that will be found.
    pub(super) fn is_being_replaced(&self, place: usize) -> bool {
        self.change.as_ref().is_some_and(|change| change.replacements.contains_key(&place))
    }

    /// Has bookies sought for the places that lack one, unless they are. A place that fails during
    /// a change can get another bookie only by the next, but may get its own back before.
    pub(super) fn choose(&mut self) {
        let lacking = self.lacking() != Places::default();
        if self.phase == Phase::Writing && lacking && !self.choosing {
            self.actions.push_back(Action::Choose);
        }
        self.choosing = lacking;
    }

    /// Returns the metadata with the change.
    pub(super) fn changed(&self) -> LedgerMetadata {
        let mut metadata = self.metadata.clone();
        if let Some(Change { fragment, .. }) = &self.change {
            let Fragment { first, length_before, ensemble } = fragment.clone();
            metadata.change_ensemble(first, length_before, ensemble);
        }
        metadata
    }

    /// Takes the new ensemble, which is in the metastore.
    pub(super) fn change_won(&mut self, version: MetadataVersion) {
        self.metadata = self.changed();
        self.version = version;
        self.land();
    }

    /// Takes metadata of our open ledger that was read after a compare-and-set did not win, or for
    /// another reason. Returns false if somebody else has changed the ensemble: then the ledger is
    /// not ours to write any more, and likewise if the metastore has gone back in time.
    pub(super) fn learn(&mut self, version: MetadataVersion, metadata: LedgerMetadata) -> bool {
        self.unsettled = false;
        if version <= self.version {
            // The same proves nothing: what was not answered may still land, and is tried again.
            return version == self.version;
        }
        let found = metadata.last_fragment();
        let landed = self.change.as_ref().is_some_and(|change| change.fragment == *found);
        let ours = landed || *found == *self.metadata.last_fragment();
        if !ours {
            return false;
        }
        (self.version, self.metadata) = (version, metadata);
        if landed {
            self.land();
        } else if let Some(change) = self.change.take() {
            // Re-replication has changed earlier fragments, and the change can land no more.
            self.change = Some(self.change_to(change.replacements));
        }
        true
    }

    /// Makes the change to other bookies from the first entry that is not confirmed on.
    fn change_to(&self, replacements: BTreeMap<usize, BookieId>) -> Change {
        let mut ensemble = self.metadata.last_fragment().ensemble.clone();
        for (&place, &bookie) in &replacements {
            ensemble[place] = bookie;
        }
        let first = EntryId::after(self.last_add_confirmed);
        let fragment = Fragment { first, length_before: self.confirmed_length, ensemble };
        Change { replacements, fragment }
    }

    /// Ends the change: the metadata has the new ensemble. Places that failed meanwhile may now get
    /// other bookies, so these are sought anew.
    fn land(&mut self) {
        self.choosing = false;
        if let Some(change) = self.change.take() {
            self.take_on(change.replacements.keys().copied().collect());
        }
    }

    /// Begins a tenure at each of the places, and sends it what is not confirmed.
    fn take_on(&mut self, places: Places) {
        for place in places.iter() {
            let Tenure(tenure) = self.places[place].tenure;
            self.places[place].tenure = Tenure(tenure + 1);
            self.places[place].standing = Standing::Live;
            // The bookie there may know nothing yet.
            self.told = None;
        }
        for at in 0..self.pending.len() {
            let (entry, acknowledged) =
                (self.pending[at].entry.clone(), self.pending[at].acknowledged);
            for place in self.metadata.replication.write_set(entry.id().get()) {
                if places.contains(place) && !acknowledged.contains(place) {
                    self.send(place, &entry);
                }
            }
        }
    }
}
