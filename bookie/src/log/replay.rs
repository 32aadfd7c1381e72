//! Opens a log: reads it, tells a torn tail from damage, and settles the tail.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use uuid::Uuid;

use super::buffer::Buffer;
use super::record::{FLAG_LAST, Header};
use super::scan::{Record, Scan};
use super::segment::{self, Ends, Segment};
use super::spares::Spares;
use super::writer::Tail;
use super::{KIND_DROPPED, LogError, Mark, Place, SegmentNumber};
use crate::disk::{BLOCK_BYTES, Disk};

/// How to open a log.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The UUID that the log was made with.
    pub log: Uuid,
    /// A batch that would make a segment longer begins the next; at most
    /// [`SEGMENT_BYTES_MAX`](segment::SEGMENT_BYTES_MAX), which is for everything but tests.
    pub segment_bytes_max: u32,
}

/// What is known of a log from elsewhere, so that only the rest is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The records before it are known.
    pub mark: Mark,
    /// All segments that there were at the mark, and where the records of each end.
    pub segments: BTreeMap<SegmentNumber, u32>,
}

/// What a replay shows.
#[derive(Clone, Copy, Debug)]
pub enum Shown<'a> {
    /// A record: its place, its kind and its payload.
    Record(Place, u8, &'a [u8]),
    /// The end of a segment that is not the last: all that was shown until now is durable.
    End {
        /// The moment.
        mark: Mark,
        /// All segments that are not known to be dropped, with their ends.
        segments: &'a BTreeMap<SegmentNumber, u32>,
        /// Some of what there was until now is lost.
        damaged: bool,
    },
}

/// Is shown what is in the log. An error, in words, ends the replay.
pub type Visit<'a> = dyn FnMut(Shown<'_>) -> Result<(), String> + 'a;

/// What was found wrong when a log was opened.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The torn tail that was cut off, if it can be told from what the file held before: nothing
    /// that was ever answered.
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

impl Damage {
    const fn segment(&self) -> SegmentNumber {
        match self {
            Self::Range { segment, .. } => *segment,
            Self::Missing { first, .. } => *first,
        }
    }
}

/// Makes a log with its first segment, durably. Blocks.
///
/// Refuses a directory that holds records. What is left of an attempt that was cut short is
/// replaced.
pub fn create(disk: &dyn Disk, log: Uuid) -> Result<(), LogError> {
    for number in segment::list(disk)? {
        let file = disk.open(&number.to_string()).map_err(LogError::io("open", number))?;
        if segment::file_bytes(&*file, number)? as usize > BLOCK_BYTES {
            let why = "it holds records, so no new log is made in its directory";
            return Err(LogError::refused(number, why));
        }
        disk.remove(&number.to_string()).map_err(LogError::io("remove", number))?;
    }
    let spares = Spares::find(disk).map_err(LogError::io("list", "the directory"))?;
    Segment::create(disk, &spares, log, SegmentNumber::FIRST, &Ends::new()).map(drop)
}

/// Opens a log and shows its records, in the order they were written: all, or those that are not
/// known. Blocks.
///
/// What was shown is durable when this returns. Damage is no error; a segment of another log or of
/// a newer format is, and so is a disk that cannot be read. Nothing is changed before all
/// records have been shown.
pub fn open(
    disk: Arc<dyn Disk>,
    settings: Settings,
    known: Option<&Known>,
    visit: &mut Visit<'_>,
) -> Result<(Tail, Replayed), LogError> {
    let present = segment::list(&*disk)?;
    let &last = present.last().ok_or(LogError::NoSegment)?;
    let spares = Spares::find(&*disk).map_err(LogError::io("list", "the directory"))?;
    let mut replay = Replay {
        visit,
        replayed: Replayed::default(),
        segments: Ends::new(),
        mark: known.map_or(Mark::BEGINNING, |known| known.mark),
    };
    let since = known.map_or(SegmentNumber::FIRST, |known| known.mark.segment);
    // The newest header that is whole tells where all segments before it end.
    let mut newest = None;
    for number in present.range(since..).rev() {
        if let Some(segment) = Segment::open(&*disk, settings.log, *number)? {
            newest = Some((*number, segment.earlier));
            break;
        }
    }
    replay.expect(known, newest.as_ref(), last);
    if replay.segments.keys().any(|number| !present.contains(number)) {
        let since = newest.as_ref().map_or(since, |(number, _)| *number);
        replay.find_dropped(&*disk, settings.log, present.range(since..))?;
    }
    let next = replay.segments.last_key_value().map_or(last, |(highest, _)| *highest).next();
    let mut growing = None;
    for &number in present.range(since..) {
        let is_before = newest.as_ref().filter(|(newest, _)| number < *newest);
        let known_end = is_before.and_then(|(_, ends)| ends.get(&number).copied());
        if !replay.segments.contains_key(&number) {
            // It was dropped before the newest header was made.
            continue;
        }
        let Some(segment) = Segment::open(&*disk, settings.log, number)? else {
            replay.headless(&*disk, number, known_end)?;
            continue;
        };
        let from = known.map(|known| known.mark).filter(|mark| mark.segment == number);
        let end = replay.segment(&segment, from.map(|mark| mark.offset), known_end)?;
        (replay.mark.segment, replay.mark.offset) = (number, end.offset);
        if number == last {
            end.settle(&*disk, &segment)?;
            growing = Some(segment);
        } else {
            replay.show_end(number, &present)?;
        }
    }
    replay.note_missing(&present);
    replay.replayed.damages.sort_unstable_by_key(Damage::segment);
    for number in present.iter().filter(|number| !replay.segments.contains_key(number)) {
        // It was dropped, and the process ended before its file was.
        let name = number.to_string();
        spares.put(&*disk, &name).map_err(LogError::io("remove", name))?;
    }
    // Or a spare could be known by its old name again when it is another segment.
    disk.sync_names().map_err(LogError::io("sync", "the directory"))?;
    let mut tail = Tail::new(disk, settings, spares, (replay.mark, next));
    tail.segments = replay.segments;
    // Not if a segment is missing behind it.
    if let Some(segment) = growing.filter(|segment| segment.number.next() == next) {
        tail.grow(segment);
    }
    Ok((tail, replay.replayed))
}

struct Replay<'a, 'v> {
    visit: &'a mut Visit<'v>,
    replayed: Replayed,
    /// Those that were not dropped, as far as is known, with their ends.
    segments: Ends,
    /// The moment after the last record that was shown.
    mark: Mark,
}

impl Replay<'_, '_> {
    /// Finds out which segments there have to be: those that the newest header lists, and those
    /// since, which could not be dropped before; without a header, those that are known. What is
    /// known may be from long before the header.
    fn expect(
        &mut self,
        known: Option<&Known>,
        newest: Option<&(SegmentNumber, Ends)>,
        last: SegmentNumber,
    ) {
        let (since, segments) = match (newest, known) {
            (Some((number, earlier)), _) => (*number, earlier.clone()),
            (None, Some(known)) => (known.mark.segment, known.segments.clone()),
            (None, None) => (SegmentNumber::FIRST, Ends::new()),
        };
        self.segments = segments;
        for number in (since.0..=last.0.max(since.0)).map(SegmentNumber) {
            self.segments.entry(number).or_insert(0);
        }
    }

    /// Finds out which segments were dropped since, before it is told which are missing.
    fn find_dropped<'s>(
        &mut self,
        disk: &dyn Disk,
        log: Uuid,
        segments: impl Iterator<Item = &'s SegmentNumber>,
    ) -> Result<(), LogError> {
        for number in segments {
            let Some(segment) = Segment::open(disk, log, *number)? else { continue };
            let mut scan = Scan::new(&segment, None)?;
            let mut offset = segment.start;
            while offset < scan.len {
                offset = match scan.record_at(offset)? {
                    Some(record) => {
                        if record.header.kind == KIND_DROPPED
                            && let Some(dropped) = SegmentNumber::decode(record.payload)
                        {
                            self.segments.remove(&dropped);
                        }
                        record.end
                    }
                    None => scan.next_record(offset)?.unwrap_or(scan.len),
                };
            }
        }
        Ok(())
    }

    /// Shows the end of a segment.
    fn show_end(
        &mut self,
        number: SegmentNumber,
        present: &BTreeSet<SegmentNumber>,
    ) -> Result<(), LogError> {
        let is_whole = self.segments.range(..number).all(|(earlier, _)| present.contains(earlier));
        let damaged = !self.replayed.damages.is_empty() || !is_whole;
        let (mark, segments) = (self.mark, &self.segments);
        let shown = (self.visit)(Shown::End { mark, segments, damaged });
        shown.map_err(|why| LogError::refused(number, why))
    }

    fn note_missing(&mut self, present: &BTreeSet<SegmentNumber>) {
        for &missing in self.segments.keys().filter(|number| !present.contains(number)) {
            match self.replayed.damages.last_mut() {
                Some(Damage::Missing { last, .. }) if last.next() == missing => *last = missing,
                _ => {
                    let damage = Damage::Missing { first: missing, last: missing };
                    self.replayed.damages.push(damage);
                }
            }
        }
    }

    fn note_damage(&mut self, segment: SegmentNumber, offset: u32, end: u32) {
        if offset < end {
            self.replayed.damages.push(Damage::Range { segment, offset, bytes: end - offset });
        }
    }

    /// Shows a segment's records from an offset on. Where they end is known if the segment after
    /// it says so: then nothing before that is a torn tail, for that one was made when all of
    /// this was durable.
    fn segment(
        &mut self,
        segment: &Segment,
        from: Option<u32>,
        known_end: Option<u32>,
    ) -> Result<End, LogError> {
        let mut scan = Scan::new(segment, known_end)?;
        let mut end = End { offset: from.unwrap_or(segment.start), batch_start: None };
        while end.offset < scan.len {
            if let Some(record) = scan.record_at(end.offset)? {
                self.show(segment.number, end.offset, &record)?;
                end.batch_start = Some(record.header.batch.start);
                end.offset = record.end;
            } else if known_end.is_none() && !scan.later_batch_follows(end.offset)? {
                if scan.is_torn(end.offset, self.mark.sequence + 1)? {
                    let bytes = scan.len - end.offset;
                    let cut = Cut { segment: segment.number, offset: end.offset, bytes };
                    self.replayed.cut = Some(cut);
                }
                break;
            } else {
                let next = scan.next_record(end.offset)?.unwrap_or(scan.len);
                self.note_damage(segment.number, end.offset, next);
                end.offset = next;
            }
        }
        if let Some(known_end) = known_end {
            self.note_damage(segment.number, end.offset, known_end);
            end.offset = end.offset.max(known_end);
        }
        self.segments.entry(segment.number).and_modify(|known| *known = end.offset);
        Ok(end)
    }

    /// Notes a segment of which no record can be checked.
    fn headless(
        &mut self,
        disk: &dyn Disk,
        number: SegmentNumber,
        known_end: Option<u32>,
    ) -> Result<(), LogError> {
        let file = disk.open(&number.to_string()).map_err(LogError::io("open", number))?;
        let end = known_end.map_or_else(|| segment::file_bytes(&*file, number), Ok)?;
        self.replayed.damages.push(Damage::Range { segment: number, offset: 0, bytes: end });
        self.segments.insert(number, end);
        (self.mark.segment, self.mark.offset) = (number, end);
        Ok(())
    }

    fn show(
        &mut self,
        segment: SegmentNumber,
        offset: u32,
        record: &Record<'_>,
    ) -> Result<(), LogError> {
        let Header { payload_bytes, kind, flags, batch } = record.header;
        let place = Place { segment, offset, payload_bytes };
        let shown = match SegmentNumber::decode(record.payload) {
            _ if flags & !FLAG_LAST != 0 => {
                Err(format!("it has flags {flags:#04x} of a newer format; start a newer program"))
            }
            Some(dropped) if kind == KIND_DROPPED => {
                self.segments.remove(&dropped);
                Ok(())
            }
            _ => (self.visit)(Shown::Record(place, kind, record.payload)),
        };
        shown.map_err(|why| {
            LogError::refused(segment, format!("the record at offset {offset}: {why}"))
        })?;
        self.mark.sequence = self.mark.sequence.max(batch.sequence);
        Ok(())
    }
}

/// Where a segment's records end.
struct End {
    offset: u32,
    /// Where the last batch that was shown begins.
    batch_start: Option<u32>,
}

impl End {
    /// Makes what was shown of the last segment durable, and cuts off the rest: what is left of a
    /// torn batch could pass for records behind the next one.
    fn settle(&self, disk: &dyn Disk, segment: &Segment) -> Result<(), LogError> {
        let settle = || {
            // Written again, because pages whose sync failed in an earlier process can look clean
            // without being on the disk: a sync alone would skip them.
            if let Some(start) = self.batch_start {
                // Of what fills the last block some may be missing.
                let len = segment.file.len_bytes()?.min(u64::from(self.offset));
                let bytes = len.saturating_sub(u64::from(start));
                let bytes = segment.read(start, usize::try_from(bytes).unwrap_or(usize::MAX))?;
                let mut buffer = Buffer::new(bytes.len() + BLOCK_BYTES);
                buffer.push(&bytes);
                buffer.pad(BLOCK_BYTES);
                segment.file.write_blocks(u64::from(start), buffer.bytes())?;
            }
            segment.file.set_len(u64::from(self.offset))?;
            segment.file.sync_data()?;
            disk.sync_names()
        };
        settle().map_err(LogError::io("settle the end of", segment.number))
    }
}
