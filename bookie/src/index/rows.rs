//! The rows that are not runs: the mark, the segments and the ledgers.
//!
//! Each value is a protobuf message behind a checksum, which is over the key too.

use std::collections::BTreeMap;
use std::fmt::Display;

use bytes::Bytes;
use inkfast_protocol::{EntryId, LedgerId, WriterId};
use prost::Message;
use redb::{ReadableTable, Table, TableDefinition};
use uuid::Uuid;

use super::needs::Needs;
use super::{Checkpoint, IndexError, SegmentInfo, StoredLedger};
use crate::log::{Mark, SegmentNumber};

/// What the index says of itself.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_MARK: &str = "mark";
/// Is there once some of the log was lost.
const META_DAMAGED: &str = "damaged";
pub(super) const SEGMENTS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("segments");
pub(super) const LEDGERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("ledgers");

pub(super) fn mark(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<Option<Mark>, IndexError> {
    let Some(row) = meta.get(META_MARK)? else { return Ok(None) };
    let row: MarkRow = open(META_MARK.as_bytes(), row.value(), "the mark")?;
    let segment = SegmentNumber(row.segment);
    Ok(Some(Mark { segment, offset: row.offset, sequence: row.sequence }))
}

pub(super) fn set_mark(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
    mark: Mark,
) -> Result<(), IndexError> {
    let Mark { segment, offset, sequence } = mark;
    let row = MarkRow { segment: segment.0, offset, sequence };
    meta.insert(META_MARK, close(META_MARK.as_bytes(), &row).as_slice())?;
    Ok(())
}

pub(super) fn is_damaged(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> Result<bool, IndexError> {
    Ok(meta.get(META_DAMAGED)?.is_some())
}

pub(super) fn set_damaged(
    meta: &mut Table<'_, &'static str, &'static [u8]>,
) -> Result<(), IndexError> {
    meta.insert(META_DAMAGED, [].as_slice())?;
    Ok(())
}

pub(super) fn segments(
    segments: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<BTreeMap<SegmentNumber, SegmentInfo>, IndexError> {
    let rows = segments.iter()?.map(|row| {
        let (key, row) = row?;
        let number = SegmentNumber(key.value());
        let row: SegmentRow = open(&number.0.to_le_bytes(), row.value(), number)?;
        let SegmentRow { bytes, live_bytes, verified_at_ms, states } = row;
        Ok((number, SegmentInfo { bytes, live_bytes, states, verified_at_ms }))
    });
    rows.collect()
}

/// Makes the rows those of the segments of a checkpoint, and returns them.
pub(super) fn set_segments(
    table: &mut Table<'_, u32, &'static [u8]>,
    checkpoint: &Checkpoint,
    needs: &Needs,
) -> Result<BTreeMap<SegmentNumber, SegmentInfo>, IndexError> {
    let old = segments(table)?;
    let Checkpoint { segments, verified, .. } = checkpoint;
    for number in old.keys().filter(|number| !segments.contains_key(number)) {
        table.remove(number.0)?;
    }
    let mut new = BTreeMap::new();
    for (&number, &bytes) in segments {
        let mut info = old.get(&number).copied().unwrap_or_default();
        info.bytes = bytes;
        info.verified_at_ms = verified.get(&number).copied().or(info.verified_at_ms);
        needs.apply(number, &mut info)?;
        if old.get(&number) != Some(&info) {
            let SegmentInfo { bytes, live_bytes, states, verified_at_ms } = info;
            let row = SegmentRow { bytes, live_bytes, verified_at_ms, states };
            table.insert(number.0, close(&number.0.to_le_bytes(), &row).as_slice())?;
        }
        new.insert(number, info);
    }
    Ok(new)
}

/// Sets the row of a ledger.
pub(super) fn set_ledger(
    ledgers: &mut Table<'_, u64, &'static [u8]>,
    id: LedgerId,
    new: &StoredLedger,
    needs: &mut Needs,
) -> Result<(), IndexError> {
    let row = close(&id.get().to_le_bytes(), &LedgerRow::from(new));
    let old = ledgers.insert(id.get(), row.as_slice())?;
    let old = old.map(|row| ledger(id.get(), row.value())).transpose()?;
    let before = old.map(|(_, ledger)| ledger.state_segments).unwrap_or_default();
    needs.states(&before, &new.state_segments);
    Ok(())
}

/// Opens the row of a ledger.
pub(super) fn ledger(id: u64, row: &[u8]) -> Result<(LedgerId, StoredLedger), IndexError> {
    let row: LedgerRow = open(&id.to_le_bytes(), row, format_args!("ledger {id}"))?;
    let opened = LedgerId::new(id).zip(row.parse());
    opened.ok_or_else(|| IndexError::Damaged(format!("the row of ledger {id} is of none")))
}

/// Puts a checksum before a value, which is also over the key that it belongs to.
pub(super) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(key), value);
    [checksum.to_le_bytes().as_slice(), value].concat()
}

/// Takes a value out of its seal; none if it is not as it was written, or not at its place.
pub(super) fn unseal<'v>(key: &[u8], sealed: &'v [u8]) -> Option<&'v [u8]> {
    let (checksum, value) = sealed.split_first_chunk()?;
    let expected = crc32c::crc32c_append(crc32c::crc32c(key), value);
    (u32::from_le_bytes(*checksum) == expected).then_some(value)
}

fn close(key: &[u8], row: &impl Message) -> Vec<u8> {
    seal(key, &row.encode_to_vec())
}

fn open<M: Message + Default>(
    key: &[u8],
    sealed: &[u8],
    what: impl Display,
) -> Result<M, IndexError> {
    let row = unseal(key, sealed).and_then(|row| M::decode(row).ok());
    row.ok_or_else(|| IndexError::Damaged(format!("the row of {what} is not as it was written")))
}

#[derive(Message)]
struct MarkRow {
    #[prost(uint32, tag = "1")]
    segment: u32,
    #[prost(uint32, tag = "2")]
    offset: u32,
    #[prost(uint64, tag = "3")]
    sequence: u64,
}

#[derive(Message)]
struct SegmentRow {
    #[prost(uint32, tag = "1")]
    bytes: u32,
    #[prost(uint32, tag = "2")]
    live_bytes: u32,
    #[prost(uint64, optional, tag = "3")]
    verified_at_ms: Option<u64>,
    #[prost(uint32, tag = "4")]
    states: u32,
}

#[derive(Message)]
struct LedgerRow {
    #[prost(bytes = "bytes", optional, tag = "1")]
    writer: Option<Bytes>,
    #[prost(bytes = "bytes", tag = "2")]
    fragment: Bytes,
    #[prost(bool, tag = "3")]
    fenced: bool,
    #[prost(bool, tag = "4")]
    deleted: bool,
    #[prost(uint64, optional, tag = "5")]
    last_add_confirmed: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    first: Option<u64>,
    #[prost(uint64, optional, tag = "7")]
    last: Option<u64>,
    #[prost(uint32, repeated, tag = "8")]
    state_segments: Vec<u32>,
}

impl From<&StoredLedger> for LedgerRow {
    fn from(ledger: &StoredLedger) -> Self {
        let (writer, fragment) = ledger.writer.clone().unzip();
        Self {
            writer: writer.map(|WriterId(id)| Bytes::copy_from_slice(id.as_bytes())),
            fragment: fragment.unwrap_or_default(),
            fenced: ledger.fenced,
            deleted: ledger.deleted,
            last_add_confirmed: ledger.last_add_confirmed.map(EntryId::get),
            first: ledger.first.map(EntryId::get),
            last: ledger.last.map(EntryId::get),
            state_segments: ledger.state_segments.iter().map(|segment| segment.0).collect(),
        }
    }
}

impl LedgerRow {
    fn parse(self) -> Option<StoredLedger> {
        let writer = match self.writer {
            Some(id) => Some((WriterId(Uuid::from_slice(&id).ok()?), self.fragment)),
            None => None,
        };
        Some(StoredLedger {
            writer,
            fenced: self.fenced,
            deleted: self.deleted,
            last_add_confirmed: self.last_add_confirmed.map(EntryId::new),
            first: self.first.map(EntryId::new),
            last: self.last.map(EntryId::new),
            state_segments: self.state_segments.into_iter().map(SegmentNumber).collect(),
        })
    }
}
