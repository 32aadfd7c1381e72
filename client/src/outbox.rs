//! What is on its way from one writer to its bookies. Entries that wait together are made frames
//! once; all places that take them share the bytes, each at its own pace.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{mem, slice};

use bytes::Bytes;
use inkfast_protocol::messages::{encode_number, kind};
use inkfast_protocol::{Entry, EntryId, Places};
use inkfast_wire::Frames;

use crate::bell::Bell;
use crate::room::Room;

/// The most bytes of entries in a part, unless it has only one.
const PART_BYTES_MAX: usize = 64 << 10;

/// A place takes no more once it has taken so many bytes of entries.
const BATCH_BYTES: usize = 256 << 10;

/// The most parts that wait for a place, each of one entry or more.
pub(crate) const PARTS_MAX: usize = 8192;

/// The end of whoever makes the entries. Dropping it [closes](Self::close) it.
pub(crate) struct Outbox(Arc<Mutex<Shared>>);

/// The end of the stream to one place. Once it is dropped nothing is kept for it any more.
pub(crate) struct Outlet {
    shared: Arc<Mutex<Shared>>,
    place: usize,
    bell: Arc<Bell>,
}

/// What a place is to send next.
#[derive(Default)]
pub(crate) struct Batch {
    parts: Vec<Part>,
    /// The last add confirmed, behind the entries.
    word: Option<EntryId>,
}

/// More waits for a place than may.
#[derive(Debug)]
pub(crate) struct Full;

struct Shared {
    /// The part that is being made: this entry alone, or the run. It is in the queues once one of
    /// the places wants it, or the next entry goes elsewhere or does not fit.
    newest: Option<One>,
    newest_run: Run,
    newest_frames: Frames,
    /// Where it goes; nowhere if no part is being made.
    newest_places: Places,
    /// How long the next piece of small frames will probably become: as the last.
    expected_bytes: usize,
    queues: Vec<Option<Queue>>,
}

/// Entries that go to the same places. Their room is taken until it is dropped.
#[derive(Clone)]
pub(crate) enum Part {
    One(One),
    Run(Arc<Run>),
}

/// An entry that is made a frame only where it is sent, which costs less than to share the frame.
#[derive(Clone)]
pub(crate) struct One {
    id: EntryId,
    bytes: Bytes,
    room: Option<Room>,
}

/// Entries that are made frames together.
#[derive(Default)]
pub(crate) struct Run {
    entries: Vec<EntryId>,
    bytes: usize,
    rooms: Vec<Room>,
    /// The frames, once it is whole.
    pieces: Vec<Bytes>,
}

struct Queue {
    parts: VecDeque<Part>,
    word: Option<EntryId>,
    closed: bool,
    bell: Arc<Bell>,
}

impl Outbox {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            newest: None,
            newest_run: Run::default(),
            newest_frames: Frames::default(),
            newest_places: Places::default(),
            expected_bytes: 0,
            queues: (0..places).map(|_| None).collect(),
        })))
    }

    /// Begins to keep what is pushed for a place, and rings when there is something. An earlier
    /// outlet of the place gets nothing more.
    pub(crate) fn outlet(&self, place: usize, bell: Arc<Bell>) -> Outlet {
        let outlet = Outlet { shared: Arc::clone(&self.0), place, bell: Arc::clone(&bell) };
        let queue = Queue { parts: VecDeque::new(), word: None, closed: false, bell };
        let mut shared = lock(&self.0);
        shared.finish_newest();
        let before = shared.queues[place].replace(queue);
        drop(shared);
        if let Some(before) = before {
            before.bell.ring();
        }
        outlet
    }

    /// Puts an entry behind what waits for some places. Those without an outlet do not get it.
    pub(crate) fn push(
        &self,
        entry: &Entry,
        places: Places,
        room: Option<&Room>,
    ) -> Result<(), Full> {
        let mut shared = lock(&self.0);
        let places = shared.with_outlet(places);
        if places == Places::default() {
            return Ok(());
        }
        let bytes = shared.newest_bytes() + entry.bytes().len();
        if shared.newest_places == places && bytes <= PART_BYTES_MAX {
            shared.extend_newest(entry, room);
        } else {
            shared.finish_newest();
            let one = One { id: entry.id(), bytes: entry.bytes().clone(), room: room.cloned() };
            shared.begin(one, places)?;
        }
        Ok(())
    }

    /// Tells a place the last add confirmed, behind what waits for it, and instead of what it was
    /// not told yet.
    pub(crate) fn tell(&self, place: usize, confirmed: EntryId) {
        if let Some(queue) = &mut lock(&self.0).queues[place] {
            queue.word = Some(confirmed);
            queue.bell.ring();
        }
    }

    /// Says that nothing follows. What waits is still sent.
    pub(crate) fn close(&self) {
        let mut shared = lock(&self.0);
        shared.finish_newest();
        for queue in shared.queues.iter_mut().flatten() {
            queue.closed = true;
            queue.bell.ring();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.close();
    }
}

impl Outlet {
    /// Puts what is to be sent next, which may be nothing, into an empty batch. Rings if there is
    /// more. Says whether something may follow: not once the outbox is closed and all was given out.
    pub(crate) fn take(&self, batch: &mut Batch) -> bool {
        lock(&self.shared).take(self.place, &self.bell, batch)
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        let mut shared = lock(&self.shared);
        if shared.queue(self.place, &self.bell).is_some() {
            shared.finish_newest();
            let unsent = shared.queues[self.place].take();
            // Whoever waits for the room that this frees is woken without the lock.
            drop(shared);
            drop(unsent);
        }
    }
}

impl Batch {
    /// Returns the entries, in the order in which they are sent.
    pub(crate) fn entries(&self) -> impl Iterator<Item = EntryId> {
        self.parts.iter().flat_map(Part::entries).copied()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.word.is_none()
    }

    /// Tells how many bytes the entries are.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Part::bytes).sum()
    }

    /// Moves its parts behind others, and is empty then.
    pub(crate) fn move_to(&mut self, sent: &mut Vec<Part>) {
        sent.append(&mut self.parts);
        self.word = None;
    }

    /// Adds its frames to others.
    pub(crate) fn put_in(&self, frames: &mut Frames) {
        for part in &self.parts {
            match part {
                Part::One(one) => frames.push(kind::ENTRY, &one.bytes),
                Part::Run(run) => run.pieces.iter().for_each(|piece| frames.push_encoded(piece)),
            }
        }
        if let Some(word) = self.word {
            frames.push(kind::CONFIRMED, &Bytes::copy_from_slice(&encode_number(word.get())));
        }
    }
}

impl Part {
    fn entries(&self) -> &[EntryId] {
        match self {
            Self::One(one) => slice::from_ref(&one.id),
            Self::Run(run) => &run.entries,
        }
    }

    /// Tells how many of the bytes are copied where they are sent.
    pub(crate) fn copied_bytes(&self) -> usize {
        if let Self::One(one) = self { one.bytes.len() } else { 0 }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::One(one) => one.bytes.len(),
            Self::Run(run) => run.bytes,
        }
    }
}

impl Run {
    /// Adds an entry, and its frame to those of the others.
    fn push(&mut self, id: EntryId, bytes: &Bytes, room: Option<&Room>, frames: &mut Frames) {
        frames.push(kind::ENTRY, bytes);
        self.bytes += bytes.len();
        self.entries.push(id);
        if let Some(room) = room
            && !self.rooms.last().is_some_and(|last| last.is(room))
        {
            self.rooms.push(room.clone());
        }
    }
}

impl Shared {
    fn with_outlet(&self, places: Places) -> Places {
        let queues = self.queues.iter().enumerate();
        queues
            .filter(|(place, queue)| queue.is_some() && places.contains(*place))
            .map(|(place, _)| place)
            .collect()
    }

    /// Begins a part, and rings for its places.
    fn begin(&mut self, one: One, places: Places) -> Result<(), Full> {
        if queues_at(&mut self.queues, places).any(|queue| queue.parts.len() == PARTS_MAX) {
            return Err(Full);
        }
        (self.newest, self.newest_places) = (Some(one), places);
        queues_at(&mut self.queues, places).for_each(|queue| queue.bell.ring());
        Ok(())
    }

    fn newest_bytes(&self) -> usize {
        self.newest.as_ref().map_or(self.newest_run.bytes, |one| one.bytes.len())
    }

    /// Adds an entry to the part that is being made.
    fn extend_newest(&mut self, entry: &Entry, room: Option<&Room>) {
        let (run, frames) = (&mut self.newest_run, &mut self.newest_frames);
        if let Some(first) = self.newest.take() {
            *frames = Frames::with_capacity(self.expected_bytes);
            run.push(first.id, &first.bytes, first.room.as_ref(), frames);
        }
        run.push(entry.id(), entry.bytes(), room, frames);
    }

    /// Puts the newest part into the queues. The next run is expected to become as long.
    fn finish_newest(&mut self) {
        let places = mem::take(&mut self.newest_places);
        if places == Places::default() {
            return;
        }
        let part = self.newest.take().map_or_else(|| self.finish_run(), Part::One);
        for queue in queues_at(&mut self.queues, places) {
            queue.parts.push_back(part.clone());
        }
    }

    fn finish_run(&mut self) -> Part {
        let pieces = self.newest_frames.take();
        self.expected_bytes = pieces[0].len();
        Part::Run(Arc::new(Run { pieces, ..mem::take(&mut self.newest_run) }))
    }

    /// Takes what waits for a place now, or much of it. Says whether something may follow.
    fn take(&mut self, place: usize, bell: &Arc<Bell>, batch: &mut Batch) -> bool {
        if self.newest_places.contains(place) {
            self.finish_newest();
        }
        let Some(queue) = self.queue(place, bell) else { return false };
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(part) = queue.parts.pop_front()
        {
            bytes += part.bytes();
            batch.parts.push(part);
        }
        if queue.parts.is_empty() {
            batch.word = queue.word.take();
        }
        let ended = queue.closed && batch.is_empty();
        if !queue.parts.is_empty() || (queue.closed && !ended) {
            queue.bell.ring();
        }
        !ended
    }

    /// Returns the queue of a place if it is still that of the outlet.
    fn queue(&mut self, place: usize, bell: &Arc<Bell>) -> Option<&mut Queue> {
        self.queues[place].as_mut().filter(|queue| Arc::ptr_eq(&queue.bell, bell))
    }
}

fn queues_at(queues: &mut [Option<Queue>], places: Places) -> impl Iterator<Item = &mut Queue> {
    let queues = queues.iter_mut().enumerate();
    queues.filter(move |(place, _)| places.contains(*place)).filter_map(|(_, queue)| queue.as_mut())
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
