//! The protobuf messages, and what they are made of.

use bytes::Bytes;
use prost::{Message, Oneof};
use uuid::Uuid;

use crate::members::{MemberInfo, MemberStatus};
use crate::state::Told;
use crate::types::{Change, Condition, KeyValue, LeaseId, Transaction, Version, Write};

#[derive(Clone, PartialEq, Message)]
pub(super) struct RequestMessage {
    #[prost(oneof = "RequestBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16, 17, 18")]
    pub(super) body: Option<RequestBody>,
    #[prost(bool, tag = "13")]
    pub(super) stale: bool,
    #[prost(uint64, tag = "14")]
    pub(super) time_ms: u64,
    #[prost(bytes = "bytes", tag = "15")]
    pub(super) request: Bytes,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum RequestBody {
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
    #[prost(message, tag = "8")]
    Watch(WatchMessage),
    #[prost(message, tag = "9")]
    More(()),
    #[prost(message, tag = "10")]
    Status(()),
    #[prost(message, tag = "11")]
    AddMember(PlaceMessage),
    #[prost(bytes = "bytes", tag = "12")]
    RemoveMember(Bytes),
    #[prost(bytes = "bytes", tag = "16")]
    TransferLeader(Bytes),
    #[prost(message, tag = "17")]
    Backup(()),
    #[prost(message, tag = "18")]
    MoveMember(PlaceMessage),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct AnswerMessage {
    #[prost(oneof = "AnswerBody", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15")]
    pub(super) body: Option<AnswerBody>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum AnswerBody {
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
    #[prost(message, tag = "11")]
    Told(ToldMessage),
    #[prost(message, tag = "12")]
    Compacted(()),
    #[prost(message, tag = "13")]
    NotLeader(NotLeaderMessage),
    #[prost(message, tag = "14")]
    Status(StatusMessage),
    #[prost(bytes = "bytes", tag = "15")]
    Piece(Bytes),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ScanMessage {
    #[prost(string, tag = "1")]
    pub(super) prefix: String,
    #[prost(string, optional, tag = "2")]
    pub(super) after: Option<String>,
    #[prost(uint64, tag = "3")]
    pub(super) limit: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SequenceMessage {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(uint64, tag = "2")]
    pub(super) count: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchMessage {
    #[prost(string, tag = "1")]
    pub(super) prefix: String,
    #[prost(uint64, tag = "2")]
    pub(super) after: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PlaceMessage {
    #[prost(string, tag = "1")]
    pub(super) address: String,
    #[prost(bytes = "bytes", optional, tag = "2")]
    pub(super) id: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ToldMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) revisions: Vec<RevisionMessage>,
    #[prost(uint64, tag = "2")]
    pub(super) seen: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RevisionMessage {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) writes: Vec<WriteMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TransactionMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) conditions: Vec<ConditionMessage>,
    #[prost(message, repeated, tag = "2")]
    pub(super) writes: Vec<WriteMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConditionMessage {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(oneof = "ConditionKind", tags = "2, 3")]
    pub(super) kind: Option<ConditionKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum ConditionKind {
    #[prost(uint64, tag = "2")]
    At(u64),
    #[prost(message, tag = "3")]
    Absent(()),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WriteMessage {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(oneof = "WriteKind", tags = "2, 3")]
    pub(super) kind: Option<WriteKind>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum WriteKind {
    #[prost(message, tag = "2")]
    Put(PutMessage),
    #[prost(message, tag = "3")]
    Delete(()),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PutMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) value: Bytes,
    #[prost(uint64, optional, tag = "2")]
    pub(super) lease: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ValueMessage {
    #[prost(message, optional, tag = "1")]
    pub(super) entry: Option<EntryMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PageMessage {
    #[prost(message, repeated, tag = "1")]
    pub(super) entries: Vec<EntryMessage>,
    #[prost(bool, tag = "2")]
    pub(super) more: bool,
    #[prost(uint64, tag = "3")]
    pub(super) revision: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EntryMessage {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
    #[prost(uint64, tag = "3")]
    pub(super) version: u64,
    #[prost(uint64, optional, tag = "4")]
    pub(super) lease: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct RangeMessage {
    #[prost(uint64, tag = "1")]
    pub(super) start: u64,
    #[prost(uint64, tag = "2")]
    pub(super) end: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ConflictMessage {
    #[prost(string, tag = "1")]
    pub(super) key: String,
    #[prost(uint64, optional, tag = "2")]
    pub(super) found: Option<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NotLeaderMessage {
    #[prost(string, optional, tag = "1")]
    pub(super) leader: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StatusMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) id: Bytes,
    #[prost(string, tag = "2")]
    pub(super) address: String,
    #[prost(uint64, tag = "3")]
    pub(super) term: u64,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) leader: Option<Bytes>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) log: Option<u64>,
    #[prost(uint64, optional, tag = "6")]
    pub(super) applied: Option<u64>,
    #[prost(uint64, tag = "7")]
    pub(super) revision: u64,
    #[prost(message, repeated, tag = "8")]
    pub(super) members: Vec<MemberMessage>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MemberMessage {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) id: Bytes,
    #[prost(string, tag = "2")]
    pub(super) address: String,
    #[prost(bool, tag = "3")]
    pub(super) voter: bool,
}

impl From<Transaction> for TransactionMessage {
    fn from(transaction: Transaction) -> Self {
        let condition = |condition| match condition {
            Condition::Absent { key } => {
                ConditionMessage { key, kind: Some(ConditionKind::Absent(())) }
            }
            Condition::At { key, version } => {
                ConditionMessage { key, kind: Some(ConditionKind::At(version.get())) }
            }
        };
        let write = |write| match write {
            Write::Put { key, value, lease } => {
                let lease = lease.map(LeaseId::get);
                WriteMessage { key, kind: Some(WriteKind::Put(PutMessage { value, lease })) }
            }
            Write::Delete { key } => WriteMessage { key, kind: Some(WriteKind::Delete(())) },
        };
        Self {
            conditions: transaction.conditions.into_iter().map(condition).collect(),
            writes: transaction.writes.into_iter().map(write).collect(),
        }
    }
}

impl TryFrom<TransactionMessage> for Transaction {
    type Error = String;

    fn try_from(message: TransactionMessage) -> Result<Self, String> {
        let condition = |ConditionMessage { key, kind }| match kind {
            Some(ConditionKind::At(version)) => {
                Ok(Condition::At { key, version: Version::new(version) })
            }
            Some(ConditionKind::Absent(())) => Ok(Condition::Absent { key }),
            None => Err(unknown_kind("condition", &key)),
        };
        let write = |WriteMessage { key, kind }| match kind {
            Some(WriteKind::Put(PutMessage { value, lease })) => {
                Ok(Write::Put { key, value, lease: lease.map(LeaseId::new) })
            }
            Some(WriteKind::Delete(())) => Ok(Write::Delete { key }),
            None => Err(unknown_kind("write", &key)),
        };
        let conditions = message.conditions.into_iter().map(condition);
        let writes = message.writes.into_iter().map(write);
        Ok(Self {
            conditions: conditions.collect::<Result<_, String>>()?,
            writes: writes.collect::<Result<_, String>>()?,
        })
    }
}

impl From<Told> for ToldMessage {
    fn from(told: Told) -> Self {
        let mut revisions = Vec::<RevisionMessage>::new();
        for Change { revision, key, now } in told.changes {
            let number = revision.get();
            let kind = match now {
                Some(KeyValue { value, lease, .. }) => {
                    WriteKind::Put(PutMessage { value, lease: lease.map(LeaseId::get) })
                }
                None => WriteKind::Delete(()),
            };
            let write = WriteMessage { key, kind: Some(kind) };
            match revisions.last_mut() {
                Some(last) if last.number == number => last.writes.push(write),
                _ => revisions.push(RevisionMessage { number, writes: vec![write] }),
            }
        }
        Self { revisions, seen: told.seen.get() }
    }
}

impl TryFrom<ToldMessage> for Told {
    type Error = String;

    fn try_from(message: ToldMessage) -> Result<Self, String> {
        let mut changes = Vec::new();
        for RevisionMessage { number, writes } in message.revisions {
            let revision = Version::new(number);
            for WriteMessage { key, kind } in writes {
                let now = match kind {
                    Some(WriteKind::Put(PutMessage { value, lease })) => Some(KeyValue {
                        key: key.clone(),
                        value,
                        version: revision,
                        lease: lease.map(LeaseId::new),
                    }),
                    Some(WriteKind::Delete(())) => None,
                    None => return Err(unknown_kind("write", &key)),
                };
                changes.push(Change { revision, key, now });
            }
        }
        Ok(Self { changes, seen: Version::new(message.seen) })
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

impl From<MemberStatus> for StatusMessage {
    fn from(status: MemberStatus) -> Self {
        let member =
            |MemberInfo { id, address, voter }| MemberMessage { id: id_bytes(id), address, voter };
        Self {
            id: id_bytes(status.id),
            address: status.address,
            term: status.term,
            leader: status.leader.map(id_bytes),
            log: status.log,
            applied: status.applied,
            revision: status.revision.get(),
            members: status.members.into_iter().map(member).collect(),
        }
    }
}

impl TryFrom<StatusMessage> for MemberStatus {
    type Error = String;

    fn try_from(message: StatusMessage) -> Result<Self, String> {
        let member = |MemberMessage { id, address, voter }| {
            Ok(MemberInfo { id: id_of(&id)?, address, voter })
        };
        Ok(Self {
            id: id_of(&message.id)?,
            address: message.address,
            term: message.term,
            leader: message.leader.as_deref().map(id_of).transpose()?,
            log: message.log,
            applied: message.applied,
            revision: Version::new(message.revision),
            members: message.members.into_iter().map(member).collect::<Result<_, String>>()?,
        })
    }
}

fn unknown_kind(what: &str, key: &str) -> String {
    format!("a {what} of the key {key:?} is in a newer format: run a newer program")
}

/// Writes an id as messages have it.
pub(super) fn id_bytes(id: Uuid) -> Bytes {
    Bytes::copy_from_slice(id.as_bytes())
}

/// Reads an id, or says what is wrong with it.
pub(super) fn id_of(bytes: &[u8]) -> Result<Uuid, String> {
    Uuid::from_slice(bytes).map_err(|_| format!("an id of {} bytes, where 16 belong", bytes.len()))
}
