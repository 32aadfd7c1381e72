//! The stored form of the metadata: protobuf, whose fields keep their numbers forever.

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
    #[prost(bytes = "vec", repeated, tag = "3")]
    ensemble: Vec<Vec<u8>>,
}

pub(super) fn encode(metadata: &LedgerMetadata) -> Bytes {
    let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let fragments = metadata.fragments.iter().map(|fragment| StoredFragment {
        first: fragment.first.get(),
        length_before: fragment.length_before,
        ensemble: fragment.ensemble.iter().map(|bookie| bookie.0.as_bytes().to_vec()).collect(),
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
    let [ensemble, write, ack] = [stored.ensemble, stored.write_quorum, stored.ack_quorum]
        .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    Ok(LedgerMetadata {
        ledger: LedgerId::new(stored.ledger).ok_or_else(|| invalid("its id is too large"))?,
        namespace: stored.namespace,
        owner: stored.owner,
        writer: WriterId(uuid(&stored.writer)?),
        replication: Replication::new(ensemble, write, ack).map_err(MetadataError::Invalid)?,
        state,
        fragments: stored.fragments.iter().map(fragment).collect::<Result<_, _>>()?,
        created_at_ms: stored.created_at_ms,
        request: stored.request.as_deref().map(uuid).transpose()?,
        custom: stored.custom.into_iter().map(|(k, v)| (k, v.into())).collect(),
        modifiable_from: stored.modifiable_from,
    })
}

fn fragment(stored: &StoredFragment) -> Result<Fragment, MetadataError> {
    let ensemble = stored.ensemble.iter().map(|bookie| uuid(bookie).map(BookieId));
    Ok(Fragment {
        first: EntryId::new(stored.first),
        length_before: stored.length_before,
        ensemble: ensemble.collect::<Result<_, _>>()?,
    })
}

fn uuid(bytes: &[u8]) -> Result<Uuid, MetadataError> {
    Uuid::from_slice(bytes).map_err(|error| MetadataError::Invalid(error.to_string()))
}
