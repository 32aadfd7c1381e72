//! The layout of an entry: the bytes that the writer makes once, that bookies store as they are,
//! and that every reader verifies.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | CRC32C of everything after it |
//! | 4 | 1 | version of the layout, 1 |
//! | 5 | 1 | flags, 0; an entry with a flag that the reader does not know is refused |
//! | 6 | 2 | bytes before the payload, 52; more when fields are added, which older readers skip |
//! | 8 | 8 | ledger id |
//! | 16 | 8 | entry id |
//! | 24 | 8 | last add confirmed, plus one; 0 when none was |
//! | 32 | 8 | length of the ledger in payload bytes, this entry included |
//! | 40 | 8 | the writer's wall clock in milliseconds since 1970: for people, never for a decision |
//! | 48 | 4 | bytes of the payload |
//! | 52 | | payload |
//!
//! Numbers are little-endian.

use std::sync::Arc;
use std::{fmt, slice};

use bytes::{BufMut, Bytes, BytesMut};

use crate::{EntryId, LedgerId};

/// The most bytes that the payload of one entry may have.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;

/// The bytes before the payload.
pub const ENTRY_HEADER_BYTES: usize = 52;

const VERSION: u8 = 1;
const CRC_BYTES: usize = 4;
/// The most that later versions may put before the payload.
const HEADER_BYTES_MAX: usize = 1024;

/// The most bytes that an encoded entry may have.
pub const ENTRY_BYTES_MAX: usize = HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX;

/// What a writer says of an entry besides its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryHeader {
    /// The ledger that it belongs to.
    pub ledger: LedgerId,
    /// Its id.
    pub entry: EntryId,
    /// The highest acknowledged entry when this one was made; always below it.
    pub last_add_confirmed: Option<EntryId>,
    /// The ledger's length in payload bytes, this entry included.
    pub length: u64,
    /// The writer's wall clock in milliseconds since 1970.
    pub written_at_ms: u64,
}

/// Entries in ascending order of their ids, at least one. Cloning is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Run(Entries);

/// One by itself has no memory of its own: with many ledgers most runs are of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Entries {
    One(Entry),
    Many(Arc<[Entry]>),
}

impl Run {
    /// Makes a run of entries in ascending order; none if there is no entry, or not in order.
    pub fn new(entries: impl IntoIterator<Item = Entry>) -> Option<Self> {
        let mut entries = entries.into_iter();
        let first = entries.next()?;
        let Some(second) = entries.next() else { return Some(first.into()) };
        let entries: Arc<[Entry]> = [first, second].into_iter().chain(entries).collect();
        let is_sorted = entries.is_sorted_by(|one, next| one.id() < next.id());
        is_sorted.then_some(Self(Entries::Many(entries)))
    }

    /// Returns the entries.
    pub fn entries(&self) -> &[Entry] {
        match &self.0 {
            Entries::One(entry) => slice::from_ref(entry),
            Entries::Many(entries) => entries,
        }
    }

    /// Returns the lowest.
    pub fn first(&self) -> &Entry {
        &self.entries()[0]
    }

    /// Returns the highest.
    pub fn last(&self) -> &Entry {
        &self.entries()[self.entries().len() - 1]
    }

    /// Returns the entry of an id, if it is one of them.
    pub fn get(&self, id: EntryId) -> Option<&Entry> {
        let entries = self.entries();
        entries.binary_search_by_key(&id, Entry::id).ok().map(|index| &entries[index])
    }
}

impl From<Entry> for Run {
    fn from(entry: Entry) -> Self {
        Self(Entries::One(entry))
    }
}

/// An entry whose checksum holds: its header, its payload, and the bytes that they came in.
///
/// Cloning is cheap: the bytes are shared. Equality is that of the bytes.
#[derive(Clone)]
pub struct Entry {
    header: EntryHeader,
    header_bytes: usize,
    bytes: Bytes,
}

/// Why bytes are not an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// They are not what the writer made.
    #[error("corrupt entry: {0}")]
    Corrupt(&'static str),
    /// They were made by a newer version.
    #[error("entry of a newer version: {0}; upgrade this process")]
    TooNew(String),
}

impl Entry {
    /// Encodes an entry.
    ///
    /// # Panics
    /// If the payload is longer than [`PAYLOAD_BYTES_MAX`], or the last add confirmed is not
    /// below the entry: the writer refuses the one and never does the other.
    pub fn encode(header: EntryHeader, payload: &[u8]) -> Self {
        let mut bytes = BytesMut::with_capacity(ENTRY_HEADER_BYTES + payload.len());
        Self::encode_in(&mut bytes, header, payload)
    }

    /// Encodes an entry at the beginning of an empty buffer, to which the rest of its memory is
    /// left.
    pub(crate) fn encode_in(bytes: &mut BytesMut, header: EntryHeader, payload: &[u8]) -> Self {
        assert!(payload.len() <= PAYLOAD_BYTES_MAX, "the payload is over the limit");
        assert!(header.last_add_confirmed < Some(header.entry), "confirmed before it was made");
        bytes.put_u32_le(0);
        bytes.put_u8(VERSION);
        bytes.put_u8(0);
        bytes.put_u16_le(u16::try_from(ENTRY_HEADER_BYTES).unwrap_or(u16::MAX));
        bytes.put_u64_le(header.ledger.get());
        bytes.put_u64_le(header.entry.get());
        bytes.put_u64_le(header.last_add_confirmed.map_or(0, |lac| lac.get() + 1));
        bytes.put_u64_le(header.length);
        bytes.put_u64_le(header.written_at_ms);
        bytes.put_u32_le(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        bytes.put_slice(payload);
        let crc = crc32c::crc32c(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        Self { header, header_bytes: ENTRY_HEADER_BYTES, bytes: bytes.split().freeze() }
    }

    /// Decodes an entry and verifies it.
    pub fn decode(bytes: Bytes) -> Result<Self, EntryError> {
        if bytes.len() < ENTRY_HEADER_BYTES || bytes.len() > ENTRY_BYTES_MAX {
            return Err(EntryError::Corrupt("its size is impossible"));
        }
        if crc32c::crc32c(&bytes[CRC_BYTES..]) != u32_at(&bytes, 0) {
            return Err(EntryError::Corrupt("the checksum does not match"));
        }
        if bytes[4] != VERSION || bytes[5] != 0 {
            return Err(EntryError::TooNew(format!("version {}, flags {}", bytes[4], bytes[5])));
        }
        let header_bytes = usize::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        let payload_bytes = u32_at(&bytes, 48) as usize;
        if !(ENTRY_HEADER_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes)
            || header_bytes + payload_bytes != bytes.len()
            || payload_bytes > PAYLOAD_BYTES_MAX
        {
            return Err(EntryError::Corrupt("its parts do not add up"));
        }
        let entry = EntryId::new(u64_at(&bytes, 16));
        let header = EntryHeader {
            ledger: LedgerId::new(u64_at(&bytes, 8))
                .ok_or(EntryError::Corrupt("the ledger id is too large"))?,
            entry,
            last_add_confirmed: u64_at(&bytes, 24).checked_sub(1).map(EntryId::new),
            length: u64_at(&bytes, 32),
            written_at_ms: u64_at(&bytes, 40),
        };
        if header.last_add_confirmed >= Some(entry) || entry > EntryId::MAX {
            return Err(EntryError::Corrupt("it was confirmed before it was made"));
        }
        Ok(Self { header, header_bytes, bytes })
    }

    /// Decodes an entry, verifies it, and makes sure that it is the one that was asked for.
    pub fn decode_as(ledger: LedgerId, entry: EntryId, bytes: Bytes) -> Result<Self, EntryError> {
        let decoded = Self::decode(bytes)?;
        if decoded.header.ledger != ledger || decoded.header.entry != entry {
            return Err(EntryError::Corrupt("it is another entry"));
        }
        Ok(decoded)
    }

    /// Returns what the writer said of the entry.
    pub const fn header(&self) -> &EntryHeader {
        &self.header
    }

    /// Returns the entry's id.
    pub const fn id(&self) -> EntryId {
        self.header.entry
    }

    /// Returns what the writer appended; it shares memory with the entry.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(self.header_bytes..)
    }

    /// Returns the encoded entry, the very bytes that every bookie stores.
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Entry {}

impl std::hash::Hash for Entry {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.bytes.hash(state);
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of ledger {}", self.header.entry, self.header.ledger)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry() -> Entry {
        let header = EntryHeader {
            ledger: LedgerId::new(7).unwrap(),
            entry: EntryId::new(3),
            last_add_confirmed: Some(EntryId::new(1)),
            length: 40,
            written_at_ms: 5,
        };
        Entry::encode(header, b"payload")
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = entry();
        for bit in 0..good.bytes().len() * 8 {
            let mut bad = good.bytes().to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Entry::decode(bad.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_longer_header_of_a_later_version_is_skipped() {
        let mut bytes = entry().bytes().to_vec();
        bytes.splice(ENTRY_HEADER_BYTES..ENTRY_HEADER_BYTES, [9; 4]);
        bytes[6..8].copy_from_slice(&56_u16.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Entry::decode(bytes.into()).unwrap().payload(), "payload");
    }

    #[test]
    fn an_unknown_flag_is_refused_with_words() {
        let mut bytes = entry().bytes().to_vec();
        bytes[5] = 1;
        let crc = crc32c::crc32c(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
        let error = Entry::decode(bytes.into()).unwrap_err();
        assert!(error.to_string().contains("newer version"), "{error}");
    }

    #[test]
    fn another_entry_is_not_taken_for_the_one_asked_for() {
        let bytes = entry().bytes().clone();
        let ledger = LedgerId::new(7).unwrap();
        assert!(Entry::decode_as(ledger, EntryId::new(3), bytes.clone()).is_ok());
        assert!(Entry::decode_as(ledger, EntryId::new(4), bytes.clone()).is_err());
        assert!(Entry::decode_as(LedgerId::new(8).unwrap(), EntryId::new(3), bytes).is_err());
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            ledger in 0..=LedgerId::MAX.get(), id in 0..=EntryId::MAX.get(), below: u64,
            length: u64, written_at_ms: u64, payload: Vec<u8>,
        ) {
            let header = EntryHeader {
                ledger: LedgerId::new(ledger).unwrap(),
                entry: EntryId::new(id),
                last_add_confirmed: EntryId::new(below % (id + 1)).previous(),
                length,
                written_at_ms,
            };
            let made = Entry::encode(header, &payload);
            let read = Entry::decode(made.bytes().clone()).unwrap();
            prop_assert_eq!(&read, &made);
            prop_assert_eq!(read.header(), &header);
            prop_assert_eq!(read.payload(), payload);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Entry::decode(bytes.into());
        }
    }
}
