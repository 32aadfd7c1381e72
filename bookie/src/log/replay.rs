//! Opens a log: reads all of it, tells a torn tail from damage, and settles the tail.

use std::sync::Arc;

use uuid::Uuid;

use super::record::{self, ALIGNMENT, Header};
use super::segment::{self, Found, HEADER_BYTES, SEGMENT_BYTES_MAX, Segment};
use super::writer::Tail;
use super::{LogError, Place, SegmentNumber};
use crate::disk::Disk;

/// How much is read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// How to open a log.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The UUID that the log was made with.
    pub log: Uuid,
    /// A batch that would make a segment longer begins the next; at most [`SEGMENT_BYTES_MAX`],
    /// which is for everything but tests.
    pub segment_bytes_max: u32,
}

/// Is shown each record's place, kind and payload. An error, in words, ends the replay.
pub type Visit<'a> = dyn FnMut(Place, u8, &[u8]) -> Result<(), String> + 'a;

/// What was found wrong when a log was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The torn tail that was cut off: nothing that was ever answered.
    pub cut: Option<Cut>,
    /// Durable bytes that cannot be read any more. If there are any, the log cannot say of a
    /// record that it was never there.
    pub damages: Vec<Damage>,
}

/// A torn tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The segment that was cut.
    pub segment: SegmentNumber,
    /// How long it is now.
    pub offset: u32,
    /// How much was cut off.
    pub bytes: u32,
}

/// A part of the log that was durable once and is unreadable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Bytes of a segment.
    #[error("{segment} is corrupt: {bytes} bytes from offset {offset} on")]
    Range {
        /// The segment.
        segment: SegmentNumber,
        /// Where the damage begins.
        offset: u32,
        /// How far it reaches, until the next record that can be read.
        bytes: u32,
    },
    /// Whole segments.
    #[error("segment files are missing: from {first} to {last}")]
    Missing {
        /// The first that is missing.
        first: SegmentNumber,
        /// The last that is missing.
        last: SegmentNumber,
    },
}

/// Makes a log with its first segment, durably. Blocks.
///
/// Refuses a directory that holds records. What is left of an attempt that was cut short is
/// replaced.
pub fn create(disk: &dyn Disk, log: Uuid) -> Result<(), LogError> {
    for number in segment::list(disk)? {
        let file = disk.open(&number.to_string()).map_err(LogError::io("open", number))?;
        if segment::file_bytes(&*file, number)? > HEADER_BYTES {
            let why = "it holds records, so no new log is made in its directory";
            return Err(LogError::refused(number, why));
        }
        disk.remove(&number.to_string()).map_err(LogError::io("remove", number))?;
    }
    Segment::create(disk, log, SegmentNumber::FIRST, 0).map(drop)
}

/// Opens a log and shows all its records, in the order they were written. Blocks.
///
/// What was shown is durable when this returns. Damage is no error; a segment of another log or of
/// a newer format is, and so is a disk that cannot be read. Nothing is changed before all
/// records have been shown.
pub fn open(
    disk: Arc<dyn Disk>,
    settings: Settings,
    visit: &mut Visit<'_>,
) -> Result<(Tail, Replayed), LogError> {
    let numbers = segment::list(&*disk)?;
    let &last = numbers.last().ok_or(LogError::NoSegment)?;
    let mut replay = Replay { visit, replayed: Replayed::default(), sequence: 0, previous: None };
    let mut tail = Tail {
        disk: disk.clone(),
        log: settings.log,
        segment_bytes_max: settings.segment_bytes_max.min(SEGMENT_BYTES_MAX),
        segment: None,
        next: last.next(),
        end: 0,
        sequence: 0,
        buffer: Vec::new(),
    };
    for number in numbers {
        replay.note_missing(number);
        let bytes = match Segment::open(&*disk, settings.log, number)? {
            Found::Whole(segment) => {
                let end = replay.segment(&segment, number == last)?;
                if number == last {
                    end.settle(&*disk, &segment)?;
                    tail.segment = Some(segment);
                }
                end.offset
            }
            // Its making was cut short, before it could hold a record. The first segment is whole
            // before there is a log to open.
            Found::Headless { file_bytes: ..=HEADER_BYTES }
                if number == last && number != SegmentNumber::FIRST =>
            {
                let name = number.to_string();
                disk.remove(&name).map_err(LogError::io("remove", name))?;
                tail.next = number;
                break;
            }
            Found::Headless { file_bytes } => {
                replay.note_damage(number, 0, file_bytes);
                file_bytes
            }
        };
        replay.previous = Some((number, bytes));
    }
    tail.end = replay.previous.map_or(0, |(_, bytes)| bytes);
    tail.sequence = replay.sequence;
    Ok((tail, replay.replayed))
}

struct Replay<'a, 'v> {
    visit: &'a mut Visit<'v>,
    replayed: Replayed,
    /// The highest sequence number of a batch so far.
    sequence: u64,
    /// The segment before and its length.
    previous: Option<(SegmentNumber, u32)>,
}

impl Replay<'_, '_> {
    fn note_missing(&mut self, found: SegmentNumber) {
        let first = self.previous.map_or(SegmentNumber::FIRST, |(number, _)| number.next());
        if first < found {
            let last = SegmentNumber(found.0 - 1);
            self.replayed.damages.push(Damage::Missing { first, last });
            self.previous = None;
        }
    }

    fn note_damage(&mut self, segment: SegmentNumber, offset: u32, end: u32) {
        self.replayed.damages.push(Damage::Range { segment, offset, bytes: end - offset });
    }

    /// Shows a segment's records. Only the last segment can have a torn tail: the next one is
    /// made when all before it is durable.
    fn segment(&mut self, segment: &Segment, is_last: bool) -> Result<End, LogError> {
        if let Some((number, bytes)) = self.previous
            && bytes < segment.previous_bytes
        {
            self.note_damage(number, bytes, segment.previous_bytes);
        }
        let mut scan = Scan::new(segment)?;
        let mut end = End { offset: HEADER_BYTES, batch_start: 0, is_torn: false };
        while end.offset < scan.len {
            if let Some(record) = scan.record_at(end.offset)? {
                self.show(segment.number, end.offset, &record)?;
                end.batch_start = record.header.batch.start;
                end.offset = record.end;
            } else if is_last && !scan.later_batch_follows(end.offset)? {
                end.is_torn = true;
                let bytes = scan.len - end.offset;
                let cut = Cut { segment: segment.number, offset: end.offset, bytes };
                self.replayed.cut = Some(cut);
                break;
            } else {
                let next = scan.next_record(end.offset)?.unwrap_or(scan.len);
                self.note_damage(segment.number, end.offset, next);
                end.offset = next;
            }
        }
        Ok(end)
    }

    fn show(
        &mut self,
        segment: SegmentNumber,
        offset: u32,
        record: &Record<'_>,
    ) -> Result<(), LogError> {
        let Header { payload_bytes, kind, flags, batch } = record.header;
        let shown = if flags == 0 {
            (self.visit)(Place { segment, offset, payload_bytes }, kind, record.payload)
        } else {
            Err(format!("it has flags {flags:#04x} of a newer format; start a newer program"))
        };
        shown.map_err(|why| {
            LogError::refused(segment, format!("the record at offset {offset}: {why}"))
        })?;
        self.sequence = self.sequence.max(batch.sequence);
        Ok(())
    }
}

/// Where a segment's records end.
struct End {
    offset: u32,
    /// Where the last batch begins, or the file if there is none.
    batch_start: u32,
    is_torn: bool,
}

impl End {
    /// Makes what was shown of the last segment durable, and cuts off the rest.
    fn settle(&self, disk: &dyn Disk, segment: &Segment) -> Result<(), LogError> {
        let settle = || {
            if self.is_torn {
                segment.file.set_len(u64::from(self.offset))?;
            }
            // Written again, because pages whose sync failed in an earlier process can look clean
            // without being on the disk: a sync alone would skip them.
            let bytes = (self.offset - self.batch_start) as usize;
            let bytes = segment.read(self.batch_start, bytes)?;
            segment.file.write_at(u64::from(self.batch_start), &bytes)?;
            segment.file.sync_data()?;
            disk.sync_names()
        };
        settle().map_err(LogError::io("settle the end of", segment.number))
    }
}

struct Record<'a> {
    header: Header,
    payload: &'a [u8],
    /// Where the next record begins.
    end: u32,
}

/// Looks for records in one segment.
struct Scan<'a> {
    segment: &'a Segment,
    len: u32,
    window: Vec<u8>,
    window_start: u32,
}

impl<'a> Scan<'a> {
    fn new(segment: &'a Segment) -> Result<Self, LogError> {
        let len = segment::file_bytes(&*segment.file, segment.number)?;
        Ok(Self { segment, len, window: Vec::new(), window_start: 0 })
    }

    fn record_at(&mut self, offset: u32) -> Result<Option<Record<'_>>, LogError> {
        let seed = self.segment.seed;
        let Some(header) = self
            .bytes(offset, record::HEADER_BYTES)?
            .and_then(|bytes| Header::parse(bytes, offset))
        else {
            return Ok(None);
        };
        let stored_bytes = record::stored_bytes(header.payload_bytes as usize);
        let stored = self.bytes(offset, stored_bytes)?;
        let valid = stored.filter(|stored| record::is_valid(seed, offset, stored));
        Ok(valid.map(|stored| Record {
            header,
            payload: &stored[record::HEADER_BYTES..][..header.payload_bytes as usize],
            end: offset + record::length(stored),
        }))
    }

    /// Finds the first record after a bad one.
    fn next_record(&mut self, bad: u32) -> Result<Option<u32>, LogError> {
        for offset in (bad..self.len).step_by(ALIGNMENT).skip(1) {
            if self.record_at(offset)?.is_some() {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// Tells whether a batch was written after the one that a bad record belongs to. Records of
    /// the bad one's own batch prove nothing: it may have been torn in its midst.
    fn later_batch_follows(&mut self, bad: u32) -> Result<bool, LogError> {
        let mut from = bad;
        while let Some(offset) = self.next_record(from)? {
            if self.record_at(offset)?.is_some_and(|record| record.header.batch.start > bad) {
                return Ok(true);
            }
            from = offset;
        }
        Ok(false)
    }

    /// Gives bytes of the file; `None` if it ends before.
    fn bytes(&mut self, offset: u32, wanted: usize) -> Result<Option<&[u8]>, LogError> {
        let rest = (self.len - offset) as usize;
        if wanted > rest {
            return Ok(None);
        }
        let end = offset as usize + wanted;
        if offset < self.window_start || end > self.window_start as usize + self.window.len() {
            let bytes = wanted.max(WINDOW_BYTES).min(rest);
            let number = self.segment.number;
            self.window = self.segment.read(offset, bytes).map_err(LogError::io("read", number))?;
            self.window_start = offset;
        }
        let start = (offset - self.window_start) as usize;
        Ok(Some(&self.window[start..start + wanted]))
    }
}
