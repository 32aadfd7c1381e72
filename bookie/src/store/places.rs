//! Where the entries of a ledger are.

use inkfast_protocol::EntryId;

use crate::log::Place;

/// Places in the order of their entries: mostly, a new one is the last.
#[derive(Default)]
pub(super) struct Places(Vec<(EntryId, Place)>);

impl Places {
    pub(super) fn get(&self, entry: EntryId) -> Option<Place> {
        self.0.binary_search_by_key(&entry, |(id, _)| *id).ok().map(|index| self.0[index].1)
    }

    /// Notes where an entry is, in place of what was noted before.
    pub(super) fn insert(&mut self, entry: EntryId, place: Place) {
        if self.last() < Some(entry) {
            return self.0.push((entry, place));
        }
        match self.0.binary_search_by_key(&entry, |(id, _)| *id) {
            Ok(index) => self.0[index].1 = place,
            Err(index) => self.0.insert(index, (entry, place)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns all of them.
    pub(super) fn as_slice(&self) -> &[(EntryId, Place)] {
        &self.0
    }

    /// Returns the highest entry.
    pub(super) fn last(&self) -> Option<EntryId> {
        self.0.last().map(|(entry, _)| *entry)
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
            prop_assert_eq!(places.last(), map.last_key_value().map(|(entry, _)| *entry));
        }
    }
}
