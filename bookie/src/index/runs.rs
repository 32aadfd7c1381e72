//! The entries of a ledger, many to a row.
//!
//! A row is a *run*: entries in ascending order, each with its place, under the ledger and the last
//! of them. No two runs of a ledger overlap, so the first run that ends at or behind an entry is
//! the only one that can have it. A run that is full is split into halves, and new entries behind
//! the last run join it as long as it is short.

use inkfast_protocol::{EntryId, LedgerId};
use redb::{ReadableTable, Table, TableDefinition};

use super::IndexError;
use super::needs::Needs;
use super::rows::{seal, unseal};
use crate::log::{Place, SegmentNumber};

pub(super) type RunKey = (u64, u64);
pub(super) const RUNS: TableDefinition<'_, RunKey, &[u8]> = TableDefinition::new("runs");

/// The most entries of a run.
pub(super) const RUN_ENTRIES_MAX: usize = 256;
/// The last run of a ledger is added to until it has so many: fewer rows for ledgers that grow
/// slowly, and not too much that is written again.
const SHORT_RUN_ENTRIES: usize = 128;

/// One run, decoded.
pub(super) struct Run {
    key: RunKey,
    pub(super) entries: Vec<(EntryId, Place)>,
}

/// Finds the run that has an entry, if any has: the first that ends there or behind it.
pub(super) fn at_or_behind(
    runs: &impl ReadableTable<RunKey, &'static [u8]>,
    ledger: LedgerId,
    entry: EntryId,
) -> Result<Option<Run>, IndexError> {
    let found = runs.range((ledger.get(), entry.get())..=(ledger.get(), u64::MAX))?.next();
    found.transpose()?.map(|(key, row)| Run::open(key.value(), row.value())).transpose()
}

/// Adds entries, ascending, to those of a ledger; one that is there gets its new place.
pub(super) fn add(
    runs: &mut Table<'_, RunKey, &'static [u8]>,
    ledger: LedgerId,
    mut new: &[(EntryId, Place)],
    needs: &mut Needs,
) -> Result<(), IndexError> {
    new.iter().for_each(|(_, place)| needs.found(*place));
    while let Some(&(first, _)) = new.first() {
        let (run, count) = match at_or_behind(runs, ledger, first)? {
            Some(run) => {
                let count = new.partition_point(|(entry, _)| *entry <= run.last());
                (Some(run), count)
            }
            None => (last(runs, ledger)?.filter(Run::is_short), new.len()),
        };
        let (joining, rest) = new.split_at(count);
        let mut entries = Vec::new();
        if let Some(run) = run {
            runs.remove(run.key)?;
            entries = run.entries;
        }
        merge(&mut entries, joining, |moved_from| needs.gone(moved_from));
        let rows = entries.len().div_ceil(RUN_ENTRIES_MAX);
        for entries in entries.chunks(entries.len().div_ceil(rows)) {
            let (key, row) = close(ledger, entries);
            runs.insert(key, row.as_slice())?;
        }
        new = rest;
    }
    Ok(())
}

/// Removes all entries of a ledger.
pub(super) fn remove(
    runs: &mut Table<'_, RunKey, &'static [u8]>,
    ledger: LedgerId,
    needs: &mut Needs,
) -> Result<(), IndexError> {
    let mut unreadable = None;
    runs.retain_in((ledger.get(), 0)..=(ledger.get(), u64::MAX), |key, row| {
        match Run::open(key, row) {
            Ok(run) => run.entries.iter().for_each(|(_, place)| needs.gone(*place)),
            Err(error) => unreadable = Some(error),
        }
        false
    })?;
    unreadable.map_or(Ok(()), Err)
}

fn last(
    runs: &impl ReadableTable<RunKey, &'static [u8]>,
    ledger: LedgerId,
) -> Result<Option<Run>, IndexError> {
    let found = runs.range((ledger.get(), 0)..=(ledger.get(), u64::MAX))?.next_back();
    found.transpose()?.map(|(key, row)| Run::open(key.value(), row.value())).transpose()
}

/// Merges what is ascending into what is ascending, and tells from where entries were moved.
fn merge(
    entries: &mut Vec<(EntryId, Place)>,
    new: &[(EntryId, Place)],
    mut moved_from: impl FnMut(Place),
) {
    entries.extend_from_slice(new);
    // Stable, and quick with two ascending halves.
    entries.sort_by_key(|(entry, _)| *entry);
    entries.dedup_by(|later, earlier| {
        let same = later.0 == earlier.0;
        if same {
            moved_from(earlier.1);
            *earlier = *later;
        }
        same
    });
}

impl Run {
    fn open(key: RunKey, row: &[u8]) -> Result<Self, IndexError> {
        let entries = unseal(&key_bytes(key), row).and_then(decode).ok_or_else(|| {
            IndexError::Damaged(format!(
                "the row of ledger {} up to entry {} is not as it was written",
                key.0, key.1
            ))
        })?;
        Ok(Self { key, entries })
    }

    /// Returns the last of its entries.
    pub(super) const fn last(&self) -> EntryId {
        EntryId::new(self.key.1)
    }

    /// Finds an entry.
    pub(super) fn find(&self, entry: EntryId) -> Option<Place> {
        let found = self.entries.binary_search_by_key(&entry, |(entry, _)| *entry).ok()?;
        Some(self.entries[found].1)
    }

    fn is_short(&self) -> bool {
        self.entries.len() < SHORT_RUN_ENTRIES
    }
}

fn close(ledger: LedgerId, entries: &[(EntryId, Place)]) -> (RunKey, Vec<u8>) {
    let last = entries.last().map_or(0, |(entry, _)| entry.get());
    let key = (ledger.get(), last);
    (key, seal(&key_bytes(key), &encode(entries)))
}

fn key_bytes((ledger, last): RunKey) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&ledger.to_le_bytes());
    bytes[8..].copy_from_slice(&last.to_le_bytes());
    bytes
}

/// What follows an entry as a rule has no bits set: the next entry, in the same segment, as long as
/// the one before.
const SKIPS: u8 = 1;
const OTHER_SEGMENT: u8 = 2;
const OTHER_LENGTH: u8 = 4;

/// Encodes entries: for each a byte that says what differs from the entry before, how many entries
/// were skipped, how the segment's number and the length differ, if they do; and how far behind the
/// end of the payload before it lies.
fn encode(entries: &[(EntryId, Place)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(entries.len() * 4);
    let mut before = Before::default();
    for (entry, place) in entries {
        let skipped = entry.get() - before.next_entry;
        let segment = i64::from(place.segment.0) - before.segment;
        let length = i64::from(place.payload_bytes) - before.payload_bytes;
        let flag = |set, flag| if set { flag } else { 0 };
        bytes.push(
            flag(skipped != 0, SKIPS)
                | flag(segment != 0, OTHER_SEGMENT)
                | flag(length != 0, OTHER_LENGTH),
        );
        if skipped != 0 {
            put_varint(&mut bytes, skipped);
        }
        for difference in [segment, length].into_iter().filter(|difference| *difference != 0) {
            put_varint(&mut bytes, zigzag(difference));
        }
        put_varint(&mut bytes, zigzag(i64::from(place.offset) - before.end()));
        before = Before::of(*entry, *place);
    }
    bytes
}

fn decode(mut bytes: &[u8]) -> Option<Vec<(EntryId, Place)>> {
    let mut entries = Vec::with_capacity(RUN_ENTRIES_MAX.min(bytes.len() / 2));
    let mut before = Before::default();
    while let Some((flags, rest)) = bytes.split_first() {
        bytes = rest;
        let mut value = |flag| if flags & flag == 0 { Some(0) } else { take_varint(&mut bytes) };
        let skipped = value(SKIPS)?;
        let segment = before.segment.checked_add(unzigzag(value(OTHER_SEGMENT)?))?;
        let length = before.payload_bytes.checked_add(unzigzag(value(OTHER_LENGTH)?))?;
        let offset = before.end().checked_add(unzigzag(take_varint(&mut bytes)?))?;
        let entry = EntryId::new(before.next_entry.checked_add(skipped)?);
        let place = Place {
            segment: SegmentNumber(segment.try_into().ok()?),
            offset: offset.try_into().ok()?,
            payload_bytes: length.try_into().ok()?,
        };
        entries.push((entry, place));
        before = Before::of(entry, place);
    }
    Some(entries)
}

/// What an entry is compared with.
#[derive(Default)]
struct Before {
    next_entry: u64,
    segment: i64,
    offset: i64,
    payload_bytes: i64,
}

impl Before {
    fn of(entry: EntryId, place: Place) -> Self {
        Self {
            next_entry: entry.next().get(),
            segment: place.segment.0.into(),
            offset: place.offset.into(),
            payload_bytes: place.payload_bytes.into(),
        }
    }

    const fn end(&self) -> i64 {
        self.offset + self.payload_bytes
    }
}

/// Makes small numbers of small differences: 0, -1, 1, -2 become 0, 1, 2, 3.
const fn zigzag(difference: i64) -> u64 {
    ((difference << 1) ^ (difference >> 63)).cast_unsigned()
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Puts seven bits a byte, the lowest first; all bytes but the last have the eighth bit set.
fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = number.to_le_bytes()[0] & 0x7f;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index as Choice;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            if let Some(entries) = decode(&bytes) {
                prop_assert!(entries.len() <= bytes.len());
            }
            prop_assert!(Run::open((7, 9), &bytes).is_err());
        }

        #[test]
        fn a_changed_row_is_none(steps in prop::collection::vec(1_u64..300, 1..50), at: Choice, flip in 1_u8..) {
            let mut entry = 0;
            let entries = steps.iter().map(|step| {
                entry += step;
                let offset = u32::try_from(entry * 64).unwrap_or(u32::MAX);
                let payload_bytes = u32::try_from(*step).unwrap_or(u32::MAX);
                (EntryId::new(entry), Place { segment: SegmentNumber::FIRST, offset, payload_bytes })
            });
            let entries: Vec<_> = entries.collect();
            let ledger = LedgerId::new(7).unwrap();
            let (key, mut row) = close(ledger, &entries);
            prop_assert_eq!(Run::open(key, &row).unwrap().entries, entries);
            prop_assert!(Run::open((key.0, key.1 + 1), &row).is_err());
            let at = at.index(row.len());
            row[at] ^= flip;
            prop_assert!(Run::open(key, &row).is_err());
            row.truncate(at);
            prop_assert!(Run::open(key, &row).is_err());
        }
    }
}
