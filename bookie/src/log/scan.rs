//! Looks through a segment record by record.

use super::record::{self, ALIGNMENT, Header};
use super::segment::{self, Segment};
use super::{LogError, Place, ReadError, Reader, SegmentNumber};
use crate::disk::BLOCK_BYTES;

/// How much is read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// How much is read beyond what was asked for, at most: a window, and a record that began before.
const BEYOND_BYTES: u32 = 4 << 20;
const _: () = assert!(WINDOW_BYTES + record::PAYLOAD_BYTES_MAX < BEYOND_BYTES as usize);

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
    pub fn scan(
        &self,
        number: SegmentNumber,
        (from, end): (u32, u32),
        bytes: u32,
        visit: &mut dyn FnMut(Found<'_>),
    ) -> Result<Option<u32>, ReadError> {
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

    /// Looks through a part of a segment as [`scan`](Self::scan) does, but as the disk has it,
    /// whatever the system's cache has; what was read does not stay there.
    pub fn scan_disk(
        &self,
        number: SegmentNumber,
        (from, end): (u32, u32),
        bytes: u32,
        visit: &mut dyn FnMut(Found<'_>),
    ) -> Result<Option<u32>, ReadError> {
        let reach = bytes.saturating_add(BEYOND_BYTES);
        self.uncache(number, from, reach);
        let next = self.scan(number, (from, end), bytes, visit);
        self.uncache(number, from, reach);
        next
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
    window: Vec<u8>,
    window_start: u32,
}

impl<'a> Scan<'a> {
    pub(super) fn new(segment: &'a Segment, known_end: Option<u32>) -> Result<Self, LogError> {
        let len = segment::file_bytes(&*segment.file, segment.number)?;
        let len = known_end.map_or(len, |end| end.min(len));
        Ok(Self { segment, len, window: Vec::new(), window_start: 0 })
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
