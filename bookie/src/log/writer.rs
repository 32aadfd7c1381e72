//! Appends records, many a sync.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use smallvec::{SmallVec, smallvec};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::sleep;
use uuid::Uuid;

use super::buffer::Buffer;
use super::record::{self, FLAG_LAST, Header, PAYLOAD_BYTES_MAX};
use super::replay::Settings;
use super::segment::{Ends, SEGMENT_BYTES_MAX, Segment};
use super::spares::Spares;
use super::{KIND_DROPPED, LogError, Mark, Place, SegmentNumber};
use crate::disk::{BLOCK_BYTES, Disk, DiskFile, is_full};
use crate::executor::Executor;

/// A batch is full with the records that reach this.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// The most bytes that the records of one append take in the log.
pub const APPEND_BYTES_MAX: usize = record::HEADER_BYTES + PAYLOAD_BYTES_MAX;
/// The steps in which the disk is asked to set aside room.
const RESERVED_BYTES: u64 = if cfg!(test) { 16 << 10 } else { 16 << 20 };
/// The pause before a full disk is asked again.
const FULL_PAUSE: Duration = Duration::from_secs(1);

/// With this much queued there is no room for more.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Durable batches that wait to be taken; past it the writer waits.
const COMPLETIONS_MAX: usize = 8;
/// The most batches in one turn of the executor, for others may want its thread too.
const TURN_BATCHES_MAX: u32 = 64;

/// Records to be written together.
#[derive(Debug)]
pub struct Append<T> {
    /// What their payloads are; the log only keeps it.
    pub kind: u8,
    /// One of each record. Several take at most [`APPEND_BYTES_MAX`] in the log; one alone is at
    /// most [`PAYLOAD_BYTES_MAX`]. If there is none, the token tells when all before is durable.
    pub payloads: SmallVec<[Bytes; 1]>,
    /// Comes back with the records' places.
    pub token: T,
}

impl<T> Append<T> {
    /// Makes the append that drops a segment, in which nothing may be needed any more: once it is
    /// durable the file is another's.
    pub fn dropping(number: SegmentNumber, token: T) -> Self {
        let payload = Bytes::copy_from_slice(&number.0.to_le_bytes());
        Self { kind: KIND_DROPPED, payloads: smallvec![payload], token }
    }
}

/// What was written together and survives a power loss.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// The appends, in the order of the pushes.
    pub appends: Vec<Durable<T>>,
    /// The moment after it.
    pub mark: Mark,
    /// What was written, up to that moment.
    pub(crate) bytes: Bytes,
}

/// Records that survive a power loss.
#[derive(Debug, PartialEq, Eq)]
pub struct Durable<T> {
    /// The token that was given with them.
    pub token: T,
    /// Where they are.
    pub places: SmallVec<[Place; 1]>,
}

impl<T> Durable<T> {
    fn nothing(token: T) -> Self {
        Self { token, places: SmallVec::new() }
    }
}

/// Why the log takes no more records. What was queued or in flight may or may not be found when
/// the log is opened anew.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the log takes no more records until it is opened anew: {0}")]
pub struct Failed(pub Arc<LogError>);

/// Takes records for the log, in order. Dropping it lets the writer end once all that was pushed
/// has been written.
pub struct Appender<T>(Arc<Queue<T>>);

impl<T> Appender<T> {
    /// Waits until there is room in the queue, or says that the log has failed.
    ///
    /// There is only room again while [`Completions::next`] is called too: whoever owns both waits
    /// for both at once. Safe to cancel.
    pub async fn ready(&self) -> Result<(), Failed> {
        loop {
            {
                let state = self.0.state();
                if let Some(failed) = &state.failed {
                    return Err(failed.clone());
                }
                if state.queued_bytes < QUEUE_BYTES_MAX {
                    return Ok(());
                }
            }
            self.0.taken.notified().await;
        }
    }

    /// Queues records behind all that were pushed before; call it after `ready`.
    ///
    /// Once the log has failed, they are dropped with their token. Panics if they are too long.
    pub fn push(&self, append: Append<T>) {
        assert!(append.stored_bytes() <= APPEND_BYTES_MAX, "the payloads are too long");
        let mut state = self.0.state();
        if state.failed.is_none() {
            state.queued_bytes += append.stored_bytes();
            state.queued.push_back(append);
            self.0.pushed.notify_one();
        }
    }
}

impl<T> Drop for Appender<T> {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.pushed.notify_one();
    }
}

/// Gives out what has become durable.
pub struct Completions<T> {
    batches: mpsc::Receiver<Batch<T>>,
    queue: Arc<Queue<T>>,
}

impl<T> Completions<T> {
    /// Waits for the next batch to be durable.
    ///
    /// `None` after the last batch, when the appender was dropped; the log may then be opened
    /// anew. After a failure every call says so, and the tokens not given out are dropped. Safe to
    /// cancel.
    pub async fn next(&mut self) -> Result<Option<Batch<T>>, Failed> {
        if let Some(batch) = self.batches.recv().await {
            return Ok(Some(batch));
        }
        self.queue.state().failed.clone().map_or(Ok(None), Err)
    }
}

/// The end of an opened log, where records are added.
pub struct Tail {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) log: Uuid,
    pub(super) segment_bytes_max: u32,
    /// The segment that grows; none if the next batch begins one.
    pub(super) segment: Option<Segment>,
    /// The number of the next segment to be made.
    pub(super) next: SegmentNumber,
    /// All segments that were not dropped, with their ends.
    pub(super) segments: Ends,
    pub(super) spares: Spares,
    /// The moment after the last batch.
    pub(super) mark: Mark,
    /// Up to where the disk has set aside room.
    pub(super) reserved: u64,
}

impl Tail {
    /// Makes the end of a log after a moment, whose next segment has this number.
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        settings: Settings,
        spares: Spares,
        (mark, next): (Mark, SegmentNumber),
    ) -> Self {
        Self {
            disk,
            log: settings.log,
            segment_bytes_max: settings.segment_bytes_max.min(SEGMENT_BYTES_MAX),
            segment: None,
            next,
            segments: Ends::new(),
            spares,
            mark,
            reserved: 0,
        }
    }

    /// Lets the last segment grow, of which nothing is behind the end; but not if a batch was torn
    /// off in its last block, for the next one has to begin a block.
    pub(super) fn grow(&mut self, segment: Segment) {
        self.reserved = u64::from(self.mark.offset);
        self.segment = (self.mark.offset as usize).is_multiple_of(BLOCK_BYTES).then_some(segment);
    }

    /// Returns the moment after the last batch.
    pub const fn mark(&self) -> Mark {
        self.mark
    }

    /// Returns all segments that were not dropped, also those that are missing, with their ends.
    pub const fn segments(&self) -> &BTreeMap<SegmentNumber, u32> {
        &self.segments
    }

    /// Spawns the task that writes.
    pub fn start<T: Send + 'static>(self, executor: Executor) -> (Appender<T>, Completions<T>) {
        let queue = Arc::new(Queue::default());
        let (sender, batches) = mpsc::channel(COMPLETIONS_MAX);
        tokio::spawn(write(sender, queue.clone(), self, executor));
        (Appender(queue.clone()), Completions { batches, queue })
    }

    /// Writes records as one batch, durably. Once it has failed it must not be called again.
    pub(super) fn commit<T>(&mut self, appends: Vec<Append<T>>) -> Committed<T> {
        let bytes: usize = appends.iter().map(Append::stored_bytes).sum();
        let bytes = bytes.next_multiple_of(BLOCK_BYTES);
        if bytes == 0 {
            let durable = appends.into_iter().map(|append| Durable::nothing(append.token));
            let (appends, mark) = (durable.collect(), self.mark);
            return Committed::Durable(Batch { appends, mark, bytes: Bytes::new() });
        }
        match self.segment_with_room(bytes) {
            Ok(segment) => self
                .write(segment, bytes, appends)
                .map_or_else(Committed::Failed, Committed::Durable),
            Err(error) if error.is_full() => Committed::Full(error, appends),
            Err(error) => Committed::Failed(error),
        }
    }

    fn write<T>(
        &mut self,
        segment: Segment,
        bytes: usize,
        appends: Vec<Append<T>>,
    ) -> Result<Batch<T>, LogError> {
        let batch = record::Batch { sequence: self.mark.sequence + 1, start: self.mark.offset };
        let mut buffer = Buffer::new(bytes);
        let (mut durable, mut dropped) = (Vec::with_capacity(appends.len()), Vec::new());
        let mut records: usize = appends.iter().map(|append| append.payloads.len()).sum();
        for Append { kind, payloads, token } in appends {
            let mut places = SmallVec::with_capacity(payloads.len());
            for payload in payloads {
                records -= 1;
                let payload_bytes = record::length(&payload);
                let offset = batch.start + record::length(buffer.bytes());
                let flags = if records == 0 { FLAG_LAST } else { 0 };
                let header = Header { payload_bytes, kind, flags, batch };
                record::encode(&mut buffer, segment.seed, header, &payload);
                if kind == KIND_DROPPED {
                    dropped.extend(SegmentNumber::decode(&payload));
                }
                places.push(Place { segment: segment.number, offset, payload_bytes });
            }
            durable.push(Durable { token, places });
        }
        buffer.pad(BLOCK_BYTES);
        let end = batch.start + record::length(buffer.bytes());
        segment
            .file
            .write_blocks(u64::from(batch.start), buffer.bytes())
            .map_err(LogError::io("write to", segment.number))?;
        self.mark = Mark { segment: segment.number, offset: end, sequence: batch.sequence };
        self.segments.insert(segment.number, end);
        self.segment = Some(segment);
        for number in dropped {
            self.segments.remove(&number);
            let name = number.to_string();
            if let Err(error) = self.spares.put(&*self.disk, &name) {
                tracing::warn!(segment = name, %error, "is dropped, and its file stays until the next start");
            }
        }
        Ok(Batch { appends: durable, mark: self.mark, bytes: buffer.into_bytes() })
    }

    /// Takes the growing segment, or a new one if this batch would be too much for it. The disk has
    /// set aside room for the batch; if it has none, this can be called again.
    fn segment_with_room(&mut self, bytes: usize) -> Result<Segment, LogError> {
        let room = self.segment_bytes_max.saturating_sub(self.mark.offset) as usize;
        // An empty segment takes any batch.
        let fits = |it: &Segment| bytes <= room || self.mark.offset == it.start;
        if self.segment.as_ref().is_none_or(|segment| !fits(segment)) {
            let (number, before) = (self.next, &self.segments);
            let segment = Segment::create(&*self.disk, &self.spares, self.log, number, before)?;
            let len = segment.file.len_bytes().map_err(LogError::io("read", number))?;
            self.segments.insert(number, segment.start);
            (self.next, self.reserved) = (number.next(), len);
            (self.mark.segment, self.mark.offset) = (number, segment.start);
            self.segment = Some(segment);
        }
        let end = u64::from(self.mark.offset) + bytes as u64;
        let segment = self.segment.as_ref().filter(|_| end > self.reserved);
        if let Some(Segment { file, number, .. }) = segment {
            // In large steps: each by itself would make a sync dearer.
            let little = end - self.reserved;
            let much = little.next_multiple_of(RESERVED_BYTES);
            let got =
                self.reserve_some(&**file, much).or_else(|_| self.reserve_some(&**file, little));
            self.reserved += got.map_err(LogError::io("get room for", number))?;
        }
        Ok(self.segment.take().expect("there is one by now"))
    }
}

impl Tail {
    /// Lets the disk set aside room behind what it has; in place of spares, if it has no other.
    fn reserve_some(&self, file: &dyn DiskFile, bytes: u64) -> io::Result<u64> {
        loop {
            match file.reserve(self.reserved, bytes) {
                Err(error) if is_full(&error) && self.spares.discard(&*self.disk)? => {}
                reserved => return reserved.map(|()| bytes),
            }
        }
    }
}

/// What became of a batch.
pub(super) enum Committed<T> {
    Durable(Batch<T>),
    /// Nothing has happened, for want of room.
    Full(LogError, Vec<Append<T>>),
    Failed(LogError),
}

/// Writes whatever is queued, a batch at a time, until the appender is dropped or a batch fails.
async fn write<T: Send + 'static>(
    // First, so that it is dropped last: its end tells that the log may be opened anew.
    completions: mpsc::Sender<Batch<T>>,
    queue: Arc<Queue<T>>,
    mut tail: Tail,
    executor: Executor,
) {
    let _ending = Ending(queue.clone());
    while let Some(mut appends) = queue.next_batch().await {
        loop {
            // Not the last sender: if the turn panics, that must not look like the end.
            let (from, to) = (queue.clone(), completions.clone());
            let (returned, left) = executor
                .run(move || {
                    let left = write_queued(&mut tail, appends, &from, &to);
                    (tail, left)
                })
                .await;
            tail = returned;
            match left {
                None => break,
                Some(Committed::Durable(batch)) => break drop(completions.send(batch).await),
                Some(Committed::Failed(error)) => return queue.fail(error),
                Some(Committed::Full(error, _)) if queue.state().closed => {
                    return queue.fail(error);
                }
                Some(Committed::Full(error, unwritten)) => {
                    tracing::warn!(%error, "writes wait for room");
                    appends = unwritten;
                    sleep(FULL_PAUSE).await;
                }
            }
        }
    }
}

/// Writes a batch, then what was queued meanwhile, and so on, so that the disk waits for no task to
/// be woken. If it ends with a batch that was not handed out, or not written, it gives that back.
fn write_queued<T>(
    tail: &mut Tail,
    mut appends: Vec<Append<T>>,
    queue: &Queue<T>,
    completions: &mpsc::Sender<Batch<T>>,
) -> Option<Committed<T>> {
    let mut written = 0;
    loop {
        let batch = match tail.commit(appends) {
            Committed::Durable(batch) => batch,
            unwritten => return Some(unwritten),
        };
        // Without a receiver the records are written all the same.
        if let Err(TrySendError::Full(batch)) = completions.try_send(batch) {
            return Some(Committed::Durable(batch));
        }
        written += 1;
        if written == TURN_BATCHES_MAX {
            return None;
        }
        appends = queue.take_batch()?;
    }
}

/// Sees to it that a writer that ends with records queued, by a panic or with the runtime, counts
/// as failed.
struct Ending<T>(Arc<Queue<T>>);

impl<T> Drop for Ending<T> {
    fn drop(&mut self) {
        if !self.0.state().finished {
            self.0.fail(LogError::Stopped);
        }
    }
}

struct Queue<T> {
    state: Mutex<State<T>>,
    pushed: Notify,
    taken: Notify,
}

struct State<T> {
    queued: VecDeque<Append<T>>,
    queued_bytes: usize,
    /// The appender was dropped.
    closed: bool,
    /// The writer has written all there was.
    finished: bool,
    failed: Option<Failed>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            queued: VecDeque::new(),
            queued_bytes: 0,
            closed: false,
            finished: false,
            failed: None,
        };
        Self { state: Mutex::new(state), pushed: Notify::new(), taken: Notify::new() }
    }
}

impl<T> Queue<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something is queued; `None` when nothing is and nothing can be any more.
    async fn next_batch(&self) -> Option<Vec<Append<T>>> {
        loop {
            // Asked first: then nothing is queued any more.
            let is_closed = self.state().closed;
            if let Some(batch) = self.take_batch() {
                return Some(batch);
            }
            if is_closed {
                self.state().finished = true;
                return None;
            }
            self.pushed.notified().await;
        }
    }

    /// Takes what is queued, as much as a batch holds; `None` if nothing is.
    fn take_batch(&self) -> Option<Vec<Append<T>>> {
        let batch = self.state().take_batch();
        if batch.is_empty() {
            return None;
        }
        self.taken.notify_one();
        Some(batch)
    }

    fn fail(&self, error: LogError) {
        let mut state = self.state();
        state.failed.get_or_insert_with(|| Failed(Arc::new(error)));
        state.queued.clear();
        self.taken.notify_one();
    }
}

impl<T> State<T> {
    fn take_batch(&mut self) -> Vec<Append<T>> {
        let (mut appends, mut bytes) = (0, 0);
        for append in &self.queued {
            if bytes >= BATCH_BYTES_MAX {
                break;
            }
            appends += 1;
            bytes += append.stored_bytes();
        }
        self.queued_bytes -= bytes;
        self.queued.drain(..appends).collect()
    }
}

impl<T> Append<T> {
    fn stored_bytes(&self) -> usize {
        self.payloads.iter().map(|payload| record::stored_bytes(payload.len())).sum()
    }
}
