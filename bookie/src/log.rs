//! The log: where everything that a bookie must not forget is written, once.
//!
//! The log is a row of segment files, `log-<16 digits>`. It stores records of a kind and a
//! payload, both meaningless to it, and gives back the [`Place`] of each, at which
//! [`Reader::read`] finds it again.
//!
//! **Writing.** [`Tail::start`] spawns the one task that writes. Whatever is queued while the last
//! batch is written is the next: one write, past the system's cache and durable when it returns,
//! then all its places at once. One batch is in flight at a time, so a batch is wholly durable
//! before the next is written. A failed write is final: which of its bytes are on the disk cannot
//! be known, so nothing is tried again and the log takes no more records until it has been opened
//! anew. Room is set aside before: a disk that is full makes writes wait, and nothing fails.
//!
//! **Reading.** The last batches are in memory, as they were written. Older records are read from
//! the disk, neighbours with one access: a few through the system's cache, many past it, since who
//! reads many is catching up and wants them once; whole segments too, since it is the disk that
//! decays. One that is not sound is read once more past the cache, before it is called corrupt. At
//! any moment [`Reader::read_many`] has few accesses under way, each of a limited size: no more than
//! these can be ahead of a batch at the disk.
//!
//! **Opening.** [`open`] reads the records in order: all of them, or those behind a [`Mark`]. A
//! record that is invalid is one of two things. If nothing of a later batch follows, its batch was
//! never answered: the *torn tail* is cut off. Otherwise its batch was durable once: that is
//! *damage*, which is reported, and the records after it are still read. A log with damage cannot
//! say what it does not hold. Decay in the very last batch looks like a torn tail; nothing written
//! before a power loss could tell them apart.
//!
//! What `open` has shown survives a power loss from then on, answered or not.
//!
//! **Checking.** Each record carries a CRC over its bytes and over what is not stored with it: its
//! log, segment and offset. So bytes that are valid elsewhere, or were in the file when it was
//! another segment, are not valid here. Each segment lists those before it, and a record says which
//! was dropped since: a segment that is missing is missed. Only that the last ones are missing
//! altogether is not noticed.
//!
//! Not here: what records mean, and an index.

use std::fmt;
use std::io;

use crate::disk::is_full;

mod buffer;
mod reader;
mod recent;
mod record;
mod replay;
mod scan;
mod segment;
mod spares;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::{ReadError, Reader};
pub use record::PAYLOAD_BYTES_MAX;
pub use replay::{Cut, Damage, Known, Replayed, Settings, Shown, Visit, create, open};
pub use scan::Found;
pub use segment::SEGMENT_BYTES_MAX;
pub(crate) use segment::{Extent, ends};
pub use writer::{
    APPEND_BYTES_MAX, Append, Appender, BATCH_BYTES_MAX, Batch, Completions, Durable, Failed,
    QUEUE_BYTES_MAX, Tail,
};

/// Numbers a segment of a log. The first is 1; a number is never used for other records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub(crate) u32);

impl SegmentNumber {
    pub(crate) const FIRST: Self = Self(1);
    /// Far more than any disk holds.
    const MAX: Self = Self(u32::MAX / 2);

    /// Reads the number from the record that says that its segment was dropped.
    fn decode(payload: &[u8]) -> Option<Self> {
        payload.try_into().ok().map(|bytes| Self(u32::from_le_bytes(bytes)))
    }

    fn next(self) -> Self {
        assert!(self <= Self::MAX, "segment numbers are used up");
        Self(self.0 + 1)
    }
}

/// Displays the name of the segment's file.
impl fmt::Display for SegmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log-{:016}", self.0)
    }
}

/// The kind of the record that says that a segment is dropped: the only one that the log itself
/// reads. Its payload is the number.
pub(crate) const KIND_DROPPED: u8 = u8::MAX;

/// Says where in the log a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment that holds it.
    pub segment: SegmentNumber,
    /// Where its header begins in the segment's file.
    pub offset: u32,
    /// How long its payload is.
    pub payload_bytes: u32,
}

impl Place {
    /// Returns how many bytes the record takes in its segment.
    pub(crate) fn stored_bytes(self) -> u32 {
        let bytes = record::stored_bytes(self.payload_bytes as usize);
        u32::try_from(bytes).expect("payloads are limited")
    }
}

/// A moment in the life of a log, between two batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// The segment of the last batch before it.
    pub segment: SegmentNumber,
    /// Where that batch ends.
    pub offset: u32,
    /// The sequence number of that batch.
    pub sequence: u64,
}

impl Mark {
    /// Before the first batch.
    pub(crate) const BEGINNING: Self =
        Self { segment: SegmentNumber::FIRST, offset: 0, sequence: 0 };
}

/// Why the log could not be made, opened or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk refused.
    #[error("cannot {doing} {file}: {source}")]
    Io {
        /// What was being done, as a verb.
        doing: &'static str,
        /// The file it was done to.
        file: String,
        /// What the disk said.
        source: io::Error,
    },
    /// A file is there that this log, or this version of the program, must not touch.
    #[error("{file} is refused: {why}")]
    Refused {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// The directory holds no segment.
    #[error("the log has no segment file (log-...): the data that was in this directory is gone")]
    NoSegment,
    /// The task that writes ended before its time.
    #[error("the log's writer stopped unexpectedly")]
    Stopped,
}

impl LogError {
    /// Says what was being done to a file when the disk refused.
    fn io(doing: &'static str, file: impl fmt::Display) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, file: file.to_string(), source }
    }

    /// Says whether all that was wrong is that the disk is full.
    fn is_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }

    fn refused(file: impl fmt::Display, why: impl Into<String>) -> Self {
        Self::Refused { file: file.to_string(), why: why.into() }
    }
}
