//! Reads single records.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::record::{self, Header};
use super::segment::Segment;
use super::{LogError, Place, SegmentNumber};
use crate::disk::Disk;
use crate::executor::Executor;

/// How many segments are kept open for reading.
const SEGMENTS_OPEN_MAX: usize = 256;
/// How many [`Reader::read_many`] have a turn at once. A thread for each of a thousand would take
/// the processors from those who write.
const TURNS_MAX: usize = 4;

/// Reads records at their places. Clones share their open files.
#[derive(Clone)]
pub struct Reader {
    files: Arc<Files>,
    executor: Executor,
    turns: Arc<Semaphore>,
}

/// Why a record could not be read. Neither says that it does not exist.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes at its place are not that record.
    #[error("{file} is corrupt at offset {offset}")]
    Corrupt {
        /// The segment's file.
        file: String,
        /// Where the record, or the header that it needs, begins.
        offset: u32,
    },
    /// The file could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Reader {
    /// Reads the log of this UUID on the disk.
    pub fn new(disk: Arc<dyn Disk>, log: Uuid, executor: Executor) -> Self {
        let files = Arc::new(Files { disk, log, open: Mutex::default() });
        Self { files, executor, turns: Arc::new(Semaphore::new(TURNS_MAX)) }
    }

    /// Reads the payload of a record that is durable.
    pub async fn read(&self, place: Place) -> Result<Bytes, ReadError> {
        let files = self.files.clone();
        self.executor.run(move || files.read(place)).await
    }

    /// Reads many payloads in one turn of the executor, each with an outcome of its own, in the
    /// order of the places. The caller limits how much it asks for.
    pub async fn read_many(&self, places: Vec<Place>) -> Vec<Result<Bytes, ReadError>> {
        // Nobody closes the semaphore, so the turn always comes.
        let _turn = self.turns.acquire().await;
        let files = self.files.clone();
        self.executor.run(move || places.into_iter().map(|place| files.read(place)).collect()).await
    }

    /// Closes the file of a segment that was dropped.
    pub fn forget(&self, number: SegmentNumber) {
        self.files.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    /// Returns a segment; it is kept open.
    pub(super) fn segment(&self, number: SegmentNumber) -> Result<Arc<Segment>, ReadError> {
        self.files.segment(number)
    }
}

struct Files {
    disk: Arc<dyn Disk>,
    log: Uuid,
    open: Mutex<BTreeMap<SegmentNumber, Arc<Segment>>>,
}

impl Files {
    fn read(&self, place: Place) -> Result<Bytes, ReadError> {
        let segment = self.segment(place.segment)?;
        let stored_bytes = record::stored_bytes(place.payload_bytes as usize);
        let stored = match segment.read(place.offset, stored_bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(corrupt(place.segment, place.offset));
            }
            result => result.map_err(LogError::io("read", place.segment))?,
        };
        let is_as_long = Header::parse(&stored, place.offset)
            .is_some_and(|header| header.payload_bytes == place.payload_bytes);
        if !is_as_long || !record::is_valid(segment.seed, place.offset, &stored) {
            return Err(corrupt(place.segment, place.offset));
        }
        let end = record::HEADER_BYTES + place.payload_bytes as usize;
        Ok(Bytes::from(stored).slice(record::HEADER_BYTES..end))
    }

    fn segment(&self, number: SegmentNumber) -> Result<Arc<Segment>, ReadError> {
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = open().get(&number) {
            return Ok(segment.clone());
        }
        match Segment::open(&*self.disk, self.log, number)? {
            None => Err(corrupt(number, 0)),
            Some(segment) => {
                let segment = Arc::new(segment);
                let mut open = open();
                if open.len() >= SEGMENTS_OPEN_MAX {
                    open.pop_first();
                }
                open.insert(number, segment.clone());
                Ok(segment)
            }
        }
    }
}

fn corrupt(segment: SegmentNumber, offset: u32) -> ReadError {
    ReadError::Corrupt { file: segment.to_string(), offset }
}
