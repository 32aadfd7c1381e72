//! One segment file and its header.
//!
//! | offset | bytes | what, little-endian |
//! |---|---|---|
//! | 0 | 8 | `inkf-log` |
//! | 8 | 4 | CRC32C of the header with these four bytes as zeros; so in every format |
//! | 12 | 4 | format version |
//! | 16 | 16 | UUID of the log |
//! | 32 | 4 | segment number |
//! | 36 | 4 | life: how many times the file has been a segment |
//! | 40 | 4 | length of the segment before when this one was begun |
//! | 44 | 20 | zeros |
//!
//! Records follow.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut};
use uuid::Uuid;

use super::record::{self, Seed};
use super::{LogError, SegmentNumber};
use crate::disk::{Disk, DiskFile};

/// How long a segment grows.
pub const SEGMENT_BYTES_MAX: u32 = 256 << 20;

pub(super) const HEADER_BYTES: u32 = 64;

const MAGIC: &[u8; 8] = b"inkf-log";
const FORMAT: u32 = 1;
/// Files are not reused yet.
const FIRST_LIFE: u32 = 1;

/// A segment whose header has been checked.
pub(super) struct Segment {
    pub(super) number: SegmentNumber,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) seed: Seed,
    pub(super) previous_bytes: u32,
}

/// What was found at a segment's name.
pub(super) enum Found {
    Whole(Segment),
    /// The header is damaged, so no record can be checked.
    Headless {
        file_bytes: u32,
    },
}

impl Segment {
    /// Makes a segment; it is durable, with its name, when this returns.
    pub(super) fn create(
        disk: &dyn Disk,
        log: Uuid,
        number: SegmentNumber,
        previous_bytes: u32,
    ) -> Result<Self, LogError> {
        let header = Header { format: FORMAT, log, number, life: FIRST_LIFE, previous_bytes };
        let make = || {
            let file = disk.create(&number.to_string())?;
            file.write_at(0, &header.encode())?;
            file.sync_data()?;
            disk.sync_names()?;
            Ok(file)
        };
        let file = make().map_err(LogError::io("make", number))?;
        Ok(Self { number, file, seed: Seed::new(log, number, FIRST_LIFE), previous_bytes })
    }

    /// Opens a segment; refuses one of another log, of another number or of a newer format.
    pub(super) fn open(
        disk: &dyn Disk,
        log: Uuid,
        number: SegmentNumber,
    ) -> Result<Found, LogError> {
        let file = disk.open(&number.to_string()).map_err(LogError::io("open", number))?;
        let file_bytes = file_bytes(&*file, number)?;
        let mut bytes = [0; HEADER_BYTES as usize];
        if file_bytes < HEADER_BYTES {
            return Ok(Found::Headless { file_bytes });
        }
        file.read_at(0, &mut bytes).map_err(LogError::io("read", number))?;
        let Some(header) = Header::parse(&bytes) else {
            return Ok(Found::Headless { file_bytes });
        };
        let why = if header.format != FORMAT {
            format!(
                "it has format {}, but this program reads up to {FORMAT}; start a newer program",
                header.format
            )
        } else if header.log != log {
            format!("it belongs to the log {}, but this directory's log is {log}", header.log)
        } else if header.number != number {
            format!("it was written as {}; give it back that name", header.number)
        } else {
            let seed = Seed::new(log, number, header.life);
            let previous_bytes = header.previous_bytes;
            return Ok(Found::Whole(Self { number, file, seed, previous_bytes }));
        };
        Err(LogError::refused(number, why))
    }

    pub(super) fn read(&self, offset: u32, bytes: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; bytes];
        self.file.read_at(u64::from(offset), &mut buffer)?;
        Ok(buffer)
    }
}

/// Lists a directory's segments in order.
pub(super) fn list(disk: &dyn Disk) -> Result<Vec<SegmentNumber>, LogError> {
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
    super::writer::BATCH_BYTES_MAX + record::PAYLOAD_BYTES_MAX + 1024 <= SEGMENT_BYTES_MAX as usize
);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    format: u32,
    log: Uuid,
    number: SegmentNumber,
    life: u32,
    previous_bytes: u32,
}

impl Header {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES as usize);
        bytes.put_slice(MAGIC);
        bytes.put_u32_le(0);
        bytes.put_u32_le(self.format);
        bytes.put_slice(self.log.as_bytes());
        bytes.put_u32_le(self.number.0);
        bytes.put_u32_le(self.life);
        bytes.put_u32_le(self.previous_bytes);
        bytes.resize(HEADER_BYTES as usize, 0);
        let checksum = crc32c::crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Reads a header; `None` if it is damaged or none.
    ///
    /// The fields after the format mean something only if the format is known.
    fn parse(bytes: &[u8; HEADER_BYTES as usize]) -> Option<Self> {
        let mut zeroed = *bytes;
        zeroed[8..12].fill(0);
        let mut fields = &bytes[8..];
        if bytes[..8] != *MAGIC || fields.get_u32_le() != crc32c::crc32c(&zeroed) {
            return None;
        }
        let format = fields.get_u32_le();
        let log = Uuid::from_u128(fields.get_u128());
        let number = SegmentNumber(fields.get_u32_le());
        let (life, previous_bytes) = (fields.get_u32_le(), fields.get_u32_le());
        Some(Self { format, log, number, life, previous_bytes })
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
        Header { format: FORMAT, log: LOG, number: NUMBER, life: 1, previous_bytes: 99 }
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let bytes: [u8; 64] = header().encode().try_into().unwrap();
        assert_eq!(Header::parse(&bytes), Some(header()));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::parse(&flipped), None, "bit {bit}");
        }
    }

    #[test]
    fn foreign_segments_are_refused_with_words() {
        for (header, words) in [
            (Header { format: 2, ..header() }, "start a newer program"),
            (Header { log: Uuid::nil(), ..header() }, "belongs to the log 00000000-"),
            (Header { number: SegmentNumber(6), ..header() }, "as log-0000000000000006"),
        ] {
            let disk = MemoryDisk::new();
            disk.create(&NUMBER.to_string()).unwrap().write_at(0, &header.encode()).unwrap();
            let error = Segment::open(&disk, LOG, NUMBER).err().unwrap().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn strange_names_are_refused() {
        for name in ["log-", "log-1", "log-0000000000000000", "log-0000009999999999"] {
            let disk = MemoryDisk::new();
            disk.create("identity").unwrap();
            assert_eq!(list(&disk).unwrap(), []);
            disk.create(name).unwrap();
            let error = list(&disk).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_panic(bytes: [u8; 32], more: [u8; 32]) {
            let bytes: Vec<u8> = [&MAGIC[..], &bytes[8..], &more].concat();
            prop_assert_eq!(Header::parse(&bytes.try_into().unwrap()), None);
        }
    }
}
