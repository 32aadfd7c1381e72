//! The state as rows: one ordered map of bytes to bytes, so that a copy of it is one walk.
//!
//! | row key | value |
//! |---|---|
//! | `c` | the counters |
//! | `k` key | value, version and lease of the key |
//! | `l` lease | the lease's TTL |
//! | `m` lease, key | nothing: the key has that lease |
//! | `s` name | the next number of the sequence |
//! | `r` request | the answer that the request got |
//! | `o` serial | the request's id and time, in the order of the answers |
//!
//! Numbers in row keys are big-endian, so that they sort. Values are protobuf messages.

use std::ops::Bound;

use bytes::Bytes;
use prost::Message;
use uuid::Uuid;

use crate::types::{KeyValue, LeaseId, Version};

/// Reads rows in order.
pub trait Rows {
    /// Returns the value of a row.
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StateError>;

    /// Walks rows in order, from a bound on.
    fn walk(
        &self,
        from: Bound<Vec<u8>>,
    ) -> Result<impl Iterator<Item = Result<(Vec<u8>, Bytes), StateError>>, StateError>;
}

/// Changes rows.
pub trait RowsMut: Rows {
    /// Writes a row.
    fn insert(&mut self, row: &[u8], value: &[u8]) -> Result<(), StateError>;

    /// Removes a row, if it is there.
    fn remove(&mut self, row: &[u8]) -> Result<(), StateError>;
}

/// Says why the state could not be read or written. Whoever gets it must not go on writing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the metastore's state cannot be used: {0}")]
pub struct StateError(pub String);

/// The numbers that the state counts with.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Counters {
    /// The last revision used.
    #[prost(uint64, tag = "1")]
    pub(crate) revision: u64,
    /// The last lease granted.
    #[prost(uint64, tag = "2")]
    pub(crate) last_lease: u64,
    /// How many leases there are.
    #[prost(uint64, tag = "3")]
    pub(crate) leases: u64,
    /// The serial of the next answer to remember.
    #[prost(uint64, tag = "4")]
    pub(crate) next_serial: u64,
    /// The serial of the oldest answer remembered.
    #[prost(uint64, tag = "5")]
    pub(crate) oldest_serial: u64,
    /// The highest time of a command that was applied.
    #[prost(uint64, tag = "6")]
    pub(crate) time_ms: u64,
}

/// What is stored under a key.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredKey {
    #[prost(uint64, tag = "1")]
    pub(crate) version: u64,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) lease: Option<u64>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) value: Bytes,
}

/// A lease.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredLease {
    #[prost(uint64, tag = "1")]
    pub(crate) ttl_ms: u64,
}

/// A sequence.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredSequence {
    #[prost(uint64, tag = "1")]
    pub(crate) next: u64,
}

/// A request that was answered.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct StoredRequest {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) request: Bytes,
    #[prost(uint64, tag = "2")]
    pub(crate) time_ms: u64,
}

impl StoredKey {
    pub(crate) fn into_key_value(self, key: String) -> KeyValue {
        KeyValue {
            key,
            value: self.value,
            version: Version::new(self.version),
            lease: self.lease.map(LeaseId::new),
        }
    }
}

/// Reads a row's message.
pub(crate) fn read<M: Message + Default>(
    rows: &impl Rows,
    row: &[u8],
) -> Result<Option<M>, StateError> {
    rows.get(row)?.map(|value| decode(row, value)).transpose()
}

/// Writes a row's message.
pub(crate) fn write<M: Message>(
    rows: &mut impl RowsMut,
    row: &[u8],
    message: &M,
) -> Result<(), StateError> {
    rows.insert(row, &message.encode_to_vec())
}

/// Decodes a row's message.
pub(crate) fn decode<M: Message + Default>(row: &[u8], value: Bytes) -> Result<M, StateError> {
    M::decode(value).map_err(|error| StateError(format!("row {}: {error}", row.escape_ascii())))
}

pub(crate) const COUNTERS: &[u8] = b"c";
pub(crate) const LEASES: &[u8] = b"l";
pub(crate) const SEQUENCES: &[u8] = b"s";

pub(crate) fn key_row(key: &str) -> Vec<u8> {
    [b"k", key.as_bytes()].concat()
}

pub(crate) fn lease_row(lease: u64) -> Vec<u8> {
    [LEASES, &lease.to_be_bytes()].concat()
}

pub(crate) fn lease_key_row(lease: u64, key: &str) -> Vec<u8> {
    [b"m", lease.to_be_bytes().as_slice(), key.as_bytes()].concat()
}

pub(crate) fn sequence_row(name: &str) -> Vec<u8> {
    [SEQUENCES, name.as_bytes()].concat()
}

pub(crate) fn request_row(request: Uuid) -> Vec<u8> {
    [b"r", request.as_bytes().as_slice()].concat()
}

pub(crate) fn order_row(serial: u64) -> Vec<u8> {
    [b"o", serial.to_be_bytes().as_slice()].concat()
}

/// Takes the text after the first `skip` bytes of a row's key.
pub(crate) fn text(row: &[u8], skip: usize) -> Result<String, StateError> {
    String::from_utf8(row.get(skip..).unwrap_or_default().to_vec())
        .map_err(|_| StateError(format!("row {}: its key is no text", row.escape_ascii())))
}
