//! One record as bytes.
//!
//! | offset | bytes | what, little-endian |
//! |---|---|---|
//! | 0 | 4 | CRC32C of log, segment, life and offset (not stored), then of all that follows here |
//! | 4 | 4 | payload length |
//! | 8 | 1 | kind |
//! | 9 | 1 | flags: none are known yet |
//! | 10 | 2 | zero |
//! | 12 | 4 | offset of the first record of its batch |
//! | 16 | 8 | sequence number of its batch, from 1 |
//! | 24 | | payload, then zeros up to a multiple of 8 |

use bytes::{Buf, BufMut};
use uuid::Uuid;

use super::SegmentNumber;

/// The longest payload of a record.
pub const PAYLOAD_BYTES_MAX: usize = 2 << 20;

pub(super) const HEADER_BYTES: usize = 24;
/// Every record begins at a multiple of this.
pub(super) const ALIGNMENT: usize = 8;

/// What the checksums of a segment's records begin with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(log: Uuid, segment: SegmentNumber, life: u32) -> Self {
        let seed = crc32c::crc32c(log.as_bytes());
        let seed = crc32c::crc32c_append(seed, &segment.0.to_le_bytes());
        Self(crc32c::crc32c_append(seed, &life.to_le_bytes()))
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
pub(super) fn encode(buffer: &mut Vec<u8>, seed: Seed, batch: Batch, kind: u8, payload: &[u8]) {
    let begin = buffer.len();
    let offset = batch.start + length(buffer);
    buffer.put_u32_le(0);
    buffer.put_u32_le(length(payload));
    buffer.put_u8(kind);
    buffer.put_bytes(0, 3);
    buffer.put_u32_le(batch.start);
    buffer.put_u64_le(batch.sequence);
    buffer.put_slice(payload);
    buffer.resize(begin + stored_bytes(payload.len()), 0);

    let checksum = seed.checksum(offset, &buffer[begin..]);
    buffer[begin..begin + 4].copy_from_slice(&checksum.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seed() -> Seed {
        Seed::new(Uuid::from_u128(7), SegmentNumber(3), 1)
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
            payload: Vec<u8>, kind: u8, sequence in 1u64.., start in 0u32..1 << 28,
        ) {
            let batch = Batch { sequence, start };
            let mut buffer = Vec::new();
            encode(&mut buffer, seed(), batch, 0, b"before");
            let first = buffer.len();
            encode(&mut buffer, seed(), batch, kind, &payload);
            let (stored, offset) = (&buffer[first..], start + length(&buffer[..first]));

            let header = Header::parse(stored, offset).unwrap();
            let payload_bytes = length(&payload);
            prop_assert_eq!(header, Header { payload_bytes, kind, flags: 0, batch });
            prop_assert_eq!(stored_bytes(payload.len()), stored.len());
            prop_assert!(is_valid(seed(), offset, stored));
            prop_assert!(!is_valid(seed(), offset + 8, stored));
            for other in [
                Seed::new(Uuid::from_u128(8), SegmentNumber(3), 1),
                Seed::new(Uuid::from_u128(7), SegmentNumber(4), 1),
                Seed::new(Uuid::from_u128(7), SegmentNumber(3), 2),
            ] {
                prop_assert!(!is_valid(other, offset, stored));
            }
        }
    }
}
