//! What clients and bookies say to each other: the bodies of the wire's frames.
//!
//! The first frame on a stream says what the stream is for. Bodies marked *fixed* are laid out
//! by hand with little-endian numbers, and a reader takes their beginning and skips what a later
//! version has put behind it; the others are protobuf.
//!
//! | kind | name | from | body |
//! |---|---|---|---|
//! | 1 | open adds | client | [`OpenAdds`]; begins an adder on this stream |
//! | 2 | adder | client | fixed: the number of an adder u32; what follows is of that one |
//! | 3 | entry | both | the entry, as [`Entry`](crate::Entry) lays it out |
//! | 4 | added | bookie | fixed, [`Added`]: adder u32, first entry u64, last entry u64 |
//! | 5 | refused | bookie | [`Refused`]; on a stream of adds or pushes it is the last frame |
//! | 6 | read | client | [`Read`]; for each id, in order, an entry (3) or a refusal (5) comes back |
//! | 7 | fence | client | [`Fence`]; answered with 8 or 5 |
//! | 8 | state | bookie | [`LedgerState`] |
//! | 9 | confirmed | both | fixed: the last add confirmed, an entry id u64 |
//! | 10 | tail | client | [`Tail`]; answered with 3, 9 and 12 until either side ends the stream |
//! | 11 | credit | client | fixed: bytes u64 that may be pushed beyond those granted so far |
//! | 12 | missing | bookie | [`Missing`] |
//! | 13 | close adds | client | fixed: the number of an adder u32; nothing more comes from it |
//! | 14 | adds refused | bookie | [`AddsRefused`]; the adder's last frame |
//!
//! One stream of adds serves all ledgers that a client writes to a bookie: a stream for each would
//! cost a packet and a wake-up for each entry where many ledgers have few entries at a time. 1
//! begins an *adder*, who adds to one ledger, at one place and in one tenure; the client numbers
//! its adders on the stream upwards, up to [`ADDERS_MAX`] at a time. After 2 come the entries (3) of
//! one adder, in ascending order, until the next 2; 9 among them tells the writer's last add
//! confirmed and is not answered. 4 says that of those that an adder sent all from the first to the
//! last are on disk. After 14 the bookie ignores what is on its way from that adder, and goes on
//! with the others. The client sends 13 for each adder in the end, also for one that was refused;
//! what was added before it need not be answered any more.
//!
//! On a stream of reads any number of 6 may follow each other. 7 is a request: one frame there, one
//! frame back.
//!
//! A stream of pushes is opened with 10; then 11 may follow at any time. The bookie pushes the
//! entries of the tail's lane in ascending order, each once it is on disk there and known to be
//! confirmed, and 9 whenever the last add confirmed that it knows has moved; 9 comes before any
//! entry that it confirms. Of a tail with an end the client says that all of it is confirmed: its
//! last entries may be known to be so to the metastore alone. For an entry of the lane that it
//! ought to have by now (if the tail has no end, one below the highest that is on disk there) and
//! does not have or cannot read, the bookie pushes 12 and goes on. It pushes an entry or 12 only
//! while some of the credit is left, each costing the bytes of its body, so that the last one may
//! overdraw it; 9 costs nothing. It finishes the stream after the lane's last entry, if the tail
//! has an end.

use prost::Message;
use uuid::Uuid;

use crate::{BookieId, ENSEMBLE_MAX, EntryId, LedgerId, Replication, WriterId};

/// The kinds of frames; see the table of this module.
pub mod kind {
    /// Begins an adder on a stream of adds.
    pub const OPEN_ADDS: u8 = 1;
    /// Says whose the entries are that follow.
    pub const ADDER: u8 = 2;
    /// Carries one entry.
    pub const ENTRY: u8 = 3;
    /// Acknowledges a run of entries.
    pub const ADDED: u8 = 4;
    /// Refuses.
    pub const REFUSED: u8 = 5;
    /// Asks for entries.
    pub const READ: u8 = 6;
    /// Asks for a ledger's state on the bookie, and fences it if so asked.
    pub const FENCE: u8 = 7;
    /// Tells a ledger's state on the bookie.
    pub const STATE: u8 = 8;
    /// Tells a last add confirmed.
    pub const CONFIRMED: u8 = 9;
    /// Asks for entries to be pushed as they are confirmed.
    pub const TAIL: u8 = 10;
    /// Lets the bookie push more bytes.
    pub const CREDIT: u8 = 11;
    /// Says of an entry that it cannot be pushed, and why.
    pub const MISSING: u8 = 12;
    /// Ends an adder.
    pub const CLOSE_ADDS: u8 = 13;
    /// Refuses what an adder adds.
    pub const ADDS_REFUSED: u8 = 14;
}

/// The most entries that one [`Read`] may ask for.
pub const READ_ENTRIES_MAX: usize = 1024;

/// The most adders that one stream of adds may have at a time.
pub const ADDERS_MAX: usize = 1 << 16;

/// Says which ledger an adder adds to, and who it is.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct OpenAdds {
    /// Its number, which is higher than those before it on this stream.
    #[prost(uint32, tag = "4")]
    pub adder: u32,
    /// The ledger's id.
    #[prost(uint64, tag = "1")]
    pub ledger: u64,
    /// The writer's UUID; absent: these are recovery's adds.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub writer: Option<Vec<u8>>,
    /// The fragment that the writer writes; the bookie keeps it, so that the metadata of lost
    /// ledgers can be pieced together from the bookies.
    #[prost(message, optional, tag = "3")]
    pub fragment: Option<FragmentBrief>,
}

/// A fragment as a bookie keeps it.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct FragmentBrief {
    /// E.
    #[prost(uint32, tag = "1")]
    pub ensemble_size: u32,
    /// Qw.
    #[prost(uint32, tag = "2")]
    pub write_quorum: u32,
    /// Qa.
    #[prost(uint32, tag = "3")]
    pub ack_quorum: u32,
    /// The fragment's first entry.
    #[prost(uint64, tag = "4")]
    pub first: u64,
    /// The UUIDs of its bookies, by place.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub ensemble: Vec<Vec<u8>>,
}

impl FragmentBrief {
    /// Makes the brief of a fragment.
    pub fn new(replication: Replication, first: EntryId, ensemble: &[BookieId]) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self {
            ensemble_size: number(replication.ensemble()),
            write_quorum: number(replication.write_quorum()),
            ack_quorum: number(replication.ack_quorum()),
            first: first.get(),
            ensemble: ensemble.iter().map(|bookie| bookie.0.as_bytes().to_vec()).collect(),
        }
    }
}

impl OpenAdds {
    /// Returns ledger and writer, or says what is wrong with them.
    pub fn parse(&self) -> Result<(LedgerId, Option<WriterId>), Refusal> {
        let writer = match &self.writer {
            None => None,
            Some(bytes) => Some(WriterId(
                Uuid::from_slice(bytes).map_err(|_| bad("the writer's id is not a UUID"))?,
            )),
        };
        Ok((ledger(self.ledger)?, writer))
    }
}

/// Asks for entries, each of which is answered by itself.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Read {
    /// The ledger's id.
    #[prost(uint64, tag = "1")]
    pub ledger: u64,
    /// The entries' ids, at most [`READ_ENTRIES_MAX`].
    #[prost(uint64, repeated, tag = "2")]
    pub entries: Vec<u64>,
    /// Fence the ledger first, as every read of a recovery does.
    #[prost(bool, tag = "3")]
    pub fence: bool,
}

impl Read {
    /// Returns the ledger, or says what is wrong with the request.
    pub fn parse(&self) -> Result<LedgerId, Refusal> {
        if self.entries.is_empty() || self.entries.len() > READ_ENTRIES_MAX {
            return Err(bad(&format!("ask for 1 to {READ_ENTRIES_MAX} entries at a time")));
        }
        ledger(self.ledger)
    }
}

/// Asks for a ledger's state on the bookie.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Fence {
    /// The ledger's id.
    #[prost(uint64, tag = "1")]
    pub ledger: u64,
    /// Whether to fence the ledger before the answer; without it nothing changes.
    #[prost(bool, tag = "2")]
    pub fence: bool,
}

impl Fence {
    /// Returns the ledger, or says what is wrong with it.
    pub fn parse(&self) -> Result<LedgerId, Refusal> {
        ledger(self.ledger)
    }
}

/// A ledger's state on a bookie.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct LedgerState {
    /// The highest last add confirmed that the writer has told the bookie, in an add or by itself.
    #[prost(uint64, optional, tag = "1")]
    pub last_add_confirmed: Option<u64>,
    /// Whether the ledger is fenced here, on disk.
    #[prost(bool, tag = "2")]
    pub fenced: bool,
}

/// Asks for one lane of a ledger to be pushed as it is confirmed: the entries from `from` to `to`
/// whose id divided by `lanes` leaves `lane`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Tail {
    /// The ledger's id.
    #[prost(uint64, tag = "1")]
    pub ledger: u64,
    /// The first entry that may be pushed.
    #[prost(uint64, tag = "2")]
    pub from: u64,
    /// The last entry to be pushed, up to which the client knows all to be confirmed; without it
    /// there is no end.
    #[prost(uint64, optional, tag = "3")]
    pub to: Option<u64>,
    /// How many lanes the ledger is cut into: 1 to [`ENSEMBLE_MAX`].
    #[prost(uint32, tag = "4")]
    pub lanes: u32,
    /// Which lane, below `lanes`.
    #[prost(uint32, tag = "5")]
    pub lane: u32,
    /// The bytes that may be pushed until more are granted.
    #[prost(uint64, tag = "6")]
    pub credit: u64,
}

impl Tail {
    /// Returns the ledger, or says what is wrong with the request.
    pub fn parse(&self) -> Result<LedgerId, Refusal> {
        let lanes = usize::try_from(self.lanes).unwrap_or(usize::MAX);
        if !(1..=ENSEMBLE_MAX).contains(&lanes) || self.lane >= self.lanes {
            return Err(bad(&format!(
                "cut the ledger into 1 to {ENSEMBLE_MAX} lanes, and name one"
            )));
        }
        ledger(self.ledger)
    }
}

/// Says of an entry of a tail that it cannot be pushed.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Missing {
    /// The entry.
    #[prost(uint64, tag = "1")]
    pub entry: u64,
    /// Why.
    #[prost(message, required, tag = "2")]
    pub refused: Refused,
}

/// Acknowledges: of the entries that an adder sent, all from the first to the last are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Added {
    /// The adder's number.
    pub adder: u32,
    /// The lowest of them.
    pub first: EntryId,
    /// The highest of them.
    pub last: EntryId,
}

impl Added {
    /// Encodes the body of the frame.
    pub fn encode(&self) -> [u8; 20] {
        let mut body = [0; 20];
        body[..4].copy_from_slice(&self.adder.to_le_bytes());
        body[4..12].copy_from_slice(&self.first.get().to_le_bytes());
        body[12..].copy_from_slice(&self.last.get().to_le_bytes());
        body
    }

    /// Decodes the body of a frame; none when it is too short.
    pub fn decode(body: &[u8]) -> Option<Self> {
        Some(Self {
            adder: decode_adder(body)?,
            first: EntryId::new(u64_at(body, 4)?),
            last: EntryId::new(u64_at(body, 12)?),
        })
    }
}

/// Refuses what an adder adds, from the first entry that is not acknowledged.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct AddsRefused {
    /// The adder's number.
    #[prost(uint32, tag = "1")]
    pub adder: u32,
    /// Why.
    #[prost(message, required, tag = "2")]
    pub refused: Refused,
}

/// Encodes the body of a frame that is one number: of [`kind::CONFIRMED`] or [`kind::CREDIT`].
pub const fn encode_number(number: u64) -> [u8; 8] {
    number.to_le_bytes()
}

/// Decodes what [`encode_number`] made; none when it is too short.
pub fn decode_number(body: &[u8]) -> Option<u64> {
    u64_at(body, 0)
}

/// Encodes the body of a frame that is the number of an adder: of [`kind::ADDER`] or
/// [`kind::CLOSE_ADDS`].
pub const fn encode_adder(adder: u32) -> [u8; 4] {
    adder.to_le_bytes()
}

/// Decodes what [`encode_adder`] made; none when it is too short.
pub fn decode_adder(body: &[u8]) -> Option<u32> {
    body.first_chunk().copied().map(u32::from_le_bytes)
}

/// A refusal on the wire.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Refused {
    /// The refusal's number.
    #[prost(uint32, tag = "1")]
    pub code: u32,
    /// What was wrong, for people.
    #[prost(string, tag = "2")]
    pub why: String,
}

/// Why a bookie does not do what it was asked. Only [`Absent`](Self::Absent) says that an entry
/// is not there; everything else says nothing about it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Refusal {
    /// The bookie is certain that it never stored the entry.
    #[error("never stored the entry")]
    Absent,
    /// Nothing certain: the bookie cannot tell, or it could not be asked.
    #[error("{0}")]
    Unknown(String),
    /// The bookie's copy, or what was sent to it, is damaged.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The ledger is fenced: its writer must stop.
    #[error("the ledger is fenced")]
    Fenced,
    /// Another writer was first.
    #[error("the ledger belongs to another writer")]
    OtherWriter,
    /// Other bytes stand at this entry id.
    #[error("other bytes stand at this entry id")]
    Conflict,
    /// The bookie takes no writes now.
    #[error("takes no writes: {0}")]
    ReadOnly(String),
    /// The request makes no sense to this bookie.
    #[error("bad request: {0}")]
    BadRequest(String),
    /// The ledger was deleted.
    #[error("the ledger was deleted")]
    Deleted,
}

impl Refusal {
    /// Puts the refusal into a message.
    pub fn to_message(&self) -> Refused {
        let (code, why) = match self {
            Self::Absent => (1, ""),
            Self::Unknown(why) => (2, why.as_str()),
            Self::Corrupt(why) => (3, why.as_str()),
            Self::Fenced => (4, ""),
            Self::OtherWriter => (5, ""),
            Self::Conflict => (6, ""),
            Self::ReadOnly(why) => (7, why.as_str()),
            Self::BadRequest(why) => (8, why.as_str()),
            Self::Deleted => (9, ""),
        };
        Refused { code, why: why.to_owned() }
    }

    /// Takes the refusal out of a message. What a later version may say counts as
    /// [`Unknown`](Self::Unknown), which decides nothing.
    pub fn from_message(message: Refused) -> Self {
        match message.code {
            1 => Self::Absent,
            3 => Self::Corrupt(message.why),
            4 => Self::Fenced,
            5 => Self::OtherWriter,
            6 => Self::Conflict,
            7 => Self::ReadOnly(message.why),
            8 => Self::BadRequest(message.why),
            9 => Self::Deleted,
            _ => Self::Unknown(message.why),
        }
    }
}

fn ledger(id: u64) -> Result<LedgerId, Refusal> {
    LedgerId::new(id).ok_or_else(|| bad("the ledger id is too large"))
}

fn bad(why: &str) -> Refusal {
    Refusal::BadRequest(why.to_owned())
}

fn u64_at(body: &[u8], at: usize) -> Option<u64> {
    let bytes = body.get(at..at + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_survive_the_wire() {
        let why = || "why".to_owned();
        let all = [
            Refusal::Absent,
            Refusal::Unknown(why()),
            Refusal::Corrupt(why()),
            Refusal::Fenced,
            Refusal::OtherWriter,
            Refusal::Conflict,
            Refusal::ReadOnly(why()),
            Refusal::BadRequest(why()),
            Refusal::Deleted,
        ];
        for refusal in all {
            assert_eq!(Refusal::from_message(refusal.to_message()), refusal);
        }
    }

    #[test]
    fn an_unknown_refusal_is_never_absence() {
        for code in (0..300).filter(|code| !(1..=9).contains(code)) {
            let refusal = Refusal::from_message(Refused { code, why: String::new() });
            assert_eq!(refusal, Refusal::Unknown(String::new()));
        }
    }

    #[test]
    fn a_fixed_body_is_read_from_its_beginning() {
        let added = Added { adder: 3, first: EntryId::new(4), last: EntryId::new(9) };
        let mut longer = added.encode().to_vec();
        longer.extend_from_slice(b"a later field");
        assert_eq!(Added::decode(&longer), Some(added));
        assert_eq!(Added::decode(&longer[..19]), None);
        assert_eq!(decode_adder(&encode_adder(7)), Some(7));
        assert_eq!(decode_adder(&[7; 3]), None);
    }
}
