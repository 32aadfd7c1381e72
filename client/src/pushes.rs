//! One stream of pushes from one bookie: a lane of a tail.

use inkfast_protocol::messages::{Missing, Tail, decode_number, encode_number, kind};
use inkfast_protocol::tail::StreamNumber;
use inkfast_protocol::{BookieId, Entry, EntryId, Refusal};
use inkfast_wire::{Frame, FrameReceiver, FrameSender};
use tokio::sync::{mpsc, watch};

use crate::bookies::{Bookies, Traffic, refusal, unreachable, within};

/// The most frames that are told at once.
const BATCH_MAX: usize = 64;

/// What the stream is for.
pub(crate) struct Pushes {
    pub(crate) stream: StreamNumber,
    pub(crate) bookie: BookieId,
    /// The request, whose credit does not count.
    pub(crate) tail: Tail,
}

/// What has come on a stream.
pub(crate) struct Told {
    pub(crate) stream: StreamNumber,
    pub(crate) pushed: Vec<Pushed>,
}

pub(crate) enum Pushed {
    /// The lane's next entry, verified.
    Entry(Entry),
    Confirmed(EntryId),
    /// The bookie has no sound copy of the lane's next entry.
    Missing(EntryId, Refusal),
    /// The stream has ended or failed. Nothing follows.
    Ended(Refusal),
}

/// Follows a lane and tells what comes, until the stream ends, or the other end of `granted`, the
/// bytes that may be pushed in all, was dropped.
pub(crate) async fn run(
    bookies: Bookies,
    pushes: Pushes,
    granted: watch::Receiver<u64>,
    tell: mpsc::Sender<Told>,
) {
    let stream = pushes.stream;
    if let Err(refusal) = follow(&bookies, pushes, granted, &tell).await {
        // Whoever is not there any more does not want to know.
        let _ = tell.send(Told { stream, pushed: vec![Pushed::Ended(refusal)] }).await;
    }
}

async fn follow(
    bookies: &Bookies,
    Pushes { stream, bookie, mut tail }: Pushes,
    mut granted: watch::Receiver<u64>,
    tell: &mpsc::Sender<Told>,
) -> Result<(), Refusal> {
    let deadline = bookies.deadlines().read;
    let opened = within(deadline, bookies.open(bookie, Traffic::Reads)).await?;
    let (mut sender, mut receiver) = (opened.sender, opened.receiver);
    tail.credit = *granted.borrow_and_update();
    let open = Frame::message(kind::TAIL, &tail);
    within(deadline, async { sender.send(&open).await.map_err(unreachable) }).await?;
    let mut said = tail.credit;
    let mut lane = Lane::new(&tail);
    loop {
        tokio::select! {
            frame = receiver.next() => {
                let first = frame.map_err(unreachable)?;
                let pushed = lane.take_all(first, &mut receiver);
                let has_ended = matches!(pushed.last(), Some(Pushed::Ended(_)));
                if tell.send(Told { stream, pushed }).await.is_err() || has_ended {
                    return Ok(());
                }
            }
            more = granted.changed() => {
                if more.is_err() {
                    return Ok(());
                }
                let now = *granted.borrow_and_update();
                within(deadline, grant(&mut sender, now - said)).await?;
                said = now;
            }
        }
    }
}

async fn grant(sender: &mut FrameSender, bytes: u64) -> Result<(), Refusal> {
    let body = encode_number(bytes).to_vec().into();
    sender.send(&Frame { kind: kind::CREDIT, body }).await.map_err(unreachable)
}

/// What is to come next on the stream.
struct Lane {
    ledger: u64,
    next: u64,
    lanes: u64,
}

impl Lane {
    fn new(tail: &Tail) -> Self {
        Self { ledger: tail.ledger, next: tail.from, lanes: tail.lanes.into() }
    }

    /// Takes a frame and those that have arrived behind it.
    fn take_all(&mut self, first: Option<Frame>, receiver: &mut FrameReceiver) -> Vec<Pushed> {
        let mut pushed = Vec::new();
        let mut frame = Ok(first);
        loop {
            let taken = match frame {
                Ok(Some(frame)) => self.take(&frame),
                Ok(None) if pushed.is_empty() => {
                    Err(Refusal::Unknown("the bookie ended the stream of pushes".to_owned()))
                }
                Ok(None) => return pushed,
                Err(error) => Err(unreachable(error)),
            };
            let is_last = taken.is_err() || pushed.len() + 1 == BATCH_MAX;
            pushed.push(taken.unwrap_or_else(Pushed::Ended));
            if is_last {
                return pushed;
            }
            frame = receiver.next_buffered();
        }
    }

    fn take(&mut self, frame: &Frame) -> Result<Pushed, Refusal> {
        match frame.kind {
            kind::ENTRY => {
                let corrupt = match Entry::decode(frame.body.clone()) {
                    Ok(entry) if entry.header().ledger.get() == self.ledger => {
                        self.expect(entry.id())?;
                        return Ok(Pushed::Entry(entry));
                    }
                    Ok(_) => "it is an entry of another ledger".to_owned(),
                    Err(error) => error.to_string(),
                };
                // A lane has an order, so it can only be the copy of its next entry.
                let entry = EntryId::new(self.next);
                self.expect(entry)?;
                Ok(Pushed::Missing(entry, Refusal::Corrupt(corrupt)))
            }
            kind::CONFIRMED => match decode_number(&frame.body).map(EntryId::new) {
                Some(confirmed) if confirmed <= EntryId::MAX => Ok(Pushed::Confirmed(confirmed)),
                _ => Err(Refusal::Corrupt("its last add confirmed is impossible".to_owned())),
            },
            kind::MISSING => {
                let Missing { entry, refused } = frame.decode().map_err(unreachable)?;
                self.expect(EntryId::new(entry))?;
                Ok(Pushed::Missing(EntryId::new(entry), Refusal::from_message(refused)))
            }
            _ => Err(refusal(frame)),
        }
    }

    /// Makes sure that an entry is the next of the lane.
    fn expect(&mut self, entry: EntryId) -> Result<(), Refusal> {
        if entry.get() != self.next {
            return Err(Refusal::Unknown(format!("spoke of entry {entry} out of turn")));
        }
        self.next = self.next.saturating_add(self.lanes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use inkfast_protocol::{EntryHeader, LedgerId};

    use super::*;

    fn pushed(ledger: u64, entry: u64) -> Vec<u8> {
        let header = EntryHeader {
            ledger: LedgerId::new(ledger).unwrap(),
            entry: EntryId::new(entry),
            last_add_confirmed: None,
            length: 0,
            written_at_ms: 0,
        };
        Entry::encode(header, b"payload").bytes().to_vec()
    }

    #[test]
    fn a_copy_that_is_corrupt_is_missing() {
        let tail = Tail { ledger: 7, from: 2, to: None, lanes: 3, lane: 2, credit: 0 };
        let mut damaged = pushed(7, 2);
        damaged[30] ^= 1;
        for body in [damaged, pushed(8, 2)] {
            let taken = Lane::new(&tail).take(&Frame { kind: kind::ENTRY, body: body.into() });
            let Ok(Pushed::Missing(entry, refusal)) = taken else { panic!("it is taken") };
            assert_eq!(entry, EntryId::new(2));
            assert!(matches!(refusal, Refusal::Corrupt(_)), "{refusal}");
        }
        let sound = Frame { kind: kind::ENTRY, body: pushed(7, 2).into() };
        let mut lane = Lane::new(&tail);
        assert!(matches!(lane.take(&sound), Ok(Pushed::Entry(_))));
        assert!(lane.take(&sound).is_err(), "out of turn");
    }
}
