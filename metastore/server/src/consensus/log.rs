//! The log of a member: its vote, and the entries that its state may not have on disk yet.
//!
//! Whatever changes the log takes effect in memory at once, where it can be read, and waits in a
//! queue for the one task that writes. That task takes all that waits into one transaction of redb
//! and one sync, and only then tells those who asked, in their order. What queues meanwhile is the
//! next batch.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use futures::{Stream, stream};
use inkfast_metastore::rows::StateError;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::types::{Entry, LogId, Types, Vote, entry_bytes};
use crate::directory::Files;
use crate::store::{DISK_DEADLINE, Executor};

pub(crate) mod file;

use file::{Change, Found, LogFile, Read};

/// The most changes that wait to be written; more wait for room.
const QUEUED_MAX: usize = 1024;
/// The most bytes of entries that wait or are being written; more wait for room.
const QUEUED_BYTES_MAX: usize = 32 << 20;
/// The most entries that are kept in memory once they are on disk, for followers that keep up.
const RECENT_MAX: usize = 4096;
/// The most bytes of such entries.
const RECENT_BYTES_MAX: usize = 8 << 20;
/// The most bytes of entries that are read at a time to be sent or applied, but for the last one.
const READ_BYTES_MAX: usize = 1 << 20;

/// The log. Clones are handles of the same one.
#[derive(Clone, Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Queued>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// None once it is closed.
    open: RwLock<Option<Open>>,
    executor: Executor,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Open {
    file: LogFile,
    /// Keeps others away.
    _files: Arc<dyn Files>,
}

/// The log as it is when all that is queued is done.
#[derive(Debug)]
struct State {
    vote: Option<Vote>,
    purged: Option<LogId>,
    /// The last entry's, or else the purged.
    last: Option<LogId>,
    entries: Range<u64>,
    /// The last entries: all that are not on disk, and some that are.
    recent: VecDeque<Recent>,
    recent_bytes: usize,
    /// The bytes of entries that were appended since the last purge.
    grown_bytes: usize,
    /// How many changes were queued, and how many of them are on disk.
    queued: u64,
    synced: u64,
    /// How often entries were removed.
    removals: u64,
    /// Why nothing more is written.
    failed: Option<StateError>,
}

#[derive(Debug)]
struct Recent {
    entry: Entry,
    bytes: usize,
    /// The number of the change that appends it.
    queued: u64,
}

struct Queued {
    change: Change,
    done: Done,
    _room: OwnedSemaphorePermit,
}

/// Who is told that a change is on disk.
enum Done {
    Flushed(IOFlushed<Types>),
    Asked(oneshot::Sender<io::Result<()>>),
    Nobody,
}

impl Log {
    /// Starts the task that writes; it ends with the last handle.
    pub(crate) fn start(
        file: LogFile,
        found: Found,
        files: Arc<dyn Files>,
        executor: Executor,
    ) -> Self {
        let state = State {
            vote: found.vote,
            purged: found.purged,
            last: found.last,
            entries: found.entries,
            recent: VecDeque::new(),
            recent_bytes: 0,
            grown_bytes: 0,
            queued: 0,
            synced: 0,
            removals: 0,
            failed: None,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            open: RwLock::new(Some(Open { file, _files: files })),
            executor,
            room: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
        });
        let (queue, queued) = mpsc::channel(QUEUED_MAX);
        tokio::spawn(write_all(shared.clone(), queued));
        Self { shared, queue }
    }

    /// Returns whether nothing was ever logged.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.state().last.is_none()
    }

    /// Returns how many bytes of entries were appended since the last purge.
    pub(crate) fn grown_bytes(&self) -> usize {
        self.shared.state().grown_bytes
    }

    /// Notes for good that the member was made a voter.
    pub(crate) async fn note_joined(&self) -> io::Result<()> {
        self.change(|_| Ok(Change::Joined)).await
    }

    /// Closes the file, when all that is queued is written; whatever comes later fails. If the disk
    /// does not answer, the file is given up, and open until the process ends.
    pub(crate) async fn close(&self) {
        // If nothing is written any more, that was said when it happened.
        let _ = self.change(|_| Ok(Change::Append(Vec::new()))).await;
        let shared = self.shared.clone();
        let close = move || {
            shared.open.write().unwrap_or_else(PoisonError::into_inner).take();
        };
        if let Err(error) = self.shared.executor.run_within(DISK_DEADLINE, close).await {
            tracing::error!(%error, "the log was not closed in order");
        }
    }

    /// Reads the entries of a range that the log has, until there are so many bytes.
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let Reading { old, mut recent, removals } =
                self.shared.state().read(range.clone(), bytes_max);
            if old.is_empty() {
                return Ok(recent);
            }
            let inclusive = old.start..=old.end - 1;
            let read = self.shared.run(move |file| file.read(inclusive, bytes_max)).await?;
            if self.shared.state().removals != removals {
                // Some of it may be gone, or be another's by now.
                continue;
            }
            let Read { mut entries, more } = read;
            let found = entries.iter().map(|entry| entry.log_id.index);
            if !found.eq(old.clone().take(entries.len())) || (!more && entries.len() < old.count())
            {
                return Err(io::Error::other(format!("entries of {range:?} are not in the log")));
            }
            if !more {
                entries.append(&mut recent);
            }
            return Ok(entries);
        }
    }

    /// Returns whether what was read begins where it was to, and not later.
    fn begin_at(&self, read: &[Entry], start: u64) -> bool {
        match read.first() {
            Some(first) => first.log_id.index == start,
            None => start >= self.shared.state().entries.start,
        }
    }

    /// Queues a change, which `prepare` makes in memory first. Fails if nothing is written any
    /// more.
    async fn queue(
        &self,
        bytes: usize,
        done: Done,
        prepare: impl FnOnce(&mut State) -> io::Result<Change>,
    ) -> io::Result<()> {
        let closed = || io::Error::other("the log has been closed");
        let bytes = u32::try_from(bytes.min(QUEUED_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = self.shared.room.clone().acquire_many_owned(bytes).await;
        let _room = room.map_err(|_| closed())?;
        let place = self.queue.reserve().await.map_err(|_| closed())?;
        let mut state = self.shared.state();
        if let Some(error) = &state.failed {
            return Err(io::Error::other(error.clone()));
        }
        let change = prepare(&mut state)?;
        state.queued += 1;
        place.send(Queued { change, done, _room });
        Ok(())
    }

    /// Queues a change and waits until it is on disk.
    async fn change(
        &self,
        prepare: impl FnOnce(&mut State) -> io::Result<Change>,
    ) -> io::Result<()> {
        let (asked, answer) = oneshot::channel();
        self.queue(0, Done::Asked(asked), prepare).await?;
        answer.await.map_err(|_| io::Error::other("the log was not written to its end"))?
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.read(half_open(&range), usize::MAX).await
    }

    /// Reads nothing if the beginning is purged, for what comes after it must not be sent in its
    /// place. That is no error: a leader that is none any more may ask once more.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let read = self.read(start..end, READ_BYTES_MAX).await?;
        Ok(if self.begin_at(&read, start) { read } else { Vec::new() })
    }

    /// Reads on as the stream is read, so that a long range is never in memory as a whole. It is
    /// there to be applied: that the beginning is purged is an error.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let read = |(log, mut read, rest): (Self, VecDeque<Entry>, Range<u64>)| async move {
            if read.is_empty() && !rest.is_empty() {
                let more = log.read(rest.clone(), READ_BYTES_MAX).await?;
                if !log.begin_at(&more, rest.start) {
                    return Err(io::Error::other(format!("the log has no entry {}", rest.start)));
                }
                read = more.into();
            }
            let Some(entry) = read.pop_front() else { return Ok(None) };
            let rest = entry.log_id.index + 1..rest.end;
            Ok(Some((entry, (log, read, rest))))
        };
        stream::try_unfold((self.clone(), VecDeque::new(), half_open(&range)), read)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.shared.state().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let state = self.shared.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = *vote;
        self.change(|state| {
            state.vote = Some(vote);
            Ok(Change::Vote(vote))
        })
        .await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().collect::<Vec<_>>();
        let bytes = entries.iter().map(entry_bytes).sum();
        self.queue(bytes, Done::Flushed(callback), |state| state.append(entries)).await
    }

    /// Waits until it is on disk: the state may not be there before conflicting entries are gone.
    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.change(|state| Ok(state.truncate(last))).await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.queue(0, Done::Nobody, |state| Ok(state.purge(upto))).await
    }
}

/// What is to be read from the file, and what comes after it.
struct Reading {
    old: Range<u64>,
    recent: Vec<Entry>,
    removals: u64,
}

impl State {
    fn append(&mut self, entries: Vec<Entry>) -> io::Result<Change> {
        for entry in &entries {
            let index = entry.log_id.index;
            let follows = match self.purged {
                // Where a log begins is checked when it is opened.
                None if self.entries.is_empty() => true,
                _ => index == self.entries.end,
            };
            if !follows {
                return Err(io::Error::other(format!(
                    "the entry {index} does not follow on {:?}",
                    self.entries
                )));
            }
            if self.entries.is_empty() {
                self.entries.start = index;
            }
            self.entries.end = index + 1;
            self.last = Some(entry.log_id);
            let bytes = entry_bytes(entry);
            self.recent_bytes += bytes;
            self.grown_bytes += bytes;
            self.recent.push_back(Recent { entry: entry.clone(), bytes, queued: self.queued + 1 });
        }
        Ok(Change::Append(entries))
    }

    fn truncate(&mut self, last: Option<LogId>) -> Change {
        let from = last.map_or(0, |last| last.index + 1);
        if from < self.entries.end {
            self.removals += 1;
            self.entries.end = from.max(self.entries.start);
            self.last = if self.entries.is_empty() { self.purged } else { last };
            while let Some(newest) =
                self.recent.pop_back_if(|newest| newest.entry.log_id.index >= from)
            {
                self.recent_bytes -= newest.bytes;
            }
        }
        Change::Truncate(from)
    }

    fn purge(&mut self, upto: LogId) -> Change {
        let first = upto.index + 1;
        self.removals += 1;
        self.grown_bytes = 0;
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(Some(upto));
        self.entries.start = self.entries.start.max(first);
        self.entries.end = self.entries.end.max(self.entries.start);
        while let Some(oldest) =
            self.recent.pop_front_if(|oldest| oldest.entry.log_id.index < first)
        {
            self.recent_bytes -= oldest.bytes;
        }
        Change::Purge(upto)
    }

    /// Lets go of entries that are on disk, while there are too many.
    fn forget(&mut self) {
        while self.recent.len() > RECENT_MAX || self.recent_bytes > RECENT_BYTES_MAX {
            let synced = self.synced;
            let Some(oldest) = self.recent.pop_front_if(|oldest| oldest.queued <= synced) else {
                return;
            };
            self.recent_bytes -= oldest.bytes;
        }
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> Reading {
        let start = range.start.max(self.entries.start);
        let end = range.end.min(self.entries.end);
        let recent_start = self.entries.end - self.recent.len() as u64;
        let old = start..end.min(recent_start);
        let (mut recent, mut bytes) = (Vec::new(), 0);
        let skipped = usize::try_from(start.saturating_sub(recent_start)).unwrap_or(usize::MAX);
        for Recent { entry, bytes: more, .. } in self.recent.iter().skip(skipped) {
            if entry.log_id.index >= end {
                break;
            }
            bytes += more;
            if bytes > bytes_max && !recent.is_empty() {
                break;
            }
            recent.push(entry.clone());
        }
        Reading { old, recent, removals: self.removals }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&LogFile) -> Result<T, StateError> + Send + 'static,
    ) -> io::Result<T> {
        let shared = self.clone();
        let run = move || match &*shared.open.read().unwrap_or_else(PoisonError::into_inner) {
            Some(open) => work(&open.file),
            None => Err(StateError("the log has been closed".into())),
        };
        self.executor.run_within(DISK_DEADLINE, run).await.flatten().map_err(io::Error::other)
    }
}

/// Writes all that is queued. After an error nothing is tried again: what redb and the system
/// still have in memory may look as if it were on disk. A disk that does not answer is an error
/// too: a leader that waited for it would go on leading, for others hear of it all the time.
async fn write_all(shared: Arc<Shared>, mut queue: mpsc::Receiver<Queued>) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, QUEUED_MAX).await > 0 {
        let (mut changes, mut waiting) = (Vec::new(), Vec::new());
        for Queued { change, done, _room } in batch.drain(..) {
            changes.push(change);
            waiting.push((done, _room));
        }
        let failed = shared.state().failed.clone();
        let written = match failed {
            Some(error) => Err(error),
            None => shared
                .run(move |file| file.commit(&changes))
                .await
                .map_err(|error| StateError(error.to_string())),
        };
        let mut state = shared.state();
        match &written {
            Ok(()) => {
                state.synced += waiting.len() as u64;
                state.forget();
            }
            Err(error) => {
                if state.failed.replace(error.clone()).is_none() {
                    tracing::error!(%error, "the log is not written any more");
                }
            }
        }
        drop(state);
        for (done, _room) in waiting {
            done.tell(written.clone().map_err(io::Error::other));
        }
    }
}

impl Done {
    fn tell(self, written: io::Result<()>) {
        match self {
            Self::Flushed(callback) => callback.io_completed(written),
            // Whoever asked may be gone.
            Self::Asked(asked) => drop(asked.send(written)),
            Self::Nobody => {}
        }
    }
}

fn half_open(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

#[cfg(test)]
mod tests;
