//! The stored form of the metadata: protobuf, whose fields keep their numbers forever.
//!
//! Each bookie stands in it once, and fragments name bookies by their index in that table: so ten
//! thousand fragments fit.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use super::{FORMAT_VERSION, Fragment, LedgerMetadata, MetadataError, State};
use crate::{BookieId, EntryId, LedgerId, Replication, WriterId};

#[derive(Message)]
struct Stored {
    /// The oldest version whose programs may read this. Raised when a field is added that must
    /// not be skipped.
    #[prost(uint32, tag = "1")]
    readable_from: u32,
    /// The oldest version whose programs may write it back: protobuf would drop the fields that
    /// an older program does not know.
    #[prost(uint32, tag = "2")]
    modifiable_from: u32,
    #[prost(uint64, tag = "3")]
    ledger: u64,
    #[prost(string, tag = "4")]
    namespace: String,
    #[prost(string, tag = "5")]
    owner: String,
    #[prost(bytes = "vec", tag = "6")]
    writer: Vec<u8>,
    #[prost(uint32, tag = "7")]
    ensemble: u32,
    #[prost(uint32, tag = "8")]
    write_quorum: u32,
    #[prost(uint32, tag = "9")]
    ack_quorum: u32,
    #[prost(message, repeated, tag = "10")]
    fragments: Vec<StoredFragment>,
    #[prost(uint64, tag = "11")]
    created_at_ms: u64,
    #[prost(btree_map = "string, bytes", tag = "12")]
    custom: BTreeMap<String, Vec<u8>>,
    #[prost(oneof = "StoredState", tags = "13, 14, 15")]
    state: Option<StoredState>,
    #[prost(bytes = "vec", optional, tag = "16")]
    request: Option<Vec<u8>>,
    /// Every bookie that some fragment names.
    #[prost(bytes = "vec", repeated, tag = "17")]
    bookies: Vec<Vec<u8>>,
}

#[derive(prost::Oneof)]
enum StoredState {
    #[prost(message, tag = "13")]
    Open(Nothing),
    #[prost(message, tag = "14")]
    InRecovery(Nothing),
    #[prost(message, tag = "15")]
    Closed(StoredEnd),
}

#[derive(Message)]
struct Nothing {}

#[derive(Message)]
struct StoredEnd {
    #[prost(uint64, optional, tag = "1")]
    last: Option<u64>,
    #[prost(uint64, tag = "2")]
    length: u64,
}

#[derive(Message)]
struct StoredFragment {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    length_before: u64,
    /// Indices into the table of bookies, by place.
    #[prost(uint32, repeated, tag = "3")]
    ensemble: Vec<u32>,
}

pub(super) fn encode(metadata: &LedgerMetadata) -> Bytes {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let bookies = metadata.bookies();
    let indices: BTreeMap<_, _> = bookies.iter().zip(0_u32..).collect();
    let fragments = metadata.fragments.iter().map(|fragment| StoredFragment {
        first: fragment.first.get(),
        length_before: fragment.length_before,
        ensemble: fragment.ensemble.iter().map(|bookie| indices[bookie]).collect(),
    });
    let state = match metadata.state {
        State::Open => StoredState::Open(Nothing {}),
        State::InRecovery => StoredState::InRecovery(Nothing {}),
        State::Closed { last, length } => {
            StoredState::Closed(StoredEnd { last: last.map(EntryId::get), length })
        }
    };
    let stored = Stored {
        readable_from: FORMAT_VERSION,
        modifiable_from: metadata.modifiable_from,
        ledger: metadata.ledger.get(),
        namespace: metadata.namespace.clone(),
        owner: metadata.owner.clone(),
        writer: metadata.writer.0.as_bytes().to_vec(),
        ensemble: number(metadata.replication.ensemble()),
        write_quorum: number(metadata.replication.write_quorum()),
        ack_quorum: number(metadata.replication.ack_quorum()),
        fragments: fragments.collect(),
        created_at_ms: metadata.created_at_ms,
        custom: metadata.custom.iter().map(|(k, v)| (k.clone(), v.to_vec())).collect(),
        state: Some(state),
        request: metadata.request.map(|request| request.as_bytes().to_vec()),
        bookies: bookies.iter().map(|bookie| bookie.0.as_bytes().to_vec()).collect(),
    };
    stored.encode_to_vec().into()
}

pub(super) fn decode(bytes: &[u8]) -> Result<LedgerMetadata, MetadataError> {
    let invalid = |why: &str| MetadataError::Invalid(why.to_owned());
    let stored =
        Stored::decode(bytes).map_err(|error| MetadataError::Invalid(error.to_string()))?;
    if stored.readable_from > FORMAT_VERSION {
        return Err(MetadataError::TooNew { found: stored.readable_from });
    }
    let state = match stored.state.ok_or_else(|| invalid("it has no state"))? {
        StoredState::Open(_) => State::Open,
        StoredState::InRecovery(_) => State::InRecovery,
        StoredState::Closed(end) => {
            State::Closed { last: end.last.map(EntryId::new), length: end.length }
        }
    };
    let bookies = stored.bookies.iter().map(|bookie| uuid(bookie).map(BookieId));
    let bookies: Vec<_> = bookies.collect::<Result<_, _>>()?;
    let fragments = stored.fragments.iter().map(|stored| fragment(stored, &bookies));
    let [ensemble, write, ack] = [stored.ensemble, stored.write_quorum, stored.ack_quorum]
        .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    Ok(LedgerMetadata {
        ledger: LedgerId::new(stored.ledger).ok_or_else(|| invalid("its id is too large"))?,
        namespace: stored.namespace,
        owner: stored.owner,
        writer: WriterId(uuid(&stored.writer)?),
        replication: Replication::new(ensemble, write, ack).map_err(MetadataError::Invalid)?,
        state,
        fragments: fragments.collect::<Result<_, _>>()?,
        created_at_ms: stored.created_at_ms,
        request: stored.request.as_deref().map(uuid).transpose()?,
        custom: stored.custom.into_iter().map(|(k, v)| (k, v.into())).collect(),
        modifiable_from: stored.modifiable_from,
    })
}

fn fragment(stored: &StoredFragment, bookies: &[BookieId]) -> Result<Fragment, MetadataError> {
    let named = |index: &u32| {
        let bookie = usize::try_from(*index).ok().and_then(|index| bookies.get(index));
        bookie.copied().ok_or_else(|| {
            MetadataError::Invalid(format!(
                "its fragment from entry {} on names bookie {index} of {}",
                stored.first,
                bookies.len()
            ))
        })
    };
    Ok(Fragment {
        first: EntryId::new(stored.first),
        length_before: stored.length_before,
        ensemble: stored.ensemble.iter().map(named).collect::<Result<_, _>>()?,
    })
}

fn uuid(bytes: &[u8]) -> Result<Uuid, MetadataError> {
    Uuid::from_slice(bytes).map_err(|error| MetadataError::Invalid(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::{FRAGMENTS_MAX, METADATA_BYTES_MAX};

    /// A ledger as large as it may become, on so many bookies; each fragment begins where a ledger
    /// of a terabyte would.
    fn largest(ensemble: usize, bookies: usize) -> LedgerMetadata {
        let fragment = |number: usize| Fragment {
            first: EntryId::new(number as u64 * 100_000),
            length_before: number as u64 * 100_000_000,
            ensemble: (0..ensemble)
                .map(|place| BookieId(Uuid::from_u128(((number * 7 + place) % bookies) as u128)))
                .collect(),
        };
        LedgerMetadata {
            ledger: LedgerId::new(9).unwrap(),
            namespace: "default".to_owned(),
            owner: "client".to_owned(),
            writer: WriterId(Uuid::from_u128(1)),
            replication: Replication::new(ensemble, 3, 2).unwrap(),
            state: State::Open,
            fragments: (0..FRAGMENTS_MAX).map(fragment).collect(),
            created_at_ms: 1_700_000_000_000,
            request: None,
            custom: BTreeMap::new(),
            modifiable_from: FORMAT_VERSION,
        }
    }

    #[test]
    fn ten_thousand_fragments_fit() {
        for (ensemble, bookies) in [(5, 100), (16, 100), (64, 100), (16, 10_000)] {
            let metadata = largest(ensemble, bookies);
            let stored = metadata.encode().unwrap();
            assert_eq!(LedgerMetadata::decode(&stored), Ok(metadata), "E={ensemble} of {bookies}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = largest(64, 10_000).encode().unwrap_err().to_string();
        assert!(refused.contains(&format!("limit is {METADATA_BYTES_MAX}")), "{refused}");
    }

    #[test]
    fn an_index_out_of_range_is_refused() {
        let mut stored = Stored::decode(&encode(&largest(5, 100))[..]).unwrap();
        stored.fragments[1].ensemble[2] = 100;
        let refused = LedgerMetadata::decode(&stored.encode_to_vec()).unwrap_err().to_string();
        let words = "its fragment from entry 100000 on names bookie 100 of 100";
        assert!(refused.contains(words), "{refused}");
    }
}
