//! Looks through a segment record by record.

use std::io;
use std::ops::Range;

use super::buffer::Buffer;
use super::record::{self, ALIGNMENT, Header};
use super::segment::{self, Segment};
use super::{LogError, Place, ReadError, Reader, SegmentNumber};
use crate::disk::BLOCK_BYTES;

/// How much is read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What a scan of a segment finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A record: its place, its kind and its payload.
    Record(Place, u8, &'a [u8]),
    /// Bytes of which no record can be made.
    Damage {
        /// Where they begin.
        offset: u32,
        /// How many they are.
        bytes: u32,
    },
}

impl Reader {
    /// Looks through a part of a segment, from where a scan has got to (first: 0), of which the end
    /// is known and all is durable: at least one record, and no more than about so many bytes.
    /// Returns where to go on; none at the end. Blocks.
    ///
    /// It is what the disk has, whatever the system's cache has, and it does not stay there.
    pub fn scan(
        &self,
        number: SegmentNumber,
        (from, end): (u32, u32),
        bytes: u32,
        visit: &mut dyn FnMut(Found<'_>),
    ) -> Result<Option<u32>, ReadError> {
        if from == 0 {
            // Its header is read anew.
            self.forget(number);
        }
        let segment = match self.segment(number) {
            Err(ReadError::Corrupt { .. }) => {
                // Without its header no record can be checked.
                visit(Found::Damage { offset: from, bytes: end - from });
                return Ok(None);
            }
            opened => opened?,
        };
        let mut scan = Scan::new(&segment, Some(end))?;
        let mut offset = from.max(segment.start);
        let until = offset.saturating_add(bytes);
        scan.until = until;
        while offset < scan.len && offset < until {
            offset = if let Some(record) = scan.record_at(offset)? {
                let Header { payload_bytes, kind, .. } = record.header;
                let place = Place { segment: number, offset, payload_bytes };
                visit(Found::Record(place, kind, record.payload));
                record.end
            } else {
                let next = scan.next_record(offset)?.unwrap_or(end);
                visit(Found::Damage { offset, bytes: next - offset });
                next
            };
        }
        if scan.len <= offset && offset < end {
            // The file is shorter than it was.
            visit(Found::Damage { offset, bytes: end - offset });
            return Ok(None);
        }
        Ok(Some(offset).filter(|offset| *offset < end))
    }
}

pub(super) struct Record<'a> {
    pub(super) header: Header,
    pub(super) payload: &'a [u8],
    /// Where the next record begins.
    pub(super) end: u32,
}

/// Looks for records in one segment.
pub(super) struct Scan<'a> {
    segment: &'a Segment,
    /// How far the segment goes.
    pub(super) len: u32,
    /// How far it is read ahead.
    until: u32,
    window: Buffer,
    /// What of the segment is in the window, from its beginning on.
    inside: Range<usize>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(segment: &'a Segment, known_end: Option<u32>) -> Result<Self, LogError> {
        let len = segment::file_bytes(&*segment.file, segment.number)?;
        let len = known_end.map_or(len, |end| end.min(len));
        Ok(Self { segment, len, until: len, window: Buffer::zeros(0), inside: 0..0 })
    }

    pub(super) fn record_at(&mut self, offset: u32) -> Result<Option<Record<'_>>, LogError> {
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
            end: record::end(header, offset),
        }))
    }

    /// Finds the first record after a bad one.
    pub(super) fn next_record(&mut self, bad: u32) -> Result<Option<u32>, LogError> {
        for offset in (bad..self.len).step_by(ALIGNMENT).skip(1) {
            if self.record_at(offset)?.is_some() {
                return Ok(Some(offset));
            }
        }
        Ok(None)
    }

    /// Tells whether a batch was written after the one that a bad record belongs to. Records of
    /// the bad one's own batch prove nothing: it may have been torn in its midst.
    pub(super) fn later_batch_follows(&mut self, bad: u32) -> Result<bool, LogError> {
        for start in (0..self.len).step_by(BLOCK_BYTES).skip_while(|start| *start <= bad) {
            if self.record_at(start)?.is_some_and(|record| record.header.batch.start == start) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Tells whether there seems to be what is left of the batch of this number or the one before.
    pub(super) fn is_torn(&mut self, offset: u32, sequence: u64) -> Result<bool, LogError> {
        let header = self.bytes(offset, record::HEADER_BYTES)?;
        let header = header.and_then(|bytes| Header::parse(bytes, offset));
        Ok(header.is_some_and(|header| (sequence - 1..=sequence).contains(&header.batch.sequence)))
    }

    /// Gives bytes of the file; `None` if it ends before.
    fn bytes(&mut self, offset: u32, wanted: usize) -> Result<Option<&[u8]>, LogError> {
        if wanted > (self.len - offset) as usize {
            return Ok(None);
        }
        let start = offset as usize;
        let end = start + wanted;
        if start < self.inside.start || end > self.inside.end {
            self.read(start, end).map_err(LogError::io("read", self.segment.number))?;
        }
        let start = start - self.inside.start;
        Ok(Some(&self.window.bytes()[start..start + wanted]))
    }

    /// Reads what begins and ends there, and more if it is wanted too.
    fn read(&mut self, start: usize, end: usize) -> io::Result<()> {
        let until = if start < self.until as usize { self.until.min(self.len) } else { self.len };
        let end = end.max((start + WINDOW_BYTES).min(until as usize));
        let start = start / BLOCK_BYTES * BLOCK_BYTES;
        let bytes = (end - start).next_multiple_of(BLOCK_BYTES);
        if self.window.bytes().len() < bytes {
            self.window = Buffer::zeros(bytes);
        }
        self.inside = 0..0;
        let window = &mut self.window.bytes_mut()[..bytes];
        let read = self.segment.file.read_blocks(start as u64, window)?;
        self.inside = start..start + read;
        if self.inside.end < end { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
    }
}
