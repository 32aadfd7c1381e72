//! Where the entries of a ledger are.

use std::collections::BTreeMap;
use std::mem;

use inkfast_protocol::EntryId;

use crate::log::Place;

/// Places by entry: mostly, a new one is the last.
#[derive(Default)]
pub(super) struct Places {
    ascending: Vec<(EntryId, Place)>,
    /// Those that came behind a higher one.
    others: BTreeMap<EntryId, Place>,
}

impl Places {
    pub(super) fn get(&self, entry: EntryId) -> Option<Place> {
        let found = self.ascending.binary_search_by_key(&entry, |(id, _)| *id);
        found.map_or_else(|_| self.others.get(&entry).copied(), |at| Some(self.ascending[at].1))
    }

    /// Notes where an entry is, in place of what was noted before.
    pub(super) fn insert(&mut self, entry: EntryId, place: Place) {
        if self.ascending.last().is_none_or(|(last, _)| *last < entry) {
            return self.ascending.push((entry, place));
        }
        match self.ascending.binary_search_by_key(&entry, |(id, _)| *id) {
            Ok(at) => self.ascending[at].1 = place,
            Err(_) => drop(self.others.insert(entry, place)),
        }
    }

    /// Brings them into one order, so that [`as_slice`](Self::as_slice) has all of them.
    pub(super) fn sort(&mut self) {
        if !self.others.is_empty() {
            self.ascending.extend(mem::take(&mut self.others));
            self.ascending.sort_unstable_by_key(|(entry, _)| *entry);
        }
    }

    /// Returns all of them, once they were sorted.
    pub(super) fn as_slice(&self) -> &[(EntryId, Place)] {
        debug_assert!(self.others.is_empty(), "these were not sorted");
        &self.ascending
    }

    pub(super) fn len(&self) -> usize {
        self.ascending.len() + self.others.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::log::SegmentNumber;

    proptest! {
        #[test]
        fn it_is_a_map(notes: Vec<(u8, u32)>) {
            let (mut places, mut map) = (Places::default(), BTreeMap::new());
            for (entry, offset) in notes {
                let place = Place { segment: SegmentNumber::FIRST, offset, payload_bytes: 0 };
                places.insert(EntryId::new(entry.into()), place);
                map.insert(EntryId::new(entry.into()), place);
            }
            for entry in (0..=256).map(EntryId::new) {
                prop_assert_eq!(places.get(entry), map.get(&entry).copied());
            }
            prop_assert_eq!(places.len(), map.len());
            places.sort();
            prop_assert_eq!(places.as_slice(), map.into_iter().collect::<Vec<_>>());
        }
    }
}
