//! Streams of pushes: one lane of a ledger, as it is confirmed.

use bytes::Bytes;
use inkfast_protocol::messages::{Missing, Tail, decode_number, encode_number, kind};
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use inkfast_wire::{FRAME_HEADER_BYTES, Frame, FrameSender, Frames, Stream};
use prost::Message;
use tokio::sync::watch;

use super::reads::{READ_BYTES_MAX, Unsent};
use super::{BookieService, Served, bad, refuse};
use crate::store::{Store, Tip};
use crate::stores::Home;

/// The most entries that are looked for at once.
const RUN_ENTRIES_MAX: u64 = 256;
/// What an entry is taken to have until one was read.
const ENTRY_BYTES_GUESS: u64 = 16 << 10;

/// How far the pushes of one stream have come.
struct Lane {
    ledger: LedgerId,
    /// How far apart its entries are.
    lanes: u64,
    /// The next entry to be pushed.
    next: u64,
    /// The last entry to be pushed, if there is one. All up to it are confirmed.
    to: Option<u64>,
    /// The last add confirmed that the client was told.
    told: Option<EntryId>,
    granted: u64,
    spent: u64,
    /// How large the last entry was that was pushed.
    entry_bytes: u64,
}

impl BookieService {
    /// Pushes entries until the last that is wanted, or until the client ends the stream.
    pub(super) async fn serve_tail(&self, request: &Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let mut lane = match Lane::parse(request) {
            Ok(lane) => lane,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        let (home, mut tip) = match self.follow(lane.ledger).await {
            Ok(followed) => followed,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        while !lane.has_ended() {
            let now = *tip.borrow_and_update();
            if let Err(refusal) = self.push(home.store(), &mut lane, now, &mut sender).await? {
                return refuse(&mut sender, refusal).await;
            }
            if lane.has_ended() {
                break;
            }
            tokio::select! {
                moved = tip.changed() => if moved.is_err() {
                    let stopping = Refusal::Unknown("the bookie is stopping".to_owned());
                    return refuse(&mut sender, stopping).await;
                },
                frame = receiver.next() => match frame? {
                    Some(frame) => if let Err(refusal) = lane.take(&frame) {
                        return refuse(&mut sender, refusal).await;
                    },
                    None => break,
                },
            }
        }
        sender.finish();
        Ok(())
    }

    async fn follow(&self, ledger: LedgerId) -> Result<(Home, watch::Receiver<Tip>), Refusal> {
        let home = self.stores.home(ledger).await?;
        let tip = home.store().follow(ledger).await?;
        Ok((home, tip))
    }

    /// Pushes all that may be pushed now: while a run is sent, the next is read.
    async fn push(
        &self,
        store: &Store,
        lane: &mut Lane,
        tip: Tip,
        sender: &mut FrameSender,
    ) -> Result<Result<(), Refusal>, inkfast_wire::Error> {
        let mut frames = Frames::default();
        lane.tell(tip, &mut frames);
        let due = lane.due(tip);
        let mut next = self.push_run(store, lane, due, frames).await;
        loop {
            let unsent = match next {
                Ok(unsent) => unsent,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let due = lane.due(tip);
            if due.is_empty() {
                unsent.send(sender).await?;
                return Ok(Ok(()));
            }
            let reading = async { Ok(self.push_run(store, lane, due, Frames::default()).await) };
            (next, ()) = tokio::try_join!(reading, unsent.send(sender))?;
        }
    }

    /// Puts as many of the entries that are due into frames as the credit allows, and one read.
    async fn push_run(
        &self,
        store: &Store,
        lane: &mut Lane,
        due: Vec<EntryId>,
        mut frames: Frames,
    ) -> Result<Unsent<'_>, Refusal> {
        if due.is_empty() {
            return Ok(Unsent { frames, room: None });
        }
        let places = store.locate(lane.ledger, due.clone()).await?;
        let limit = lane.run_bytes();
        let mut bytes = 0;
        let wanted = due.iter().copied().zip(places).take_while(|(_, place)| {
            let has_room = bytes < limit;
            bytes += place.as_ref().map_or(0, |place| u64::from(place.payload_bytes));
            has_room
        });
        let (entries, room) = self.read_run(store, lane.ledger, wanted.collect()).await;
        for (id, entry) in due.into_iter().zip(entries) {
            if lane.credit() == 0 {
                break;
            }
            let body_bytes = match entry {
                Ok(entry) => {
                    let body_bytes = entry.len() - FRAME_HEADER_BYTES;
                    lane.entry_bytes = body_bytes as u64;
                    frames.push_in_place(kind::ENTRY, entry);
                    body_bytes
                }
                Err(refusal) => {
                    let missing = Missing { entry: id.get(), refused: refusal.to_message() };
                    let body = missing.encode_to_vec().into();
                    frames.push(kind::MISSING, &body);
                    body.len()
                }
            };
            lane.step(body_bytes as u64);
        }
        Ok(Unsent { frames, room })
    }
}

impl Lane {
    fn parse(request: &Frame) -> Result<Self, Refusal> {
        let request: Tail = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        let Tail { from, to, lanes, lane, credit, .. } = request;
        let (lanes, lane) = (u64::from(lanes), u64::from(lane));
        let next = from.saturating_add((lane + lanes - from % lanes) % lanes);
        Ok(Self {
            ledger,
            lanes,
            next,
            to,
            told: None,
            granted: credit,
            spent: 0,
            entry_bytes: ENTRY_BYTES_GUESS,
        })
    }

    /// Takes what the client says on the stream.
    fn take(&mut self, frame: &Frame) -> Result<(), Refusal> {
        if frame.kind != kind::CREDIT {
            return Err(bad("only credit goes with a tail"));
        }
        let bytes = decode_number(&frame.body).ok_or_else(|| bad("a credit is too short"))?;
        self.granted = self.granted.saturating_add(bytes);
        Ok(())
    }

    /// Tells the last add confirmed if it has moved.
    fn tell(&mut self, tip: Tip, frames: &mut Frames) {
        if let Some(confirmed) = tip.confirmed
            && self.told < tip.confirmed
        {
            self.told = tip.confirmed;
            let body = encode_number(confirmed.get());
            frames.push(kind::CONFIRMED, &Bytes::copy_from_slice(&body));
        }
    }

    /// Returns the next entries that are confirmed and ought to be here: while the ledger is
    /// written, one above the highest that is on disk may still come. They are about as many as
    /// one read takes.
    fn due(&self, tip: Tip) -> Vec<EntryId> {
        let pushable = tip.confirmed.min(tip.durable).map(EntryId::get);
        let last = self.to.or(pushable).filter(|_| self.credit() > 0);
        let Some(last) = last else { return Vec::new() };
        let count = (self.run_bytes() / self.entry_bytes.max(1) + 1).min(RUN_ENTRIES_MAX);
        let ids = (0..count).map_while(|n| self.next.checked_add(n.checked_mul(self.lanes)?));
        ids.take_while(|id| *id <= last).map(EntryId::new).collect()
    }

    /// Goes on to the next entry when one was put into a frame of so many bytes.
    fn step(&mut self, body_bytes: u64) {
        self.spent = self.spent.saturating_add(body_bytes);
        self.next = self.next.saturating_add(self.lanes);
    }

    /// Returns the bytes after which a run is large enough.
    fn run_bytes(&self) -> u64 {
        self.credit().min(READ_BYTES_MAX as u64)
    }

    const fn credit(&self) -> u64 {
        self.granted.saturating_sub(self.spent)
    }

    fn has_ended(&self) -> bool {
        self.to.is_some_and(|to| to < self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn about_as_many_entries_are_looked_for_as_one_read_takes() {
        let credit = 2 * READ_BYTES_MAX as u64;
        let tail = Tail { ledger: 7, from: 0, to: Some(9999), lanes: 1, lane: 0, credit };
        let mut lane = Lane::parse(&Frame::message(kind::TAIL, &tail)).unwrap();
        for (entry_bytes, expected) in [(1 << 20, 2), (100 << 10, 11), (100, 256), (0, 256)] {
            lane.entry_bytes = entry_bytes;
            assert_eq!(lane.due(Tip::default()).len(), expected, "of {entry_bytes} bytes");
        }
    }
}
