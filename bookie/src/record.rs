//! What the bookie's log records say.
//!
//! | kind | payload |
//! |---|---|
//! | 1 | an entry, the very bytes that the writer made |
//! | 2 | fence: ledger id u64 |
//! | 3 | first writer: ledger id u64, writer UUID 16 bytes, the fragment brief it came with |
//! | 4 | tombstone, the ledger was deleted: ledger id u64 |
//!
//! Numbers are little-endian.

use bytes::{BufMut, Bytes, BytesMut};
use inkfast_protocol::gate::Record;
use inkfast_protocol::{Entry, LedgerId, WriterId};
use smallvec::{SmallVec, smallvec};
use uuid::Uuid;

/// The kind of an entry.
pub(crate) const ENTRY: u8 = 1;
const FENCE: u8 = 2;
const WRITER: u8 = 3;
const TOMBSTONE: u8 = 4;

/// Encodes what a gate wants to be written of a ledger: the kind, and the payload of each record.
pub(crate) fn encode(ledger: LedgerId, record: &Record) -> (u8, SmallVec<[Bytes; 1]>) {
    match record {
        Record::Entries(run) => {
            (ENTRY, run.entries().iter().map(|entry| entry.bytes().clone()).collect())
        }
        Record::Fence => (FENCE, smallvec![Bytes::copy_from_slice(&ledger.get().to_le_bytes())]),
        Record::Tombstone => {
            (TOMBSTONE, smallvec![Bytes::copy_from_slice(&ledger.get().to_le_bytes())])
        }
        Record::Writer { id, fragment } => {
            let mut payload = BytesMut::with_capacity(24 + fragment.len());
            payload.put_u64_le(ledger.get());
            payload.put_slice(id.0.as_bytes());
            payload.put_slice(fragment);
            (WRITER, smallvec![payload.freeze()])
        }
    }
}

/// Decodes a record, or says in words why this program cannot.
pub(crate) fn decode(kind: u8, payload: &[u8]) -> Result<(LedgerId, Record), String> {
    if kind == ENTRY {
        let entry = Entry::decode(Bytes::copy_from_slice(payload)).map_err(|e| e.to_string())?;
        return Ok((entry.header().ledger, Record::Entries(entry.into())));
    }
    let (ledger, rest) = payload.split_first_chunk().ok_or("a record is too short")?;
    let ledger = LedgerId::new(u64::from_le_bytes(*ledger)).ok_or("a ledger id is too large")?;
    match kind {
        FENCE => Ok((ledger, Record::Fence)),
        TOMBSTONE => Ok((ledger, Record::Tombstone)),
        WRITER => {
            let (id, fragment) = rest.split_first_chunk().ok_or("a writer record is too short")?;
            let id = WriterId(Uuid::from_bytes(*id));
            Ok((ledger, Record::Writer { id, fragment: Bytes::copy_from_slice(fragment) }))
        }
        _ => Err(format!("a record has kind {kind}, which a newer version wrote; upgrade")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use inkfast_protocol::{EntryHeader, EntryId};

    #[test]
    fn what_was_encoded_is_decoded() {
        let ledger = LedgerId::new(77).unwrap();
        let header = EntryHeader {
            ledger,
            entry: EntryId::new(3),
            last_add_confirmed: None,
            length: 1,
            written_at_ms: 0,
        };
        let writer = WriterId(Uuid::from_u128(4));
        for record in [
            Record::Entries(Entry::encode(header, b"x").into()),
            Record::Fence,
            Record::Tombstone,
            Record::Writer { id: writer, fragment: Bytes::from_static(b"brief") },
        ] {
            let (kind, payloads) = encode(ledger, &record);
            assert_eq!(decode(kind, &payloads[0]), Ok((ledger, record)));
        }
    }

    #[test]
    fn what_is_not_known_is_refused_with_words() {
        assert!(decode(9, &[0; 8]).unwrap_err().contains("newer version"));
        assert!(decode(FENCE, &[0; 7]).unwrap_err().contains("too short"));
        assert!(decode(WRITER, &[0; 9]).unwrap_err().contains("too short"));
        assert!(decode(FENCE, &[255; 8]).unwrap_err().contains("too large"));
    }
}
