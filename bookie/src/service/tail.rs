//! Streams of pushes: one lane of a ledger, as it is confirmed.

use bytes::Bytes;
use inkfast_protocol::messages::{Missing, Tail, decode_number, encode_number, kind};
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use inkfast_wire::{Frame, FrameSender, Frames, Stream};
use prost::Message;

use super::reads::READ_BYTES_MAX;
use super::{BookieService, Served, bad, refuse};
use crate::store::Tip;

/// The most entries that are looked for at once.
const RUN_ENTRIES_MAX: usize = 256;

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
}

impl BookieService {
    /// Pushes entries until the last that is wanted, or until the client ends the stream.
    pub(super) async fn serve_tail(&self, request: &Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let mut lane = match Lane::parse(request) {
            Ok(lane) => lane,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        let mut tip = match self.store.follow(lane.ledger).await {
            Ok(tip) => tip,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        while !lane.has_ended() {
            let now = *tip.borrow_and_update();
            if let Err(refusal) = self.push(&mut lane, now, &mut sender).await? {
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

    /// Pushes all that may be pushed now.
    async fn push(
        &self,
        lane: &mut Lane,
        tip: Tip,
        sender: &mut FrameSender,
    ) -> Result<Result<(), Refusal>, inkfast_wire::Error> {
        let mut frames = Frames::default();
        lane.tell(tip, &mut frames);
        loop {
            let due = lane.due(tip);
            if !due.is_empty()
                && let Err(refusal) = self.push_run(lane, due, &mut frames).await
            {
                return Ok(Err(refusal));
            }
            let mut pieces = frames.take();
            if pieces.is_empty() {
                return Ok(Ok(()));
            }
            sender.send_encoded(&mut pieces).await?;
        }
    }

    /// Puts as many of the entries that are due into frames as the credit allows, and one read.
    async fn push_run(
        &self,
        lane: &mut Lane,
        due: Vec<EntryId>,
        frames: &mut Frames,
    ) -> Result<(), Refusal> {
        let mut places = self.store.locate(lane.ledger, due.clone()).await?;
        let room = lane.credit().min(READ_BYTES_MAX as u64);
        let mut bytes = 0;
        let fits = places.iter().take_while(|place| {
            let has_room = bytes < room;
            bytes += place.as_ref().map_or(0, |place| u64::from(place.payload_bytes));
            has_room
        });
        places.truncate(fits.count());
        for (id, entry) in due.into_iter().zip(self.read_run(places).await) {
            if lane.credit() == 0 {
                break;
            }
            let (kind, body) = match entry {
                Ok(entry) => (kind::ENTRY, entry),
                Err(refusal) => {
                    let missing = Missing { entry: id.get(), refused: refusal.to_message() };
                    (kind::MISSING, missing.encode_to_vec().into())
                }
            };
            lane.push(kind, &body, frames);
        }
        Ok(())
    }
}

impl Lane {
    fn parse(request: &Frame) -> Result<Self, Refusal> {
        let request: Tail = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        let Tail { from, to, lanes, lane, credit, .. } = request;
        let (lanes, lane) = (u64::from(lanes), u64::from(lane));
        let next = from.saturating_add((lane + lanes - from % lanes) % lanes);
        Ok(Self { ledger, lanes, next, to, told: None, granted: credit, spent: 0 })
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
    /// written, one above the highest that is on disk may still come.
    fn due(&self, tip: Tip) -> Vec<EntryId> {
        let pushable = tip.confirmed.min(tip.durable).map(EntryId::get);
        let last = self.to.or(pushable).filter(|_| self.credit() > 0);
        let Some(last) = last else { return Vec::new() };
        let ids = (0..).map_while(|n: u64| self.next.checked_add(n.checked_mul(self.lanes)?));
        ids.take_while(|id| *id <= last).take(RUN_ENTRIES_MAX).map(EntryId::new).collect()
    }

    fn push(&mut self, kind: u8, body: &Bytes, frames: &mut Frames) {
        frames.push(kind, body);
        self.spent = self.spent.saturating_add(body.len() as u64);
        self.next = self.next.saturating_add(self.lanes);
    }

    const fn credit(&self) -> u64 {
        self.granted.saturating_sub(self.spent)
    }

    fn has_ended(&self) -> bool {
        self.to.is_some_and(|to| to < self.next)
    }
}
