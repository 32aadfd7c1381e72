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
//! of the request, made anew for each request and the same in its retries; for 1 and 2 also field
//! 13 (`stale`, bool): whether the answer may be from the past, so that any member gives it.
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
//! | 8 `watch` | {1 `prefix` string, 2 `after` uint64} | a watch, which the stream is for then | 6, 12 |
//! | 9 `more` | {} | the watch's next changes | 11, 12 |
//! | 10 `status` | {} | what the member knows of the cluster | 14 |
//! | 11 `add_member` | {1 `address` string, 2 `id` optional 16 bytes} | the metastore there to be a voter | 6 |
//! | 12 `remove_member` | 16 bytes: a member's id | it to be none any more | 6 |
//! | 16 `transfer_leader` | 16 bytes: a voter's id | it to lead | 6 |
//! | 17 `backup` | {} | a backup, which the stream is for then | 15, often |
//! | 18 `move_member` | as 11 | the member there to be reached there | 6 |
//!
//! The `id` of 11 and 18 says who has to be found at the address, or else nothing is done.
//!
//! A condition is {1 `key` string} and one of {2 `at` uint64: a version, 3 `absent` {}}. A write is
//! {1 `key` string} and one of {2 `put` {1 `value` bytes, 2 `lease` optional uint64},
//! 3 `delete` {}}. Those without any are of a newer format, and refused.
//!
//! `Answer` has one of these fields; each request may also be answered by 9, 10 or, unless it is
//! for any member, 13.
//!
//! | field | type | means |
//! |---|---|---|
//! | 1 `value` | {1 `entry` optional entry} | the key, if it is there |
//! | 2 `page` | {1 `entries` repeated entry, 2 `more` bool, 3 `revision` uint64} | a page |
//! | 3 `committed` | uint64 | committed at this revision |
//! | 4 `sequence` | {1 `start` uint64, 2 `end` uint64} | the numbers from start to before end |
//! | 5 `granted` | uint64 | the lease |
//! | 6 `done` | {} | done |
//! | 7 `conflict` | {1 `key` string, 2 `found` optional uint64} | a condition did not hold |
//! | 8 `lease_not_found` | {} | the lease has ended |
//! | 9 `bad_request` | string | what was wrong with the request |
//! | 10 `unavailable` | string | why this metastore cannot answer |
//! | 11 `told` | {1 `revisions` repeated revision, 2 `seen` uint64} | changes, and up to where it is all |
//! | 12 `compacted` | {} | the watch's next changes are not remembered |
//! | 13 `not_leader` | {1 `leader` optional string} | nothing was done: ask that address |
//! | 14 `status` | a status | what the member knows of the cluster |
//! | 15 `piece` | bytes | the next bytes of a backup; none at its end |
//!
//! A watch is asked each time, so what nobody takes is not sent. `more` is answered when there is
//! a change, or after [a while](crate::watches::PROGRESS_INTERVAL) without one by none. A revision
//! is {1 `number` uint64, 2 `writes` repeated write}: what it did to the keys of the prefix, no
//! more than the transaction that did it, so all of it fits a frame.
//!
//! A status is {1 `id` bytes, 2 `address` string, 3 `term` uint64, 4 `leader` optional bytes,
//! 5 `log` optional uint64, 6 `applied` optional uint64, 7 `revision` uint64, 8 `members` repeated
//! {1 `id` bytes, 2 `address` string, 3 `voter` bool}}, ids of 16 bytes;
//! [`MemberStatus`](crate::MemberStatus) says what they mean. A piece of a backup has at most
//! [1 MiB](PIECE_BYTES_MAX).
//!
//! An entry is {1 `key` string, 2 `value` bytes, 3 `version` uint64, 4 `lease` optional uint64}.

use std::time::Duration;

use bytes::Bytes;
use inkfast_wire::Frame;
use prost::Message;
use uuid::Uuid;

use crate::error::Error;
use crate::state::{Answer, Command, Operation};
use crate::types::{LeaseId, Page, Scan, Version};

mod proto;

use proto::{
    AnswerBody, AnswerMessage, ConflictMessage, NotLeaderMessage, PageMessage, PlaceMessage,
    RangeMessage, RequestBody, RequestMessage, ScanMessage, SequenceMessage, ValueMessage,
    WatchMessage, id_bytes, id_of,
};

/// The most bytes of a piece of a backup.
pub const PIECE_BYTES_MAX: usize = 1 << 20;

const KIND_REQUEST: u8 = 1;
const KIND_ANSWER: u8 = 2;

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Reads a key.
    Get {
        /// The key.
        key: String,
        /// Whether the answer may be from the past.
        stale: bool,
    },
    /// Reads a page.
    Scan {
        /// Which one.
        scan: Scan,
        /// Whether the answer may be from the past.
        stale: bool,
    },
    /// Lets a lease live on for its whole TTL from now.
    KeepAlive(LeaseId),
    /// Begins a watch on this stream, which is for it alone from then on.
    Watch {
        /// What the keys begin with.
        prefix: String,
        /// The last revision that the caller knows of.
        after: Version,
    },
    /// Waits for what the stream's watch has to tell next.
    More,
    /// Changes the state.
    Change {
        /// Names the request, so that a retry is known as one.
        request: Uuid,
        /// What to do.
        operation: Operation,
    },
    /// Asks a member what it knows of the cluster.
    Status,
    /// Makes the metastore at an address a voter.
    AddMember {
        /// Where it is, as `host:port`.
        address: String,
        /// Its id, if the caller knows it: then nobody else is meant.
        id: Option<Uuid>,
    },
    /// Says that the member at an address is reached there from now on.
    MoveMember {
        /// Where it is, as `host:port`.
        address: String,
        /// Its id, if the caller knows it: then nobody else is meant.
        id: Option<Uuid>,
    },
    /// Makes a member none any more.
    RemoveMember(Uuid),
    /// Makes a voter the leader.
    TransferLeader(Uuid),
    /// Asks for a backup on this stream, which is for it alone from then on.
    Backup,
}

impl Request {
    /// Whether something may be different after it.
    pub(crate) const fn changes(&self) -> bool {
        match self {
            Self::KeepAlive(_)
            | Self::Change { .. }
            | Self::AddMember { .. }
            | Self::MoveMember { .. }
            | Self::RemoveMember(_)
            | Self::TransferLeader(_) => true,
            // A watch or backup that may have begun, and of which nobody hears, is none.
            Self::Get { .. }
            | Self::Scan { .. }
            | Self::Watch { .. }
            | Self::More
            | Self::Status
            | Self::Backup => false,
        }
    }
}

/// Encodes a request.
pub fn encode_request(request: Request) -> Frame {
    Frame::message(KIND_REQUEST, &request_message(request))
}

/// Encodes a command as members of a metastore keep it and send it to each other: the message of
/// its request, with field 14 (`time_ms`, uint64).
pub fn encode_command(command: Command) -> Bytes {
    let Command { request, time_ms, operation } = command;
    let message = request_message(Request::Change { request, operation });
    RequestMessage { time_ms, ..message }.encode_to_vec().into()
}

/// Decodes a command, or says what is wrong with it.
pub fn decode_command(bytes: Bytes) -> Result<Command, Error> {
    let message =
        RequestMessage::decode(bytes).map_err(|error| Error::bad_request(error.to_string()))?;
    let time_ms = message.time_ms;
    match request(message)? {
        Request::Change { request, operation } => Ok(Command { request, time_ms, operation }),
        other => Err(Error::bad_request(format!("no command: {other:?}"))),
    }
}

fn request_message(request: Request) -> RequestMessage {
    let mut message = RequestMessage::default();
    message.body = Some(match request {
        Request::Get { key, stale } => {
            message.stale = stale;
            RequestBody::Get(key)
        }
        Request::Scan { scan: Scan { prefix, after, limit }, stale } => {
            message.stale = stale;
            RequestBody::Scan(ScanMessage { prefix, after, limit: limit as u64 })
        }
        Request::KeepAlive(lease) => RequestBody::KeepAlive(lease.get()),
        Request::Watch { prefix, after } => {
            RequestBody::Watch(WatchMessage { prefix, after: after.get() })
        }
        Request::More => RequestBody::More(()),
        Request::Status => RequestBody::Status(()),
        Request::AddMember { address, id } => RequestBody::AddMember(place(address, id)),
        Request::MoveMember { address, id } => RequestBody::MoveMember(place(address, id)),
        Request::RemoveMember(id) => RequestBody::RemoveMember(id_bytes(id)),
        Request::TransferLeader(id) => RequestBody::TransferLeader(id_bytes(id)),
        Request::Backup => RequestBody::Backup(()),
        Request::Change { request, operation } => {
            message.request = id_bytes(request);
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
    message
}

/// Decodes a request, or gives the error that answers it.
pub fn decode_request(frame: &Frame) -> Result<Request, Error> {
    if frame.kind != KIND_REQUEST {
        return Err(Error::bad_request(format!("a frame of the unknown kind {}", frame.kind)));
    }
    request(frame.decode().map_err(|error| Error::bad_request(error.to_string()))?)
}

fn request(message: RequestMessage) -> Result<Request, Error> {
    let RequestMessage { body, stale, request, .. } = message;
    let unknown = "this metastore does not know the operation: it may be older than its caller";
    let operation = match body.ok_or_else(|| Error::bad_request(unknown))? {
        RequestBody::Get(key) => return Ok(Request::Get { key, stale }),
        RequestBody::Scan(ScanMessage { prefix, after, limit }) => {
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            return Ok(Request::Scan { scan: Scan { prefix, after, limit }, stale });
        }
        RequestBody::KeepAlive(lease) => return Ok(Request::KeepAlive(LeaseId::new(lease))),
        RequestBody::Watch(WatchMessage { prefix, after }) => {
            return Ok(Request::Watch { prefix, after: Version::new(after) });
        }
        RequestBody::More(()) => return Ok(Request::More),
        RequestBody::Status(()) => return Ok(Request::Status),
        RequestBody::AddMember(PlaceMessage { address, id }) => {
            return Ok(Request::AddMember { address, id: optional_id(id)? });
        }
        RequestBody::MoveMember(PlaceMessage { address, id }) => {
            return Ok(Request::MoveMember { address, id: optional_id(id)? });
        }
        RequestBody::RemoveMember(id) => {
            return Ok(Request::RemoveMember(id_of(&id).map_err(Error::bad_request)?));
        }
        RequestBody::TransferLeader(id) => {
            return Ok(Request::TransferLeader(id_of(&id).map_err(Error::bad_request)?));
        }
        RequestBody::Backup(()) => return Ok(Request::Backup),
        RequestBody::Commit(transaction) => {
            Operation::Commit(transaction.try_into().map_err(Error::bad_request)?)
        }
        RequestBody::Sequence(SequenceMessage { name, count }) => {
            Operation::NextSequence { name, count }
        }
        RequestBody::Grant(ttl_ms) => Operation::GrantLease { ttl: Duration::from_millis(ttl_ms) },
        RequestBody::End(lease) => Operation::EndLease(LeaseId::new(lease)),
    };
    let request = id_of(&request).map_err(Error::bad_request)?;
    Ok(Request::Change { request, operation })
}

fn place(address: String, id: Option<Uuid>) -> PlaceMessage {
    PlaceMessage { address, id: id.map(id_bytes) }
}

fn optional_id(id: Option<Bytes>) -> Result<Option<Uuid>, Error> {
    id.as_deref().map(id_of).transpose().map_err(Error::bad_request)
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
            revision: page.revision.get(),
        }),
        Ok(Answer::Committed(version)) => AnswerBody::Committed(version.get()),
        Ok(Answer::Sequence(range)) => {
            AnswerBody::Sequence(RangeMessage { start: range.start, end: range.end })
        }
        Ok(Answer::Granted(lease)) => AnswerBody::Granted(lease.get()),
        Ok(Answer::Done) => AnswerBody::Done(()),
        Ok(Answer::Told(told)) => AnswerBody::Told(told.into()),
        Ok(Answer::Status(status)) => AnswerBody::Status(status.into()),
        Ok(Answer::Piece(bytes)) => AnswerBody::Piece(bytes),
        Err(Error::Conflict { key, found }) => {
            AnswerBody::Conflict(ConflictMessage { key, found: found.map(Version::get) })
        }
        Err(Error::LeaseNotFound) => AnswerBody::LeaseNotFound(()),
        Err(Error::Compacted) => AnswerBody::Compacted(()),
        Err(Error::NotLeader { leader }) => AnswerBody::NotLeader(NotLeaderMessage { leader }),
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
            revision: Version::new(page.revision),
        }),
        AnswerBody::Committed(version) => Answer::Committed(Version::new(version)),
        AnswerBody::Sequence(range) => Answer::Sequence(range.start..range.end),
        AnswerBody::Granted(lease) => Answer::Granted(LeaseId::new(lease)),
        AnswerBody::Done(()) => Answer::Done,
        AnswerBody::Told(told) => Answer::Told(told.try_into()?),
        AnswerBody::Status(status) => Answer::Status(status.try_into()?),
        AnswerBody::Piece(bytes) => Answer::Piece(bytes),
        AnswerBody::Conflict(ConflictMessage { key, found }) => {
            return Ok(Err(Error::Conflict { key, found: found.map(Version::new) }));
        }
        AnswerBody::LeaseNotFound(()) => return Ok(Err(Error::LeaseNotFound)),
        AnswerBody::Compacted(()) => return Ok(Err(Error::Compacted)),
        AnswerBody::NotLeader(NotLeaderMessage { leader }) => {
            return Ok(Err(Error::NotLeader { leader }));
        }
        AnswerBody::BadRequest(why) => return Ok(Err(Error::BadRequest { why })),
        AnswerBody::Unavailable(why) => return Ok(Err(Error::Unavailable { why })),
    };
    Ok(Ok(answer))
}

#[cfg(test)]
mod tests;
