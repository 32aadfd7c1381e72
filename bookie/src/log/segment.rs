//! One segment file and its header.
//!
//! | offset | bytes | what, little-endian |
//! |---|---|---|
//! | 0 | 8 | `inkf-log` |
//! | 8 | 4 | CRC32C of all that follows up to the end of the message |
//! | 12 | 4 | format version; all before here is so in every format |
//! | 16 | 4 | length of the message |
//! | 20 | | a protobuf message: the log, the number, the segments before with their ends; zeros up to a block |
//!
//! Records follow.
//!
//! A file is reused: a segment that was dropped becomes a spare, which becomes another segment. So
//! bytes of an earlier segment may follow the last record; as the number of that segment is part of
//! their checksums, they are no records of this one.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use prost::Message;
use uuid::Uuid;

use super::buffer::Buffer;
use super::record::{self, Seed};
use super::spares::Spares;
use super::{LogError, SegmentNumber};
use crate::disk::{BLOCK_BYTES, Disk, DiskFile};

/// How long a segment grows.
pub const SEGMENT_BYTES_MAX: u32 = 256 << 20;

const MAGIC: &[u8; 8] = b"inkf-log";
const FORMAT: u32 = 2;
const FIXED_BYTES: usize = 20;
/// A header is no longer, however many segments it lists.
const HEADER_BYTES_MAX: usize = 1 << 20;

/// A segment whose header has been checked.
pub(super) struct Segment {
    pub(super) number: SegmentNumber,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) seed: Seed,
    /// Where its records begin.
    pub(super) start: u32,
    /// The segments that there were before it, and where the records of each end.
    pub(super) earlier: Ends,
}

/// Segments, and where their records end.
pub(super) type Ends = BTreeMap<SegmentNumber, u32>;

impl Segment {
    /// Makes a segment, of a spare file if there is one; it is durable, with its name, when this
    /// returns.
    pub(super) fn create(
        disk: &dyn Disk,
        spares: &Spares,
        log: Uuid,
        number: SegmentNumber,
        earlier: &Ends,
    ) -> Result<Self, LogError> {
        let header = Header { log, number, earlier: earlier.clone() };
        let encoded = header.encode().ok_or_else(|| {
            LogError::refused(number, "there are too many segments: the log takes no more")
        })?;
        let (name, file) = spares.take(disk).map_err(LogError::io("make", number))?;
        let make = || {
            // Or the spare could have its old name again, with this header in it.
            disk.sync_names()?;
            file.reserve(0, encoded.bytes().len() as u64)?;
            file.write_blocks(0, encoded.bytes())?;
            disk.rename(&name, &number.to_string())?;
            disk.sync_names()
        };
        if let Err(error) = make() {
            spares.give_back(name.clone());
            return Err(LogError::io("make", number)(error));
        }
        Ok(Self::new(header, file, record::length(encoded.bytes())))
    }

    /// Opens a segment; none if its header is damaged, so that no record can be checked. Refuses
    /// one of another log, of another number or of a newer format.
    pub(super) fn open(
        disk: &dyn Disk,
        log: Uuid,
        number: SegmentNumber,
    ) -> Result<Option<Self>, LogError> {
        let file = disk.open(&number.to_string()).map_err(LogError::io("open", number))?;
        file_bytes(&*file, number)?;
        let read = |bytes: usize| {
            let mut buffer = Buffer::zeros(bytes);
            let read = file.read_blocks(0, buffer.bytes_mut());
            let read = read.map_err(LogError::io("read", number))?;
            Ok::<_, LogError>(buffer.into_bytes().slice(..read))
        };
        let mut bytes = read(BLOCK_BYTES)?;
        if let Some(wanted) = Header::bytes(&bytes)
            && wanted > bytes.len()
        {
            bytes = read(wanted)?;
        }
        let header = match Header::parse(&bytes) {
            Parsed::Damaged => return Ok(None),
            Parsed::Format(format) => {
                let why = format!(
                    "it has format {format}, and this program reads format {FORMAT}; start the \
                     version that wrote it"
                );
                return Err(LogError::refused(number, why));
            }
            Parsed::Header(header) => header,
        };
        let why = if header.log != log {
            format!("it belongs to the log {}, but this directory's log is {log}", header.log)
        } else if header.number != number {
            format!("it was written as {}; give it back that name", header.number)
        } else {
            return Ok(Some(Self::new(header, file, record::length(&bytes))));
        };
        Err(LogError::refused(number, why))
    }

    fn new(header: Header, file: Arc<dyn DiskFile>, start: u32) -> Self {
        let Header { log, number, earlier } = header;
        Self { number, file, seed: Seed::new(log, number), start, earlier }
    }

    pub(super) fn read(&self, offset: u32, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.file.read_at(u64::from(offset), &mut buffer)?;
        Ok(buffer)
    }
}

/// Lists a directory's segments in order.
pub(super) fn list(disk: &dyn Disk) -> Result<BTreeSet<SegmentNumber>, LogError> {
    let names = disk.list().map_err(LogError::io("list", "the directory"))?;
    let segments = names.iter().filter(|name| name.starts_with("log-"));
    let parse = |name: &String| {
        name["log-".len()..]
            .parse()
            .map(SegmentNumber)
            .ok()
            .filter(|number| (SegmentNumber::FIRST..SegmentNumber::MAX).contains(number))
            .filter(|number| number.to_string() == *name)
            .ok_or_else(|| LogError::refused(name, "no segment has such a name; move it away"))
    };
    segments.map(parse).collect()
}

/// How far a segment reaches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Where its records end, or its file does.
    pub(crate) bytes: u32,
    /// Whether a later segment says that its records end there.
    pub(crate) is_known: bool,
}

/// Tells how far the segments of a log reach that are there, as the newest of them says. Blocks.
pub(crate) fn ends(
    disk: &dyn Disk,
    log: Uuid,
) -> Result<BTreeMap<SegmentNumber, Extent>, LogError> {
    let present = list(disk)?;
    let mut earlier = Ends::new();
    for number in present.iter().rev() {
        if let Some(segment) = Segment::open(disk, log, *number)? {
            earlier = segment.earlier;
            break;
        }
    }
    let extent = |number: &SegmentNumber| {
        let known = earlier.get(number).copied();
        let file = || {
            let file = disk.open(&number.to_string()).map_err(LogError::io("open", number))?;
            file_bytes(&*file, *number)
        };
        let bytes = known.map_or_else(file, Ok)?;
        Ok((*number, Extent { bytes, is_known: known.is_some() }))
    };
    present.iter().map(extent).collect()
}

/// Tells how long a segment's file is.
pub(super) fn file_bytes(file: &dyn DiskFile, number: SegmentNumber) -> Result<u32, LogError> {
    // Room for the batch that goes over the limit, so that no sum of offsets overflows.
    const LONGEST: u32 = 2 * SEGMENT_BYTES_MAX;
    let bytes = file.len_bytes().map_err(LogError::io("read", number))?;
    u32::try_from(bytes).ok().filter(|bytes| *bytes <= LONGEST).ok_or_else(|| {
        LogError::refused(number, format!("it is {bytes} bytes long, more than a segment can be"))
    })
}

const _: () = assert!(
    super::writer::BATCH_BYTES_MAX + record::PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX + 2 * BLOCK_BYTES
        <= SEGMENT_BYTES_MAX as usize
);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Header {
    log: Uuid,
    number: SegmentNumber,
    earlier: Ends,
}

#[derive(Clone, PartialEq, Message)]
struct StoredHeader {
    #[prost(bytes = "vec", tag = "1")]
    log: Vec<u8>,
    #[prost(uint32, tag = "2")]
    number: u32,
    /// Of each segment before this one, by how much its number is higher than that of the one
    /// before it, or than 0.
    #[prost(uint32, repeated, tag = "3")]
    earlier: Vec<u32>,
    /// Where the records of each of them end.
    #[prost(uint32, repeated, tag = "4")]
    ends: Vec<u32>,
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Header(Header),
    /// It is of a format that this program does not know.
    Format(u32),
    Damaged,
}

impl Header {
    /// Encodes the header with what fills its last block; none if it lists too much.
    fn encode(&self) -> Option<Buffer> {
        let before = [0].into_iter().chain(self.earlier.keys().map(|number| number.0));
        let message = StoredHeader {
            log: self.log.as_bytes().to_vec(),
            number: self.number.0,
            earlier: self.earlier.keys().zip(before).map(|(it, before)| it.0 - before).collect(),
            ends: self.earlier.values().copied().collect(),
        }
        .encode_to_vec();
        if FIXED_BYTES + message.len() > HEADER_BYTES_MAX {
            return None;
        }
        let mut checked = FORMAT.to_le_bytes().to_vec();
        checked.extend_from_slice(&record::length(&message).to_le_bytes());
        checked.extend_from_slice(&message);
        let mut buffer = Buffer::new(HEADER_BYTES_MAX.min(checked.len() + 2 * BLOCK_BYTES));
        buffer.push(MAGIC);
        buffer.push(&crc32c::crc32c(&checked).to_le_bytes());
        buffer.push(&checked);
        buffer.pad(BLOCK_BYTES);
        Some(buffer)
    }

    /// Tells from its beginning how long a header is, with what fills its last block; none if it
    /// is no header.
    fn bytes(bytes: &[u8]) -> Option<usize> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let length = rest.get(8..12)?.try_into().ok().map(u32::from_le_bytes)?;
        let bytes = FIXED_BYTES + length as usize;
        (magic == MAGIC && bytes <= HEADER_BYTES_MAX).then(|| bytes.next_multiple_of(BLOCK_BYTES))
    }

    fn parse(bytes: &[u8]) -> Parsed {
        Self::try_parse(bytes).unwrap_or(Parsed::Damaged)
    }

    fn try_parse(bytes: &[u8]) -> Option<Parsed> {
        let (magic, rest) = bytes.split_first_chunk()?;
        let (checksum, checked) = rest.split_first_chunk()?;
        let (format, rest) = checked.split_first_chunk()?;
        let (length, rest) = rest.split_first_chunk()?;
        let message = rest.get(..u32::from_le_bytes(*length) as usize)?;
        let checked = &checked[..8 + message.len()];
        if magic != MAGIC || u32::from_le_bytes(*checksum) != crc32c::crc32c(checked) {
            return None;
        }
        let format = u32::from_le_bytes(*format);
        if format != FORMAT {
            return Some(Parsed::Format(format));
        }
        let stored = StoredHeader::decode(message).ok()?;
        let mut last = 0_u32;
        let mut number = |higher: u32| {
            last = last.checked_add(higher)?;
            Some(SegmentNumber(last))
        };
        let earlier: Vec<_> = stored.earlier.into_iter().map(&mut number).collect::<Option<_>>()?;
        if earlier.len() != stored.ends.len() {
            return None;
        }
        Some(Parsed::Header(Self {
            log: Uuid::from_slice(&stored.log).ok()?,
            number: SegmentNumber(stored.number),
            earlier: earlier.into_iter().zip(stored.ends).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::MemoryDisk;

    const LOG: Uuid = Uuid::from_u128(0x1234);
    const NUMBER: SegmentNumber = SegmentNumber(5);

    fn header() -> Header {
        let earlier = [1, 2, 4].map(|number| (SegmentNumber(number), 4096 * number)).into();
        Header { log: LOG, number: NUMBER, earlier }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let bytes = header().encode().unwrap().bytes().to_vec();
        assert_eq!(bytes.len(), BLOCK_BYTES);
        assert_eq!(Header::parse(&bytes), Parsed::Header(header()));
        let length = u32::from_le_bytes(bytes[16..20].try_into().unwrap()) as usize;
        for bit in 0..(FIXED_BYTES + length) * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::parse(&flipped), Parsed::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn a_header_lists_thousands_of_segments() {
        let disk = MemoryDisk::new();
        let earlier = (1..100_000).step_by(7).map(|number| (SegmentNumber(number), number * 8));
        let earlier: Ends = earlier.collect();
        let number = SegmentNumber(100_000);
        let create = || Segment::create(&disk, &Spares::default(), LOG, number, &earlier);
        let made = create().unwrap();
        let found = Segment::open(&disk, LOG, number).unwrap().unwrap();
        assert_eq!(found.earlier, earlier);
        assert_eq!(found.start, made.start);
        assert!(found.start > 3 * record::length(&[0; BLOCK_BYTES]));
    }

    #[test]
    fn foreign_segments_are_refused_with_words() {
        let mut newer = header().encode().unwrap().bytes().to_vec();
        newer[12] = 9;
        let length = u32::from_le_bytes(newer[16..20].try_into().unwrap()) as usize;
        let checksum = crc32c::crc32c(&newer[12..FIXED_BYTES + length]);
        newer[8..12].copy_from_slice(&checksum.to_le_bytes());
        let encoded = |header: Header| header.encode().unwrap().bytes().to_vec();
        for (bytes, words) in [
            (newer, "has format 9"),
            (encoded(Header { log: Uuid::nil(), ..header() }), "belongs to the log 00000000-"),
            (encoded(Header { number: SegmentNumber(6), ..header() }), "as log-0000000000000006"),
        ] {
            let disk = MemoryDisk::new();
            disk.create(&NUMBER.to_string()).unwrap().write_at(0, &bytes).unwrap();
            let error = Segment::open(&disk, LOG, NUMBER).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn strange_names_are_refused() {
        for name in ["log-", "log-1", "log-0000000000000000", "log-0000009999999999"] {
            let disk = MemoryDisk::new();
            disk.create("identity").unwrap();
            assert_eq!(list(&disk).unwrap(), BTreeSet::new());
            disk.create(name).unwrap();
            let error = list(&disk).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: Vec<u8>) {
            let bytes = [&MAGIC[..], &bytes].concat();
            prop_assert_eq!(Header::parse(&bytes), Parsed::Damaged);
            let _ = Header::bytes(&bytes);
        }
    }
}
