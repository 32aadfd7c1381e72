//! Streams of adds.

use std::sync::Arc;

use bytes::Bytes;
use inkfast_protocol::gate::Adder;
use inkfast_protocol::messages::{
    Added, FragmentBrief, OpenAdds, decode_number, decode_tenure, kind,
};
use inkfast_protocol::{ENSEMBLE_MAX, Entry, EntryId, LedgerId, Refusal, Tenure};
use inkfast_wire::{Frame, FrameReceiver, FrameSender, Frames, Stream};
use prost::Message;
use tokio::sync::mpsc;

use super::{BookieService, Served, bad, refuse};
use crate::store::{Add, Batch, OUTCOMES_MAX, Outcome};

/// The most adds that are handed to the store at once, and the most outcomes that are answered
/// at once.
const BATCH_MAX: usize = 256;

impl BookieService {
    /// Takes adds and acknowledges them until the client ends the stream or one is refused.
    pub(super) async fn serve_adds(&self, open: &Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let (ledger, adder) = match parse_open(open) {
            Ok(parsed) => parsed,
            Err(refusal) => return refuse(&mut sender, refusal).await,
        };
        let (outcomes, happened) = mpsc::channel(OUTCOMES_MAX);
        let taken = tokio::select! {
            taken = self.take_adds(ledger, &adder, &mut receiver, outcomes) => taken,
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

    /// Hands the adds of a stream to the store, as many at a time as have arrived.
    async fn take_adds(
        &self,
        ledger: LedgerId,
        adder: &Arc<Adder>,
        receiver: &mut FrameReceiver,
        outcomes: mpsc::Sender<Outcome>,
    ) -> Result<(), Refusal> {
        let lost = |error: inkfast_wire::Error| bad(&error.to_string());
        let mut adds =
            Incoming { ledger, tenure: None, newest: None, sequence: 0, batch: Batch::default() };
        while let Some(frame) = receiver.next().await.map_err(lost)? {
            adds.take(frame)?;
            while adds.batch.adds.len() < BATCH_MAX
                && let Some(frame) = receiver.next_buffered().map_err(lost)?
            {
                adds.take(frame)?;
            }
            let batch = std::mem::take(&mut adds.batch);
            if !batch.adds.is_empty() || batch.confirmed.is_some() {
                self.store.add(ledger, adder, batch, &outcomes).await?;
            }
        }
        Ok(())
    }
}

/// The adds that come in on one stream.
struct Incoming {
    ledger: LedgerId,
    tenure: Option<Tenure>,
    newest: Option<EntryId>,
    sequence: u64,
    batch: Batch,
}

impl Incoming {
    fn take(&mut self, frame: Frame) -> Result<(), Refusal> {
        match frame.kind {
            kind::TENURE => {
                let tenure =
                    decode_tenure(&frame.body).ok_or_else(|| bad("a tenure is too short"))?;
                // What is sent again to a new tenure may begin lower than what was sent before.
                (self.tenure, self.newest) = (Some(tenure), None);
            }
            kind::ENTRY => {
                let tenure = self.tenure.ok_or_else(|| bad("an entry came before its tenure"))?;
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
                self.batch.adds.push(Add { entry, sequence: self.sequence, tenure });
                self.sequence += 1;
            }
            kind::CONFIRMED => {
                let confirmed = decode_number(&frame.body)
                    .ok_or_else(|| bad("a last add confirmed is too short"))?;
                // It may count after the adds that came behind it: they say no less.
                self.batch.confirmed = self.batch.confirmed.max(Some(EntryId::new(confirmed)));
            }
            other => return Err(bad(&format!("no frame of kind {other} goes with adds"))),
        }
        Ok(())
    }
}

/// Answers what has become durable, in runs. Ends when an add is refused, with the refusal.
async fn acknowledge(
    mut outcomes: mpsc::Receiver<Outcome>,
    sender: &mut FrameSender,
) -> Result<Result<(), Refusal>, inkfast_wire::Error> {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    while outcomes.recv_many(&mut batch, BATCH_MAX).await > 0 {
        let mut frames = Frames::default();
        let refused = batch.iter().find_map(|outcome| outcome.result.clone().err());
        let durable: Vec<_> = batch.iter().filter(|outcome| outcome.result.is_ok()).collect();
        let follows =
            |a: &&Outcome, b: &&Outcome| a.sequence + 1 == b.sequence && a.tenure == b.tenure;
        for run in durable.chunk_by(follows) {
            if let (Some(first), Some(last)) = (run.first(), run.last()) {
                let added = Added { tenure: first.tenure, first: first.entry, last: last.entry };
                frames.push(kind::ADDED, &Bytes::copy_from_slice(&added.encode()));
            }
        }
        sender.send_encoded(&mut frames.take()).await?;
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
