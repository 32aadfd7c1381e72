//! Requests and answers on the wire.
//!
//! A caller opens a stream and sends requests on it, each a frame; each gets one frame back, in
//! order. The bodies are protobuf messages.
//!
//! | frame kind | direction | message |
//! |---|---|---|
//! | 1 | to the metastore | `Request` |
//! | 2 | back | `Answer` |
//!
//! `Request` has one of these fields, and for 4 to 7 also field 15 (`request`, 16 bytes): the id
//! of the request, made anew for each request and the same in its retries.
//!
//! | field | type | asks for | answered by |
//! |---|---|---|---|
//! | 1 `get` | string | a key | 1 |
//! | 2 `scan` | {1 `prefix` string, 2 `after` optional string, 3 `limit` uint64} | a page | 2 |
//! | 3 `keep_alive` | uint64 | a lease to live on | 6, 8 |
//! | 4 `commit` | {1 `conditions`, 2 `writes`} | a transaction | 3, 7, 8 |
//! | 5 `sequence` | {1 `name` string, 2 `count` uint64} | numbers of a sequence | 4 |
//! | 6 `grant` | uint64: its TTL in milliseconds | a lease | 5 |
//! | 7 `end` | uint64 | the end of a lease | 6, 8 |
//!
//! A condition is {1 `key` string, 2 `version` optional uint64 (without it: absent)}. A write is
//! {1 `key` string, 2 `put` optional {1 `value` bytes, 2 `lease` optional uint64}} (without it: a
//! delete).
//!
//! `Answer` has one of these fields; each request may also be answered by 9 or 10.
//!
//! | field | type | means |
//! |---|---|---|
//! | 1 `value` | {1 `entry` optional entry} | the key, if it is there |
//! | 2 `page` | {1 `entries` repeated entry, 2 `more` bool} | a page |
//! | 3 `committed` | uint64 | committed at this revision |
//! | 4 `sequence` | {1 `start` uint64, 2 `end` uint64} | the numbers from start to before end |
//! | 5 `granted` | uint64 | the lease |
//! | 6 `done` | {} | done |
//! | 7 `conflict` | {1 `key` string, 2 `found` optional uint64} | a condition did not hold |
//! | 8 `lease_not_found` | {} | the lease has ended |
//! | 9 `bad_request` | string | what was wrong with the request |
//! | 10 `unavailable` | string | why this metastore cannot answer |
//!
//! An entry is {1 `key` string, 2 `value` bytes, 3 `version` uint64, 4 `lease` optional uint64}.

use std::time::Duration;

use bytes::Bytes;
use inkfast_wire::Frame;
use prost::{Message, Oneof};
use uuid::Uuid;

use crate::error::Error;
use crate::state::{Answer, Operation};
use crate::types::{Condition, KeyValue, LeaseId, Page, Scan, Transaction, Version, Write};

const KIND_REQUEST: u8 = 1;
const KIND_ANSWER: u8 = 2;

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads a key.
    Get {
        /// The key.
        key: String,
    },
    /// Reads a page.
    Scan(Scan),
    /// Lets a lease live on for its whole TTL from now.
    KeepAlive(LeaseId),
    /// Changes the state.
    Change {
        /// Names the request, so that a retry is known as one.
        request: Uuid,
        /// What to do.
        operation: Operation,
    },
}

/// Encodes a request.
pub fn encode_request(request: Request) -> Frame {
    let mut message = RequestMessage::default();
    message.body = Some(match request {
        Request::Get { key } => RequestBody::Get(key),
        Request::Scan(Scan { prefix, after, limit }) => {
            RequestBody::Scan(ScanMessage { prefix, after, limit: limit as u64 })
        }
        Request::KeepAlive(lease) => RequestBody::KeepAlive(lease.get()),
        Request::Change { request, operation } => {
            message.request = request.into_bytes().to_vec().into();
            match operation {
                Operation::Commit(transaction) => RequestBody::Commit(transaction.into()),
                Operation::NextSequence { name, count } => {
                    RequestBody::Sequence(SequenceMessage { name, count })
                }
                Operation::GrantLease { ttl } => {
                    RequestBody::Grant(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))
                }
                Operation::EndLease(lease) => RequestBody::End(lease.get()),
            }
        }
    });
    Frame::message(KIND_REQUEST, &message)
}

/// Decodes a request, or gives the error that answers it.
pub fn decode_request(frame: &Frame) -> Result<Request, Error> {
    if frame.kind != KIND_REQUEST {
        return Err(Error::bad_request(format!("a frame of the unknown kind {}", frame.kind)));
    }
    let message: RequestMessage =
        frame.decode().map_err(|error| Error::bad_request(error.to_string()))?;
    let operation = match message.body {
        Some(RequestBody::Get(key)) => return Ok(Request::Get { key }),
        Some(RequestBody::Scan(ScanMessage { prefix, after, limit })) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            return Ok(Request::Scan(Scan { prefix, after, limit }));
        }
        Some(RequestBody::KeepAlive(lease)) => return Ok(Request::KeepAlive(LeaseId::new(lease))),
        Some(RequestBody::Commit(transaction)) => Operation::Commit(transaction.into()),
        Some(RequestBody::Sequence(SequenceMessage { name, count })) => {
            Operation::NextSequence { name, count }
        }
        Some(RequestBody::Grant(ttl_ms)) => {
            Operation::GrantLease { ttl: Duration::from_millis(ttl_ms) }
        }
        Some(RequestBody::End(lease)) => Operation::EndLease(LeaseId::new(lease)),
        None => {
            return Err(Error::bad_request(
                "this metastore does not know the operation: it may be older than its caller",
            ));
        }
    };
    let request = Uuid::from_slice(&message.request)
        .map_err(|error| Error::bad_request(format!("the request's id: {error}")))?;
    Ok(Request::Change { request, operation })
}

/// Makes the frame of an encoded answer.
pub fn answer_frame(answer: &Result<Answer, Error>) -> Frame {
    Frame { kind: KIND_ANSWER, body: encode_answer(answer).into() }
}

/// Reads an answer from its frame, or says what is wrong with it.
pub fn answer_from_frame(frame: Frame) -> Result<Result<Answer, Error>, String> {
    if frame.kind != KIND_ANSWER {
        return Err(format!("an answer of the unknown kind {}", frame.kind));
    }
    decode_answer(frame.body)
}

/// Encodes an answer, for the wire and to be remembered.
pub(crate) fn encode_answer(answer: &Result<Answer, Error>) -> Vec<u8> {
    let body = match answer.clone() {
        Ok(Answer::Value(entry)) => {
            AnswerBody::Value(ValueMessage { entry: entry.map(Into::into) })
        }
        Ok(Answer::Page(page)) => AnswerBody::Page(PageMessage {
            entries: page.entries.into_iter().map(Into::into).collect(),
            more: page.more,
        }),
        Ok(Answer::Committed(version)) => AnswerBody::Committed(version.get()),
        Ok(Answer::Sequence(range)) => {
            AnswerBody::Sequence(RangeMessage { start: range.start, end: range.end })
        }
        Ok(Answer::Granted(lease)) => AnswerBody::Granted(lease.get()),
        Ok(Answer::Done) => AnswerBody::Done(()),
        Err(Error::Conflict { key, found }) => {
            AnswerBody::Conflict(ConflictMessage { key, found: found.map(Version::get) })
        }
        Err(Error::LeaseNotFound) => AnswerBody::LeaseNotFound(()),
        Err(Error::BadRequest { why }) => AnswerBody::BadRequest(why),
        Err(Error::Unavailable { why } | Error::TimedOut { why, .. }) => {
            AnswerBody::Unavailable(why)
        }
    };
    AnswerMessage { body: Some(body) }.encode_to_vec()
}

/// Decodes an answer, or says what is wrong with it.
pub(crate) fn decode_answer(bytes: Bytes) -> Result<Result<Answer, Error>, String> {
    let message = AnswerMessage::decode(bytes).map_err(|error| error.to_string())?;
    let answer = match message.body.ok_or("an answer that this program does not know")? {
        AnswerBody::Value(value) => Answer::Value(value.entry.map(Into::into)),
        AnswerBody::Page(page) => Answer::Page(Page {
            entries: page.entries.into_iter().map(Into::into).collect(),
            more: page.more,
        }),
        AnswerBody::Committed(version) => Answer::Committed(Version::new(version)),
        AnswerBody::Sequence(range) => Answer::Sequence(range.start..range.end),
        AnswerBody::Granted(lease) => Answer::Granted(LeaseId::new(lease)),
        AnswerBody::Done(()) => Answer::Done,
        AnswerBody::Conflict(ConflictMessage { key, found }) => {
            return Ok(Err(Error::Conflict { key, found: found.map(Version::new) }));
        }
        AnswerBody::LeaseNotFound(()) => return Ok(Err(Error::LeaseNotFound)),
        AnswerBody::BadRequest(why) => return Ok(Err(Error::BadRequest { why })),
        AnswerBody::Unavailable(why) => return Ok(Err(Error::Unavailable { why })),
    };
    Ok(Ok(answer))
}

#[derive(Clone, PartialEq, Message)]
struct RequestMessage {
    #[prost(oneof = "RequestBody", tags = "1, 2, 3, 4, 5, 6, 7")]
    body: Option<RequestBody>,
    #[prost(bytes = "bytes", tag = "15")]
    request: Bytes,
}

#[derive(Clone, PartialEq, Oneof)]
enum RequestBody {
    #[prost(string, tag = "1")]
    Get(String),
    #[prost(message, tag = "2")]
    Scan(ScanMessage),
    #[prost(uint64, tag = "3")]
    KeepAlive(u64),
    #[prost(message, tag = "4")]
    Commit(TransactionMessage),
    #[prost(message, tag = "5")]
    Sequence(SequenceMessage),
    #[prost(uint64, tag = "6")]
    Grant(u64),
    #[prost(uint64, tag = "7")]
    End(u64),
}

#[derive(Clone, PartialEq, Message)]
struct AnswerMessage {
    #[prost(oneof = "AnswerBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    body: Option<AnswerBody>,
}

#[derive(Clone, PartialEq, Oneof)]
enum AnswerBody {
    #[prost(message, tag = "1")]
    Value(ValueMessage),
    #[prost(message, tag = "2")]
    Page(PageMessage),
    #[prost(uint64, tag = "3")]
    Committed(u64),
    #[prost(message, tag = "4")]
    Sequence(RangeMessage),
    #[prost(uint64, tag = "5")]
    Granted(u64),
    #[prost(message, tag = "6")]
    Done(()),
    #[prost(message, tag = "7")]
    Conflict(ConflictMessage),
    #[prost(message, tag = "8")]
    LeaseNotFound(()),
    #[prost(string, tag = "9")]
    BadRequest(String),
    #[prost(string, tag = "10")]
    Unavailable(String),
}

#[derive(Clone, PartialEq, Message)]
struct ScanMessage {
    #[prost(string, tag = "1")]
    prefix: String,
    #[prost(string, optional, tag = "2")]
    after: Option<String>,
    #[prost(uint64, tag = "3")]
    limit: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SequenceMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    count: u64,
}

#[derive(Clone, PartialEq, Message)]
struct TransactionMessage {
    #[prost(message, repeated, tag = "1")]
    conditions: Vec<ConditionMessage>,
    #[prost(message, repeated, tag = "2")]
    writes: Vec<WriteMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct ConditionMessage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(uint64, optional, tag = "2")]
    version: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct WriteMessage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    put: Option<PutMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct PutMessage {
    #[prost(bytes = "bytes", tag = "1")]
    value: Bytes,
    #[prost(uint64, optional, tag = "2")]
    lease: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueMessage {
    #[prost(message, optional, tag = "1")]
    entry: Option<EntryMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct PageMessage {
    #[prost(message, repeated, tag = "1")]
    entries: Vec<EntryMessage>,
    #[prost(bool, tag = "2")]
    more: bool,
}

#[derive(Clone, PartialEq, Message)]
struct EntryMessage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(bytes = "bytes", tag = "2")]
    value: Bytes,
    #[prost(uint64, tag = "3")]
    version: u64,
    #[prost(uint64, optional, tag = "4")]
    lease: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct RangeMessage {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint64, tag = "2")]
    end: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ConflictMessage {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(uint64, optional, tag = "2")]
    found: Option<u64>,
}

impl From<Transaction> for TransactionMessage {
    fn from(transaction: Transaction) -> Self {
        let condition = |condition| match condition {
            Condition::Absent { key } => ConditionMessage { key, version: None },
            Condition::At { key, version } => {
                ConditionMessage { key, version: Some(version.get()) }
            }
        };
        let write = |write| match write {
            Write::Put { key, value, lease } => {
                let lease = lease.map(LeaseId::get);
                WriteMessage { key, put: Some(PutMessage { value, lease }) }
            }
            Write::Delete { key } => WriteMessage { key, put: None },
        };
        Self {
            conditions: transaction.conditions.into_iter().map(condition).collect(),
            writes: transaction.writes.into_iter().map(write).collect(),
        }
    }
}

impl From<TransactionMessage> for Transaction {
    fn from(message: TransactionMessage) -> Self {
        let condition = |ConditionMessage { key, version }| match version {
            Some(version) => Condition::At { key, version: Version::new(version) },
            None => Condition::Absent { key },
        };
        let write = |WriteMessage { key, put }| match put {
            Some(PutMessage { value, lease }) => {
                Write::Put { key, value, lease: lease.map(LeaseId::new) }
            }
            None => Write::Delete { key },
        };
        Self {
            conditions: message.conditions.into_iter().map(condition).collect(),
            writes: message.writes.into_iter().map(write).collect(),
        }
    }
}

impl From<KeyValue> for EntryMessage {
    fn from(KeyValue { key, value, version, lease }: KeyValue) -> Self {
        Self { key, value, version: version.get(), lease: lease.map(LeaseId::get) }
    }
}

impl From<EntryMessage> for KeyValue {
    fn from(EntryMessage { key, value, version, lease }: EntryMessage) -> Self {
        Self { key, value, version: Version::new(version), lease: lease.map(LeaseId::new) }
    }
}

#[cfg(test)]
mod tests;
