//! Adding to the bookies: one stream to each, which all writers and recoveries of the client share.
//!
//! A stream for each ledger would cost a packet and a wake-up for each entry where many ledgers
//! have few entries at a time.

use std::collections::{BTreeMap, VecDeque};
use std::mem;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use inkfast_protocol::messages::{Added, AddsRefused, OpenAdds, encode_adder, kind};
use inkfast_protocol::{BookieId, EntryId, Refusal};
use inkfast_wire::{Frame, FrameReceiver, FrameSender, Frames, Stream};
use prost::Message;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use crate::bell::{Bell, Turns};
use crate::bookies::{Bookies, Traffic, refusal, unreachable, within};
use crate::outbox::{Batch, Outlet, Part};

/// A deadline that is missed by as much was slept through: this process stood still.
const STOOD_STILL: Duration = Duration::from_secs(1);
/// Once so many bytes of entries are gathered they are sent.
const SENT_BYTES: usize = 256 << 10;
/// The least room that is made for frames that are gathered into one piece.
const COPIED_BYTES_MIN: usize = 16 << 10;

/// The stream of adds to one bookie. Once this is dropped what waits is sent, and the stream ends.
pub(crate) struct Adds(Arc<Shared>);

/// Who adds to one ledger, at one place and in one tenure.
pub(crate) struct Adder {
    /// Without its number, which the stream gives it.
    pub(crate) open: OpenAdds,
    /// Hears what the bookie says. Not called from within any call of this module.
    pub(crate) hear: Hear,
}

pub(crate) type Hear = Arc<dyn Fn(Said) + Send + Sync>;

/// What an adder hears.
pub(crate) enum Said {
    /// Of what it sent, all from the first to the last is on disk.
    Added(EntryId, EntryId),
    /// Why nothing is added any more: the bookie refused, could not be reached, or did not answer
    /// within the add deadline.
    Ended(Refusal),
}

struct Shared {
    deadline: Duration,
    state: Mutex<State>,
    turns: Arc<Turns>,
}

/// What was gathered before.
#[derive(Default)]
struct Before {
    /// The adder of the last entries, and of those that follow.
    adder: Option<u32>,
    /// How many bytes were copied into one piece, as will be about the next time.
    copied_bytes: usize,
}

#[derive(Default)]
struct State {
    adders: BTreeMap<u32, Entered>,
    /// What the bookie is to be told of those adders of which it does not know yet.
    unopened: BTreeMap<u32, OpenAdds>,
    /// The number of the next adder.
    next: u32,
    /// The adders of which the bookie is to hear that they have ended.
    closed: Vec<u32>,
    /// Why the stream has ended.
    ended: Option<Refusal>,
    /// No adder will come.
    dropped: bool,
}

struct Entered {
    hear: Hear,
    outlet: Outlet,
    /// What has been sent and is not answered, in ascending order, and when it went out.
    unanswered: VecDeque<(EntryId, Instant)>,
}

impl Adds {
    /// Begins to open a stream to a bookie.
    pub(crate) fn start(bookies: Bookies, bookie: BookieId) -> Self {
        let (state, turns) = (Mutex::default(), Arc::default());
        let shared = Arc::new(Shared { deadline: bookies.deadlines().add, state, turns });
        tokio::spawn(run(Arc::clone(&shared), bookies, bookie));
        Self(shared)
    }

    /// Says whether nobody can add any more.
    pub(crate) fn has_ended(&self) -> bool {
        let state = self.0.lock();
        // The last number is none.
        state.ended.is_some() || state.next == u32::MAX
    }

    /// Sends what comes out of an outlet, which is to ring the bell, until its outbox is closed:
    /// whoever closes it waits for no more answers.
    pub(crate) fn add(&self, adder: Adder, outlet: impl FnOnce(Arc<Bell>) -> Outlet) {
        let mut state = self.0.lock();
        if let Some(refusal) = state.ended.clone() {
            drop(state);
            tokio::spawn(async move { (adder.hear)(Said::Ended(refusal)) });
            return;
        }
        let number = state.next;
        state.next += 1;
        let bell = self.0.turns.bell(number);
        state.unopened.insert(number, OpenAdds { adder: number, ..adder.open });
        let (outlet, unanswered) = (outlet(bell), VecDeque::new());
        state.adders.insert(number, Entered { hear: adder.hear, outlet, unanswered });
    }
}

impl Drop for Adds {
    fn drop(&mut self) {
        self.0.lock().dropped = true;
        self.0.turns.wake();
    }
}

async fn run(shared: Arc<Shared>, bookies: Bookies, bookie: BookieId) {
    let opened = within(shared.deadline, bookies.open(bookie, Traffic::Adds)).await;
    // Only whoever adds keeps the connections open.
    drop(bookies);
    let ended = match opened {
        Ok(stream) => shared.serve(stream).await,
        Err(refusal) => Err(refusal),
    };
    let refusal = ended.err().unwrap_or_else(|| Refusal::Unknown("the client stops".to_owned()));
    let adders = {
        let mut state = shared.lock();
        state.ended = Some(refusal.clone());
        mem::take(&mut state.adders)
    };
    for Entered { hear, .. } in adders.into_values() {
        hear(Said::Ended(refusal.clone()));
    }
}

impl Shared {
    /// Sends and receives until all is sent and nothing will come, or something fails.
    async fn serve(&self, mut stream: Stream) -> Result<(), Refusal> {
        let mut receive = pin!(self.receive(&mut stream.receiver));
        // Both at once: answers must be taken while QUIC makes us wait.
        tokio::select! {
            biased;
            Err(ended) = &mut receive => return Err(ended),
            sent = self.send(&mut stream.sender) => if let Err(refusal) = sent {
                // A bookie that refuses stops reading too: its own words are on their way.
                let said = timeout(self.deadline, receive).await;
                return said.unwrap_or(Err(refusal));
            },
        }
        stream.sender.finish();
        Ok(())
    }

    async fn send(&self, sender: &mut FrameSender) -> Result<(), Refusal> {
        let mut before = Before::default();
        loop {
            let (mut frames, parts) = self.gather(&mut before);
            if !frames.is_empty() {
                let sent = timeout(self.deadline, sender.send_encoded(&mut frames)).await;
                sent.map_err(|_| late(self.deadline))?.map_err(unreachable)?;
                // Only here are the entries dropped: their room is taken until QUIC has the bytes.
                drop(parts);
            } else if self.lock().dropped {
                return Ok(());
            } else {
                self.turns.wait().await;
            }
        }
    }

    /// Gathers what is to be sent now, or much of it.
    fn gather(&self, before: &mut Before) -> (Vec<Bytes>, Vec<Part>) {
        let copied_bytes = before.copied_bytes.next_power_of_two();
        let mut frames = Frames::with_capacity(copied_bytes.clamp(COPIED_BYTES_MIN, SENT_BYTES));
        let (mut batch, mut parts, mut bytes) = (Batch::default(), Vec::new(), 0);
        // Whatever the last of an adder takes along is not dropped under the lock.
        let mut ended = Vec::new();
        let now = Instant::now();
        let mut locked = self.lock();
        let state = &mut *locked;
        while bytes < SENT_BYTES
            && let Some(bell) = self.turns.next()
        {
            let number = bell.number;
            let Some(entered) = state.adders.get_mut(&number) else { continue };
            if !entered.outlet.take(&mut batch) {
                ended.extend(state.remove(number));
                continue;
            }
            if batch.is_empty() {
                continue;
            }
            open_up_to(number, &mut state.unopened, &mut frames);
            if before.adder.replace(number) != Some(number) {
                frames.push(kind::ADDER, &Bytes::copy_from_slice(&encode_adder(number)));
            }
            entered.unanswered.extend(batch.entries().map(|entry| (entry, now)));
            batch.put_in(&mut frames);
            bytes += batch.bytes();
            batch.move_to(&mut parts);
        }
        for number in mem::take(&mut state.closed) {
            frames.push(kind::CLOSE_ADDS, &Bytes::copy_from_slice(&encode_adder(number)));
        }
        drop(locked);
        if !parts.is_empty() {
            before.copied_bytes = parts.iter().map(Part::copied_bytes).sum();
        }
        (frames.take(), parts)
    }

    async fn receive(&self, receiver: &mut FrameReceiver) -> Result<(), Refusal> {
        let mut look_at = Instant::now() + self.deadline;
        loop {
            let frame = tokio::select! {
                biased;
                frame = receiver.next() => frame.map_err(unreachable)?,
                () = sleep_until(look_at) => {
                    look_at = self.give_up_late(look_at);
                    continue;
                }
            };
            let ended = || Refusal::Unknown("the bookie ended the stream of adds".to_owned());
            let mut next = Some(frame.ok_or_else(ended)?);
            while let Some(frame) = next {
                self.on_frame(&frame)?;
                next = receiver.next_buffered().map_err(unreachable)?;
            }
        }
    }

    fn on_frame(&self, frame: &Frame) -> Result<(), Refusal> {
        match frame.kind {
            kind::ADDED => {
                let Added { adder, first, last } = Added::decode(&frame.body).ok_or_else(|| {
                    Refusal::Unknown("the acknowledgement is too short".to_owned())
                })?;
                // One that was closed or refused meanwhile waits for nothing.
                let hearer = self.lock().adders.get_mut(&adder).map(|entered| {
                    entered.answered(first, last);
                    Arc::clone(&entered.hear)
                });
                if let Some(hear) = hearer {
                    hear(Said::Added(first, last));
                }
            }
            kind::ADDS_REFUSED => {
                let AddsRefused { adder, refused } = frame.decode().map_err(unreachable)?;
                self.end(adder, Refusal::from_message(refused));
            }
            _ => return Err(refusal(frame)),
        }
        Ok(())
    }

    fn end(&self, adder: u32, refusal: Refusal) {
        let entered = self.lock().remove(adder);
        self.turns.wake();
        if let Some(Entered { hear, .. }) = entered {
            hear(Said::Ended(refusal));
        }
    }

    /// Ends the adders that were due to be answered by now. Returns when the next are.
    fn give_up_late(&self, due: Instant) -> Instant {
        let now = Instant::now();
        let mut state = self.lock();
        let mut overdue = Vec::new();
        if now.duration_since(due) < STOOD_STILL {
            overdue.extend(state.adders.iter().filter_map(|(number, entered)| {
                let (_, sent_at) = entered.unanswered.front()?;
                (*sent_at + self.deadline <= now).then_some(*number)
            }));
        } else {
            // It is we who did not listen: the answers may have come long ago.
            let all = state.adders.values_mut().flat_map(|entered| &mut entered.unanswered);
            all.for_each(|(_, sent_at)| *sent_at = now);
        }
        let oldest = state.adders.iter().filter(|(number, _)| !overdue.contains(number));
        let oldest = oldest.filter_map(|(_, entered)| entered.unanswered.front());
        let oldest = oldest.map(|(_, sent_at)| *sent_at).min().unwrap_or(now);
        drop(state);
        for number in overdue {
            self.end(number, late(self.deadline));
        }
        // What is sent later is due later.
        oldest + self.deadline
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn remove(&mut self, number: u32) -> Option<Entered> {
        let entered = self.adders.remove(&number)?;
        if self.unopened.remove(&number).is_none() {
            self.closed.push(number);
        }
        Some(entered)
    }
}

impl Entered {
    /// Removes a run. Runs mostly come in order, but an entry that was there already is answered
    /// before those in front of it.
    fn answered(&mut self, first: EntryId, last: EntryId) {
        let entries = &mut self.unanswered;
        let from = entries.partition_point(|(entry, _)| *entry < first);
        let to = entries.partition_point(|(entry, _)| *entry <= last);
        entries.drain(from..to.max(from));
    }
}

/// Tells the bookie of adders, in the order of their numbers: the first of them is not always the
/// first to have something to send.
fn open_up_to(number: u32, unopened: &mut BTreeMap<u32, OpenAdds>, frames: &mut Frames) {
    while let Some(first) = unopened.first_entry()
        && *first.key() <= number
    {
        frames.push(kind::OPEN_ADDS, &first.remove().encode_to_vec().into());
    }
}

fn late(deadline: Duration) -> Refusal {
    Refusal::Unknown(format!("an add was not answered within {deadline:?}"))
}

#[cfg(test)]
mod tests;
