//! What is needed of each segment, as a commit changes it.

use std::collections::{BTreeMap, BTreeSet};

use super::{IndexError, SegmentInfo};
use crate::log::{Place, SegmentNumber};

/// By how much what is needed of segments becomes more or less.
#[derive(Default)]
pub(super) struct Needs(BTreeMap<SegmentNumber, Change>);

#[derive(Clone, Copy, Default)]
struct Change {
    bytes: i64,
    states: i64,
}

impl Needs {
    /// Notes that an entry is found at a place from now on.
    pub(super) fn found(&mut self, place: Place) {
        self.of(place.segment).bytes += i64::from(place.stored_bytes());
    }

    /// Notes that no entry is found at a place any more.
    pub(super) fn gone(&mut self, place: Place) {
        self.of(place.segment).bytes -= i64::from(place.stored_bytes());
    }

    /// Notes where the records of a ledger are that are no entries, and where they were before.
    pub(super) fn states(
        &mut self,
        before: &BTreeSet<SegmentNumber>,
        after: &BTreeSet<SegmentNumber>,
    ) {
        before.difference(after).for_each(|segment| self.of(*segment).states -= 1);
        after.difference(before).for_each(|segment| self.of(*segment).states += 1);
    }

    /// Changes what is known of a segment.
    pub(super) fn apply(
        &self,
        number: SegmentNumber,
        info: &mut SegmentInfo,
    ) -> Result<(), IndexError> {
        let Change { bytes, states } = self.0.get(&number).copied().unwrap_or_default();
        let sum = |now: u32, more| u32::try_from(i64::from(now) + more);
        let sums = sum(info.live_bytes, bytes).ok().zip(sum(info.states, states).ok());
        (info.live_bytes, info.states) = sums.ok_or_else(|| {
            IndexError::Damaged(format!("it has counted wrong what is needed of {number}"))
        })?;
        Ok(())
    }

    fn of(&mut self, segment: SegmentNumber) -> &mut Change {
        self.0.entry(segment).or_default()
    }
}
