//! Reads records at their places.
//!
//! The latest are in memory. Of the others, neighbours are read with one access to the disk. What
//! is given out has memory of its own, so that whoever keeps it keeps nothing else.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::buffer::Buffer;
use super::recent::Recent;
use super::record::{self, HEADER_BYTES, Header};
use super::segment::Segment;
use super::{LogError, Mark, Place, SegmentNumber};
use crate::disk::{BLOCK_BYTES, Disk};
use crate::executor::Executor;

#[expect(clippy::cast_possible_truncation, reason = "it is a constant, and small")]
const BLOCK: u32 = BLOCK_BYTES as u32;
/// How many segments are kept open for reading.
const SEGMENTS_OPEN_MAX: usize = 256;
/// How many [`Reader::read_many`] have a turn at the disk at once. A thread for each of a thousand
/// would take the processors from those who write; and a sync waits for at most so many accesses,
/// each of [`ACCESS_BYTES_MAX`] or one record.
const TURNS_MAX: usize = 4;
/// The most that one access to the disk reads of several records.
const ACCESS_BYTES_MAX: u32 = 1 << 20;
/// What such an access takes, from the beginning of a block to the end of one.
const BUFFER_BYTES: usize = ACCESS_BYTES_MAX as usize + 2 * BLOCK_BYTES;
/// The least that is read past the system's cache: who reads so much at once is catching up, and
/// will not ask for it again. To fill the cache would cost more than all else that is done with it.
const DIRECT_BYTES_MIN: u32 = 64 << 10;
/// How far records that are read with one access may be apart: reading so much more is cheaper than
/// another access.
const GAP_BYTES_MAX: u32 = 4 << 10;

/// Reads records at their places. Clones share their open files, and what is in memory.
#[derive(Clone)]
pub struct Reader {
    files: Arc<Files>,
    recent: Arc<Recent>,
    executor: Executor,
    turns: Arc<Semaphore>,
}

/// Why a record could not be read. None says that it does not exist.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes at its place are not that record, also when they are read past the system's cache.
    #[error("{file} is corrupt at offset {offset}")]
    Corrupt {
        /// The segment's file.
        file: String,
        /// Where the record, or the header that it needs, begins.
        offset: u32,
    },
    /// The file is not there.
    #[error("{file} is gone")]
    Gone {
        /// The segment's file.
        file: String,
    },
    /// The file could not be read.
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Reader {
    /// Reads the log of this UUID on the disk.
    ///
    /// What was written last takes so much memory.
    pub fn new(disk: Arc<dyn Disk>, log: Uuid, executor: Executor, recent_bytes: usize) -> Self {
        let files = Arc::new(Files { disk, log, open: Mutex::default(), spare: Mutex::default() });
        let recent = Arc::new(Recent::new(recent_bytes));
        Self { files, recent, executor, turns: Arc::new(Semaphore::new(TURNS_MAX)) }
    }

    /// Reads the payload of a record that is durable. It waits for no turn.
    pub async fn read(&self, place: Place) -> Result<Bytes, ReadError> {
        if let Some(payload) = self.recent.find(&[place]).pop().flatten() {
            return Ok(Bytes::copy_from_slice(&payload));
        }
        let files = self.files.clone();
        let mut read = self.executor.run(move || files.read_many(&[place], 0)).await;
        read.pop().expect("each place has an outcome").map(BytesMut::freeze)
    }

    /// Reads many payloads in one turn of the executor, each with an outcome of its own, in the
    /// order of the places. The caller limits how much it asks for: the payloads may share memory,
    /// and take no other.
    ///
    /// Each stands behind so many zeros, which the caller may fill.
    pub async fn read_many(
        &self,
        places: Vec<Place>,
        zeros: usize,
    ) -> Vec<Result<BytesMut, ReadError>> {
        let found = self.recent.find(&places);
        let mut copies = Copies::new(found.iter().flatten().map(Bytes::len), zeros);
        let copied = found.iter().map(|found| found.as_ref().map(|it| Ok(copies.add(it))));
        let mut read: Vec<Option<Result<BytesMut, ReadError>>> = copied.collect();
        let others = places.into_iter().zip(&read).filter(|(_, read)| read.is_none());
        let others: Vec<Place> = others.map(|(place, _)| place).collect();
        if !others.is_empty() {
            // Nobody closes the semaphore, so the turn always comes.
            let _turn = self.turns.acquire().await;
            let files = self.files.clone();
            let others = self.executor.run(move || files.read_many(&others, zeros)).await;
            let missing = read.iter_mut().filter(|read| read.is_none());
            missing.zip(others).for_each(|(missing, other)| *missing = Some(other));
        }
        read.into_iter().flatten().collect()
    }

    /// Keeps in memory what was just written up to a mark.
    pub(crate) fn keep(&self, mark: Mark, bytes: Bytes) {
        self.recent.push(mark, bytes);
    }

    /// Closes the file of a segment that was dropped.
    pub fn forget(&self, number: SegmentNumber) {
        self.files.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }

    /// Lets the system forget what its cache has of so many bytes of a segment. Only a hint. Blocks.
    pub(crate) fn uncache(&self, number: SegmentNumber, bytes: u32) {
        if let Ok(segment) = self.segment(number) {
            segment.file.forget(0, bytes.into());
        }
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
    /// What was read into, to be used again: to make another would be to fill it with zeros first.
    /// There are at most [`TURNS_MAX`], each of [`BUFFER_BYTES`].
    spare: Mutex<Vec<Buffer>>,
}

impl Files {
    fn read_many(&self, places: &[Place], zeros: usize) -> Vec<Result<BytesMut, ReadError>> {
        let payloads = places.iter().map(|place| place.payload_bytes as usize);
        let mut copies = Copies::new(payloads, zeros);
        let mut read = Vec::with_capacity(places.len());
        let mut rest = places;
        while !rest.is_empty() {
            let (run, others) = rest.split_at(neighbours(rest));
            self.read_run(run, &mut copies, &mut read);
            rest = others;
        }
        read
    }

    /// Reads neighbours with one access. What goes wrong is tried once more, each by itself.
    fn read_run(
        &self,
        run: &[Place],
        copies: &mut Copies,
        read: &mut Vec<Result<BytesMut, ReadError>>,
    ) {
        let (start, end) = (run[0].offset, end(run[run.len() - 1]));
        let stored = self.segment(run[0].segment).ok().and_then(|segment| {
            let (start, stored) = self.read_between(&segment, start, end).ok()?;
            Some((segment, start, stored))
        });
        for place in run {
            let payload = stored.as_ref().and_then(|(segment, start, stored)| {
                let stored = &stored.bytes()[(place.offset - start) as usize..];
                payload(segment, *place, stored).map(|payload| copies.add(payload))
            });
            read.push(payload.map_or_else(|| self.read_again(*place, copies), Ok));
        }
        if let Some((.., buffer)) = stored {
            self.put_aside(buffer);
        }
    }

    /// Reads a record from the disk, whatever the system's cache has: if the cache was filled while
    /// its page was written, it may have the page as it was before.
    fn read_again(&self, place: Place, copies: &mut Copies) -> Result<BytesMut, ReadError> {
        let segment = self.segment(place.segment)?;
        let (start, stored) = match self.read_past_cache(&segment, place.offset, end(place)) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(corrupt(place.segment, place.offset));
            }
            result => result.map_err(LogError::io("read", place.segment))?,
        };
        let payload = payload(&segment, place, &stored.bytes()[(place.offset - start) as usize..]);
        let payload = payload.map(|payload| copies.add(payload));
        self.put_aside(stored);
        payload.ok_or_else(|| corrupt(place.segment, place.offset))
    }

    fn segment(&self, number: SegmentNumber) -> Result<Arc<Segment>, ReadError> {
        let open = || self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(segment) = open().get(&number) {
            return Ok(segment.clone());
        }
        match Segment::open(&*self.disk, self.log, number) {
            Err(LogError::Io { source, file, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(ReadError::Gone { file })
            }
            // Its file has become another's in this moment.
            Err(LogError::Refused { file, .. }) if self.is_gone(number) => {
                Err(ReadError::Gone { file })
            }
            Err(error) => Err(error.into()),
            Ok(None) => Err(corrupt(number, 0)),
            Ok(Some(segment)) => {
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

impl Files {
    /// Reads what is between two offsets; some more is read before it if it is much. Returns where
    /// that begins too.
    fn read_between(&self, segment: &Segment, start: u32, end: u32) -> io::Result<(u32, Buffer)> {
        if end - start < DIRECT_BYTES_MIN {
            let mut buffer = Buffer::zeros((end - start) as usize);
            segment.file.read_at(start.into(), buffer.bytes_mut())?;
            return Ok((start, buffer));
        }
        self.read_past_cache(segment, start, end)
    }

    /// Reads what is between two offsets as the disk has it, and some more before it. Returns where
    /// that begins too. What is behind the end is not told.
    fn read_past_cache(
        &self,
        segment: &Segment,
        start: u32,
        end: u32,
    ) -> io::Result<(u32, Buffer)> {
        let start = start - start % BLOCK;
        let bytes = (end - start).next_multiple_of(BLOCK) as usize;
        let mut buffer = match bytes {
            ..=BUFFER_BYTES => self.spare().pop().unwrap_or_else(|| Buffer::zeros(BUFFER_BYTES)),
            _ => Buffer::zeros(bytes),
        };
        let read = segment.file.read_blocks(start.into(), &mut buffer.bytes_mut()[..bytes])?;
        if read < (end - start) as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((start, buffer))
    }

    fn put_aside(&self, buffer: Buffer) {
        let mut spare = self.spare();
        if buffer.bytes().len() == BUFFER_BYTES && spare.len() < TURNS_MAX {
            spare.push(buffer);
        }
    }

    fn spare(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says whether there is no segment of this number any more.
    fn is_gone(&self, number: SegmentNumber) -> bool {
        let opened = self.disk.open(&number.to_string());
        opened.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

/// Tells how many places, from the first on, are read with one access.
fn neighbours(places: &[Place]) -> usize {
    let start = places[0].offset;
    let is_near = |pair: &&[Place]| {
        let (one, next) = (pair[0], pair[1]);
        next.segment == one.segment
            && next.offset.checked_sub(end(one)).is_some_and(|gap| gap <= GAP_BYTES_MAX)
            && end(next) - start <= ACCESS_BYTES_MAX
    };
    1 + places.windows(2).take_while(is_near).count()
}

/// Tells where a record ends.
fn end(place: Place) -> u32 {
    let bytes = record::stored_bytes(place.payload_bytes as usize);
    place.offset + u32::try_from(bytes).expect("payloads are limited")
}

/// Finds the payload in bytes that begin with a record; none if they are not that record.
fn payload<'a>(segment: &Segment, place: Place, stored: &'a [u8]) -> Option<&'a [u8]> {
    let stored = stored.get(..(end(place) - place.offset) as usize)?;
    let header = Header::parse(stored, place.offset)?;
    let is_sound = header.payload_bytes == place.payload_bytes
        && record::is_valid(segment.seed, place.offset, stored);
    is_sound.then(|| &stored[HEADER_BYTES..HEADER_BYTES + place.payload_bytes as usize])
}

/// Memory for payloads that are given out together, each behind so many zeros.
struct Copies {
    memory: BytesMut,
    zeros: usize,
}

impl Copies {
    /// Makes room for payloads that are so long.
    fn new(payloads: impl Iterator<Item = usize>, zeros: usize) -> Self {
        let bytes = payloads.map(|bytes| zeros + bytes).sum();
        Self { memory: BytesMut::with_capacity(bytes), zeros }
    }

    /// Copies a payload. All together must not be more than there is room for.
    fn add(&mut self, payload: &[u8]) -> BytesMut {
        self.memory.put_bytes(0, self.zeros);
        self.memory.extend_from_slice(payload);
        self.memory.split()
    }
}

fn corrupt(segment: SegmentNumber, offset: u32) -> ReadError {
    ReadError::Corrupt { file: segment.to_string(), offset }
}
