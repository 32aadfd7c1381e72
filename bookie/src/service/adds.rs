//! Streams of adds.

use std::sync::Arc;

use bytes::Bytes;
use inkfast_protocol::gate::Adder;
use inkfast_protocol::messages::{
    Added, FragmentBrief, OpenAdds, decode_number, decode_tenure, kind,
};
use inkfast_protocol::{ENSEMBLE_MAX, Entry, EntryId, LedgerId, Refusal, Run, Tenure};
use inkfast_wire::{Frame, FrameReceiver, FrameSender, Frames, Stream};
use prost::Message;
use tokio::sync::mpsc;

use super::{BookieService, Served, bad, refuse, send};
use crate::store::{Add, Batch, OUTCOMES_MAX, Outcome};
use crate::stores::Home;

/// The most entries that are handed to the store at once, and the most outcomes that are answered
/// at once.
const BATCH_MAX: usize = 256;
/// The most bytes of entries that are handed to the store at once; a larger entry goes alone.
const BATCH_BYTES_MAX: usize = 256 << 10;

impl BookieService {
    /// Takes adds and acknowledges them until the client ends the stream or one is refused.
    pub(super) async fn serve_adds(&self, open: &Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let (ledger, adder) = match parse_open(open) {
            Ok(parsed) => parsed,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        let home = match self.stores.home(ledger).await {
            Ok(home) => home,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        let (outcomes, happened) = mpsc::channel(OUTCOMES_MAX);
        let taken = tokio::select! {
            taken = take_adds(&home, (ledger, &adder), &mut receiver, outcomes) => taken,
            answered = acknowledge(happened, &mut sender) => answered?,
        };
        match taken {
            Ok(()) => {
                sender.finish();
                Ok(())
            }
            Err(refusal) => refuse(&mut sender, refusal).await,
        }
    }
}

/// Hands the adds of a stream to the store, as many at a time as have arrived.
async fn take_adds(
    home: &Home,
    (ledger, adder): (LedgerId, &Arc<Adder>),
    receiver: &mut FrameReceiver,
    outcomes: mpsc::Sender<Outcome>,
) -> Result<(), Refusal> {
    let lost = |error: inkfast_wire::Error| bad(&error.to_string());
    let mut adds = Incoming::new(ledger);
    while let Some(frame) = receiver.next().await.map_err(lost)? {
        let mut next = Some(frame);
        while let Some(frame) = next {
            if adds.has_to_go_before(&frame)
                && let Some(batch) = adds.batch()
            {
                home.add(ledger, adder, batch, &outcomes).await?;
            }
            adds.take(frame)?;
            next = receiver.next_buffered().map_err(lost)?;
        }
        if let Some(batch) = adds.batch() {
            home.add(ledger, adder, batch, &outcomes).await?;
        }
    }
    Ok(())
}

/// The adds that come in on one stream.
struct Incoming {
    ledger: LedgerId,
    tenure: Option<Tenure>,
    newest: Option<EntryId>,
    /// What is not handed on yet: all of one tenure.
    entries: Vec<Entry>,
    bytes: usize,
    confirmed: Option<EntryId>,
    /// How many entries were handed on.
    sequence: u64,
}

impl Incoming {
    const fn new(ledger: LedgerId) -> Self {
        Self {
            ledger,
            tenure: None,
            newest: None,
            entries: Vec::new(),
            bytes: 0,
            confirmed: None,
            sequence: 0,
        }
    }

    /// Whether what has come has to be handed on before a frame is taken.
    fn has_to_go_before(&self, frame: &Frame) -> bool {
        let bytes = self.bytes + frame.body.len();
        frame.kind == kind::TENURE
            || self.entries.len() >= BATCH_MAX
            || (bytes > BATCH_BYTES_MAX && self.bytes > 0)
    }

    fn take(&mut self, frame: Frame) -> Result<(), Refusal> {
        match frame.kind {
            kind::TENURE => {
                let tenure =
                    decode_tenure(&frame.body).ok_or_else(|| bad("a tenure is too short"))?;
                // What is sent again to a new tenure may begin lower than what was sent before.
                (self.tenure, self.newest) = (Some(tenure), None);
            }
            kind::ENTRY => {
                if self.tenure.is_none() {
                    return Err(bad("an entry came before its tenure"));
                }
                let entry = Entry::decode(frame.body)
                    .map_err(|error| Refusal::Corrupt(format!("as it arrived: {error}")))?;
                if entry.header().ledger != self.ledger {
                    return Err(bad("the entry is of another ledger than the stream"));
                }
                // Acknowledged runs are of what lies between two ids.
                if Some(entry.id()) <= self.newest {
                    return Err(bad("entries must be sent in ascending order"));
                }
                self.newest = Some(entry.id());
                self.bytes += entry.bytes().len();
                self.entries.push(entry);
            }
            kind::CONFIRMED => {
                let confirmed = decode_number(&frame.body)
                    .ok_or_else(|| bad("a last add confirmed is too short"))?;
                // It may count after the adds that came behind it: they say no less.
                self.confirmed = self.confirmed.max(Some(EntryId::new(confirmed)));
            }
            other => return Err(bad(&format!("no frame of kind {other} goes with adds"))),
        }
        Ok(())
    }

    /// Gives what is to be handed on, if there is anything.
    fn batch(&mut self) -> Option<Batch> {
        let entries = std::mem::take(&mut self.entries);
        let (count, confirmed) = (entries.len() as u64, self.confirmed.take());
        self.bytes = 0;
        let add = Run::new(entries).zip(self.tenure).map(|(run, tenure)| {
            let sequence = self.sequence;
            self.sequence += count;
            Add { run, sequence, tenure }
        });
        (add.is_some() || confirmed.is_some()).then_some(Batch { add, confirmed })
    }
}

/// Answers what has become durable, in runs. Ends when an add is refused, with the refusal. What is
/// not answered holds room that all streams need, so a client has to read its answers.
async fn acknowledge(
    mut outcomes: mpsc::Receiver<Outcome>,
    sender: &mut FrameSender,
) -> Result<Result<(), Refusal>, inkfast_wire::Error> {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while outcomes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut frames = Frames::default();
        let refused = batch.iter().find_map(|outcome| outcome.result.clone().err());
        let durable: Vec<_> = batch.iter().filter(|outcome| outcome.result.is_ok()).collect();
        let follows = |a: &&Outcome, b: &&Outcome| {
            a.sequences.end == b.sequences.start && a.tenure == b.tenure
        };
        for run in durable.chunk_by(follows) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let (first, last, tenure) = (first.entries.0, last.entries.1, first.tenure);
                let added = Added { tenure, first, last };
                frames.push(kind::ADDED, &Bytes::copy_from_slice(&added.encode()));
            }
        }
        send(sender, &mut frames).await?;
        if let Some(refusal) = refused {
            return Ok(Err(refusal));
        }
        batch.clear();
    }
    Ok(Ok(()))
}

fn parse_open(open: &Frame) -> Result<(LedgerId, Arc<Adder>), Refusal> {
    let open: OpenAdds = open.decode().map_err(|error| bad(&error.to_string()))?;
    let (ledger, writer) = open.parse()?;
    let Some(id) = writer else { return Ok((ledger, Arc::new(Adder::Recovery))) };
    let fragment = open.fragment.unwrap_or_default();
    if fragment.ensemble.len() > ENSEMBLE_MAX || fragment.ensemble.iter().any(|id| id.len() != 16) {
        return Err(bad("the fragment's ensemble is not a list of bookies"));
    }
    let fragment = FragmentBrief::encode_to_vec(&fragment).into();
    Ok((ledger, Arc::new(Adder::Writer { id, fragment })))
}
