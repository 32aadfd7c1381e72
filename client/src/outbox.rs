//! What is on its way from one writer to its bookies. An entry is made a frame once; all places
//! that take it share the bytes, each at its own pace.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

/// What a place is to send next. The room of its entries is taken until it is dropped.
#[derive(Default)]
pub(crate) struct Batch {
    parts: Vec<Arc<Part>>,
    /// The last add confirmed, behind the entries.
    word: Option<EntryId>,
}

/// More waits for a place than may.
#[derive(Debug)]
pub(crate) struct Full;

struct Shared {
    /// The part that is being made. It is in the queues once one of the places wants it, or the
    /// next entry goes elsewhere or does not fit.
    newest: Part,
    newest_frames: Frames,
    newest_places: Places,
    /// How long the next piece of small frames will probably become: as the last.
    expected_bytes: usize,
    queues: Vec<Option<Queue>>,
}

/// Entries that go to the same places.
#[derive(Default)]
struct Part {
    entries: Vec<EntryId>,
    bytes: usize,
    rooms: Vec<Room>,
    /// The frames, once it is whole.
    pieces: Vec<Bytes>,
}

struct Queue {
    parts: VecDeque<Arc<Part>>,
    word: Option<EntryId>,
    closed: bool,
    bell: Arc<Bell>,
}

impl Outbox {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Shared {
            newest: Part::default(),
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
        let bytes = shared.newest.bytes + entry.bytes().len();
        let begins = shared.newest_places != places || bytes > PART_BYTES_MAX;
        if begins {
            shared.finish_newest();
            shared.begin(places)?;
        }
        if places == Places::default() {
            return Ok(());
        }
        shared.newest_frames.push(kind::ENTRY, entry.bytes());
        shared.newest.bytes += entry.bytes().len();
        shared.newest.entries.push(entry.id());
        if let Some(room) = room
            && !shared.newest.rooms.last().is_some_and(|last| last.is(room))
        {
            shared.newest.rooms.push(room.clone());
        }
        if begins {
            queues_at(&mut shared.queues, places).for_each(|queue| queue.bell.ring());
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
    /// Takes what is to be sent next, which may be nothing; none once the outbox is closed and all
    /// was given out. Rings if there is more.
    pub(crate) fn take(&self) -> Option<Batch> {
        lock(&self.shared).take(self.place, &self.bell)
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
        self.parts.iter().flat_map(|part| &part.entries).copied()
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.word.is_none()
    }

    /// Tells how many bytes the entries are.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// Adds its frames to others.
    pub(crate) fn put_in(&self, frames: &mut Frames) {
        for piece in self.parts.iter().flat_map(|part| &part.pieces) {
            frames.push_encoded(piece);
        }
        if let Some(word) = self.word {
            frames.push(kind::CONFIRMED, &Bytes::copy_from_slice(&encode_number(word.get())));
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

    /// Begins a part, which is empty still.
    fn begin(&mut self, places: Places) -> Result<(), Full> {
        if queues_at(&mut self.queues, places).any(|queue| queue.parts.len() == PARTS_MAX) {
            return Err(Full);
        }
        self.newest_places = places;
        self.newest_frames = Frames::with_capacity(self.expected_bytes);
        Ok(())
    }

    /// Puts the newest part into the queues. The next is expected to become as long.
    fn finish_newest(&mut self) {
        let places = mem::take(&mut self.newest_places);
        if self.newest.entries.is_empty() {
            return;
        }
        let mut part = mem::take(&mut self.newest);
        part.pieces = self.newest_frames.take();
        self.expected_bytes = part.pieces[0].len();
        let part = Arc::new(part);
        for queue in queues_at(&mut self.queues, places) {
            queue.parts.push_back(Arc::clone(&part));
        }
    }

    /// Takes what waits for a place now, or much of it; none if nothing will come.
    fn take(&mut self, place: usize, bell: &Arc<Bell>) -> Option<Batch> {
        if self.newest_places.contains(place) {
            self.finish_newest();
        }
        let queue = self.queue(place, bell)?;
        let mut batch = Batch::default();
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some(part) = queue.parts.pop_front()
        {
            bytes += part.bytes;
            batch.parts.push(part);
        }
        if queue.parts.is_empty() {
            batch.word = queue.word.take();
        }
        let ended = queue.closed && batch.is_empty();
        if !queue.parts.is_empty() || (queue.closed && !ended) {
            queue.bell.ring();
        }
        (!ended).then_some(batch)
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
