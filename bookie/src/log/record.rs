//! One record as bytes.
//!
//! | offset | bytes | what, little-endian |
//! |---|---|---|
//! | 0 | 4 | CRC32C of log, segment and offset (not stored), then of all that follows here |
//! | 4 | 4 | payload length |
//! | 8 | 1 | kind |
//! | 9 | 1 | flags: 1 if it is the last of its batch; no other is known yet |
//! | 10 | 2 | zero |
//! | 12 | 4 | offset of the first record of its batch |
//! | 16 | 8 | sequence number of its batch, from 1 |
//! | 24 | | payload, then zeros up to a multiple of 8 |
//!
//! Behind the last record of a batch are zeros up to a multiple of [`BLOCK_BYTES`], where the next
//! batch begins.

use bytes::{Buf, BufMut};
use uuid::Uuid;

use super::SegmentNumber;
use super::buffer::Buffer;
use crate::disk::BLOCK_BYTES;

/// The longest payload of a record.
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;

pub(super) const HEADER_BYTES: usize = 24;
/// Every record begins at a multiple of this.
pub(super) const ALIGNMENT: usize = 8;
pub(super) const FLAG_LAST: u8 = 1;

/// What the checksums of a segment's records begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(log: Uuid, segment: SegmentNumber) -> Self {
        let seed = crc32c::crc32c(log.as_bytes());
        Self(crc32c::crc32c_append(seed, &segment.0.to_le_bytes()))
    }

    /// Computes the checksum of a record that is stored at an offset as these bytes.
    pub(super) fn checksum(self, offset: u32, stored: &[u8]) -> u32 {
        let seed = crc32c::crc32c_append(self.0, &offset.to_le_bytes());
        crc32c::crc32c_append(seed, &stored[4..])
    }
}

/// The batch that a record was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) sequence: u64,
    /// Offset of its first record.
    pub(super) start: u32,
}

/// A record's header without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) payload_bytes: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) batch: Batch,
}

impl Header {
    /// Reads the header of the record that may begin at `offset`.
    ///
    /// `None` if no record looks like that. Otherwise [`is_valid`] has the last word.
    pub(super) fn parse(mut bytes: &[u8], offset: u32) -> Option<Self> {
        if bytes.len() < HEADER_BYTES {
            return None;
        }
        bytes.advance(4);
        let payload_bytes = bytes.get_u32_le();
        let (kind, flags) = (bytes.get_u8(), bytes.get_u8());
        bytes.advance(2);
        let batch = Batch { start: bytes.get_u32_le(), sequence: bytes.get_u64_le() };
        let plausible = payload_bytes as usize <= PAYLOAD_BYTES_MAX
            && batch.start <= offset
            && batch.sequence > 0;
        plausible.then_some(Self { payload_bytes, kind, flags, batch })
    }
}

/// Tells whether these bytes are the record that was written at this offset.
pub(super) fn is_valid(seed: Seed, offset: u32, stored: &[u8]) -> bool {
    stored.len() >= HEADER_BYTES && (&stored[..4]).get_u32_le() == seed.checksum(offset, stored)
}

/// Tells how much room a record takes.
pub(super) fn stored_bytes(payload_bytes: usize) -> usize {
    (HEADER_BYTES + payload_bytes).next_multiple_of(ALIGNMENT)
}

/// Tells the length of a payload or a batch, which are limited, in the size that is stored.
pub(super) fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("payloads and batches are limited")
}

/// Adds a record to the buffer of its batch, which is written at the batch's start.
pub(super) fn encode(buffer: &mut Buffer, seed: Seed, header: Header, payload: &[u8]) {
    let begin = buffer.bytes().len();
    let offset = header.batch.start + length(buffer.bytes());
    let mut bytes = [0; HEADER_BYTES];
    let mut fields = &mut bytes[4..];
    fields.put_u32_le(header.payload_bytes);
    fields.put_u8(header.kind);
    fields.put_u8(header.flags);
    fields.put_u16_le(0);
    fields.put_u32_le(header.batch.start);
    fields.put_u64_le(header.batch.sequence);
    buffer.push(&bytes);
    buffer.push(payload);
    buffer.pad(ALIGNMENT);
    let stored = &mut buffer.bytes_mut()[begin..];
    let checksum = seed.checksum(offset, stored);
    stored[..4].copy_from_slice(&checksum.to_le_bytes());
}

/// Tells where the next record begins.
pub(super) fn end(header: Header, offset: u32) -> u32 {
    let bytes = stored_bytes(header.payload_bytes as usize);
    let alignment = if header.flags & FLAG_LAST == 0 { ALIGNMENT } else { BLOCK_BYTES };
    let end = (offset as usize + bytes).next_multiple_of(alignment);
    u32::try_from(end).expect("segments are limited")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seed() -> Seed {
        Seed::new(Uuid::from_u128(7), SegmentNumber(3))
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>, offset: u32) {
            if let Some(header) = Header::parse(&bytes, offset) {
                prop_assert!(header.payload_bytes as usize <= PAYLOAD_BYTES_MAX);
            }
            prop_assert!(!is_valid(seed(), offset, &bytes));
        }

        #[test]
        fn a_record_is_valid_at_its_place_only(
            payload: Vec<u8>, kind: u8, sequence in 1u64.., block in 0u32..1 << 16,
        ) {
            let start = block * length(&[0; BLOCK_BYTES]);
            let batch = Batch { sequence, start };
            let mut buffer = Buffer::new(1 << 20);
            let before = Header { payload_bytes: 6, kind: 0, flags: 0, batch };
            encode(&mut buffer, seed(), before, b"before");
            let first = buffer.bytes().len();
            let payload_bytes = length(&payload);
            let header = Header { payload_bytes, kind, flags: FLAG_LAST, batch };
            encode(&mut buffer, seed(), header, &payload);
            let (stored, offset) = (&buffer.bytes()[first..], start + length(&buffer.bytes()[..first]));

            prop_assert_eq!(Header::parse(stored, offset).unwrap(), header);
            prop_assert_eq!(stored_bytes(payload.len()), stored.len());
            prop_assert_eq!(end(before, start), start + length(&buffer.bytes()[..first]));
            prop_assert_eq!(end(header, offset) as usize % BLOCK_BYTES, 0);
            prop_assert!(is_valid(seed(), offset, stored));
            prop_assert!(!is_valid(seed(), offset + 8, stored));
            for other in [
                Seed::new(Uuid::from_u128(8), SegmentNumber(3)),
                Seed::new(Uuid::from_u128(7), SegmentNumber(4)),
            ] {
                prop_assert!(!is_valid(other, offset, stored));
            }
        }
    }
}
