//! The service: what a bookie does with a stream that a client opens.
//!
//! The messages are those of [`inkfast_protocol::messages`].

use std::sync::Arc;

use bytes::Bytes;
use inkfast_protocol::gate::Adder;
use inkfast_protocol::messages::{
    Added, Fence, FragmentBrief, LedgerState, OpenAdds, Read, decode_tenure, kind,
};
use inkfast_protocol::{ENSEMBLE_MAX, Entry, EntryId, LedgerId, Refusal, Tenure};
use inkfast_wire::{Frame, FrameReceiver, FrameSender, Frames, Peer, Service, Stream};
use prost::Message;
use tokio::sync::mpsc;

use crate::log::{Place, ReadError};
use crate::store::{Add, OUTCOMES_MAX, Outcome, Store};

/// The most adds that are handed to the store at once, and the most outcomes that are answered
/// at once.
const BATCH_MAX: usize = 256;
/// The bytes of entries that one read takes from the disk before it sends them.
const READ_BYTES_MAX: usize = 1 << 20;

/// Serves the streams of all clients.
#[derive(Clone)]
pub(crate) struct BookieService {
    pub(crate) store: Store,
}

impl Service for BookieService {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        let served = match stream.receiver.next().await {
            Ok(Some(frame)) => match frame.kind {
                kind::OPEN_ADDS => self.serve_adds(&frame, stream).await,
                kind::READ => self.serve_reads(frame, stream).await,
                kind::FENCE => self.serve_fence(&frame, stream).await,
                other => {
                    refuse(&mut stream.sender, bad(&format!("no request has kind {other}"))).await
                }
            },
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            // Clients come and go; that is no fault of ours.
            tracing::debug!(peer = %peer.name.name, %error, "a stream has ended");
        }
    }
}

type Served = Result<(), inkfast_wire::Error>;

impl BookieService {
    async fn serve_fence(&self, request: &Frame, mut stream: Stream) -> Served {
        match self.fence(request).await {
            Ok(state) => {
                stream.sender.send(&Frame::message(kind::STATE, &state)).await?;
                stream.sender.finish();
                Ok(())
            }
            Err(refusal) => refuse(&mut stream.sender, refusal).await,
        }
    }

    async fn fence(&self, request: &Frame) -> Result<LedgerState, Refusal> {
        let request: Fence = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        if request.fence {
            self.store.fence(ledger).await?;
        }
        let state = self.store.state(ledger).await?;
        let last_add_confirmed = state.last_add_confirmed.map(EntryId::get);
        Ok(LedgerState { last_add_confirmed, fenced: state.fenced })
    }

    /// Answers read after read, each entry by itself and in order.
    async fn serve_reads(&self, first: Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let mut request = Some(first);
        while let Some(frame) = request {
            if frame.kind != kind::READ {
                return refuse(&mut sender, bad("only reads go on a stream of reads")).await;
            }
            match self.locate(&frame).await {
                Ok(places) => self.send_entries(places, &mut sender).await?,
                Err(refusal) => return refuse(&mut sender, refusal).await,
            }
            request = receiver.next().await?;
        }
        sender.finish();
        Ok(())
    }

    async fn locate(&self, request: &Frame) -> Result<Vec<Result<Place, Refusal>>, Refusal> {
        let request: Read = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        if request.fence {
            self.store.fence(ledger).await?;
        }
        let entries = request.entries.into_iter().map(EntryId::new).collect();
        self.store.locate(ledger, entries).await
    }

    async fn send_entries(
        &self,
        places: Vec<Result<Place, Refusal>>,
        sender: &mut FrameSender,
    ) -> Served {
        let mut places = places.into_iter().peekable();
        while places.peek().is_some() {
            let mut bytes = 0;
            let mut run: Vec<Result<Place, Refusal>> = Vec::new();
            while bytes < READ_BYTES_MAX
                && let Some(place) = places.next()
            {
                bytes += place.as_ref().map_or(0, |place| place.payload_bytes as usize);
                run.push(place);
            }
            let found = run.iter().filter_map(|place| place.as_ref().ok().copied()).collect();
            let mut read = self.store.reader().read_many(found).await.into_iter();
            let mut frames = Frames::default();
            for place in run {
                let entry = match place {
                    Ok(_) => read.next().map_or_else(|| Err(unread()), |read| read.map_err(said)),
                    Err(refusal) => Err(refusal),
                };
                match entry {
                    Ok(entry) => frames.push(kind::ENTRY, &entry),
                    Err(refusal) => {
                        frames.push(kind::REFUSED, &refusal.to_message().encode_to_vec().into());
                    }
                }
            }
            sender.send_encoded(&mut frames.take()).await?;
        }
        Ok(())
    }

    /// Takes adds and acknowledges them until the client ends the stream or one is refused.
    async fn serve_adds(&self, open: &Frame, stream: Stream) -> Served {
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
            Incoming { ledger, tenure: None, newest: None, sequence: 0, batch: Vec::new() };
        while let Some(frame) = receiver.next().await.map_err(lost)? {
            adds.take(frame)?;
            while adds.batch.len() < BATCH_MAX
                && let Some(frame) = receiver.next_buffered().map_err(lost)?
            {
                adds.take(frame)?;
            }
            if !adds.batch.is_empty() {
                let batch = std::mem::take(&mut adds.batch);
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
    batch: Vec<Add>,
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
                self.batch.push(Add { entry, sequence: self.sequence, tenure });
                self.sequence += 1;
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

async fn refuse(sender: &mut FrameSender, refusal: Refusal) -> Served {
    sender.send(&Frame::message(kind::REFUSED, &refusal.to_message())).await?;
    sender.finish();
    Ok(())
}

fn bad(why: &str) -> Refusal {
    Refusal::BadRequest(why.to_owned())
}

/// A copy that is there and cannot be read is not absent.
fn said(error: ReadError) -> Refusal {
    match error {
        ReadError::Corrupt { .. } => Refusal::Corrupt(error.to_string()),
        ReadError::Log(_) => Refusal::Unknown(error.to_string()),
    }
}

fn unread() -> Refusal {
    Refusal::Unknown("the copy was not read".to_owned())
}
