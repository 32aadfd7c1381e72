//! Streams of adds: one for all the ledgers that a client writes.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use inkfast_protocol::messages::{
    ADDERS_MAX, Added, AddsRefused, FragmentBrief, OpenAdds, decode_adder, decode_number, kind,
};
use inkfast_protocol::{ENSEMBLE_MAX, Entry, EntryId, LedgerId, Refusal, Run, gate};
use inkfast_wire::{Frame, FrameReceiver, FrameSender, Frames, Stream};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::{BookieService, Served, bad, refuse, send};
use crate::store::{Add, Batch, Outcome, Outcomes, Written};
use crate::stores::{Home, Stores};

/// The most entries that are handed to a store at once.
const BATCH_MAX: usize = 256;
/// The most bytes of entries that are handed to a store at once; a larger entry goes alone.
const BATCH_BYTES_MAX: usize = 256 << 10;
/// The most outcomes that are answered at once.
const ANSWERS_MAX: usize = 1024;
/// The most bytes of entries that wait on a stream until the homes of their ledgers are found; past
/// it the stream waits.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// How long a store that takes nothing holds up the other ledgers of a stream, whose own store may
/// be idle: less than a client waits for an add.
const PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 2000 });

impl BookieService {
    /// Takes adds and acknowledges them until the client ends the stream or says what makes no
    /// sense.
    pub(super) async fn serve_adds(&self, open: Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        // Each outcome holds room of its store.
        let (outcomes, happened) = mpsc::unbounded_channel();
        let mut adding = Adding::new(self.stores.clone(), outcomes);
        let taken = tokio::select! {
            taken = adding.take(open, &mut receiver) => taken,
            answered = acknowledge(happened, &mut sender) => return answered,
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

/// What comes in on one stream.
struct Adding {
    stores: Stores,
    adders: BTreeMap<u32, Adder>,
    /// The number above all adders that were opened.
    next: u32,
    /// Whose entries come.
    current: u32,
    /// What of them is not handed on yet.
    entries: Vec<Entry>,
    bytes: usize,
    /// The adders that have no home yet.
    opening: FuturesUnordered<BoxFuture<'static, (u32, Result<Home, Refusal>)>>,
    /// What they have sent meanwhile.
    waiting_bytes: usize,
    /// Until when the stores that have no room hold up this stream.
    patience: BTreeMap<usize, Instant>,
    outcomes: Outcomes,
}

/// Who adds to one ledger.
struct Adder {
    ledger: LedgerId,
    adder: Arc<gate::Adder>,
    /// None while it is sought.
    home: Option<Home>,
    waiting: Vec<Batch>,
    newest: Option<EntryId>,
    confirmed: Option<EntryId>,
    /// How many entries have come.
    sequence: u64,
    /// Nothing follows.
    closed: bool,
}

impl Adding {
    fn new(stores: Stores, outcomes: Outcomes) -> Self {
        Self {
            stores,
            adders: BTreeMap::new(),
            next: 0,
            current: 0,
            entries: Vec::new(),
            bytes: 0,
            opening: FuturesUnordered::new(),
            waiting_bytes: 0,
            patience: BTreeMap::new(),
            outcomes,
        }
    }

    /// Hands the adds to the stores, as many at a time as have arrived.
    async fn take(&mut self, open: Frame, receiver: &mut FrameReceiver) -> Result<(), Refusal> {
        let lost = |error: inkfast_wire::Error| bad(&error.to_string());
        let mut next = Some(open);
        loop {
            while let Some(frame) = next {
                self.on_frame(frame).await?;
                next = receiver.next_buffered().map_err(lost)?;
            }
            self.hand_on().await;
            next = tokio::select! {
                Some((number, home)) = self.opening.next() => {
                    self.on_home(number, home).await;
                    continue;
                }
                frame = receiver.next(), if self.waiting_bytes < WAITING_BYTES_MAX => {
                    match frame.map_err(lost)? {
                        Some(frame) => Some(frame),
                        None => return Ok(()),
                    }
                }
            };
        }
    }

    async fn on_frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        match frame.kind {
            kind::ENTRY => {
                if self.entries.len() >= BATCH_MAX
                    || (self.bytes + frame.body.len() > BATCH_BYTES_MAX && self.bytes > 0)
                {
                    self.hand_on().await;
                }
                let number = self.current;
                let Some(adder) = self.current()? else { return Ok(()) };
                match adder.accept(frame.body) {
                    Ok(entry) => {
                        self.bytes += entry.bytes().len();
                        self.entries.push(entry);
                    }
                    Err(refusal) => self.refuse(number, refusal),
                }
            }
            kind::CONFIRMED => {
                let confirmed = decode_number(&frame.body).map(EntryId::new);
                confirmed.ok_or_else(|| bad("a last add confirmed is too short"))?;
                if let Some(adder) = self.current()? {
                    // It may count after the adds that came behind it: they say no less.
                    adder.confirmed = adder.confirmed.max(confirmed);
                }
            }
            kind::ADDER => {
                self.hand_on().await;
                self.current = adder_of(&frame)?;
            }
            kind::OPEN_ADDS => {
                let open = frame.decode().map_err(|error| bad(&error.to_string()))?;
                self.open(&open).await?;
            }
            kind::CLOSE_ADDS => {
                self.hand_on().await;
                let number = adder_of(&frame)?;
                match self.adders.get_mut(&number) {
                    Some(adder) if adder.home.is_none() => adder.closed = true,
                    _ => drop(self.adders.remove(&number)),
                }
            }
            other => return Err(bad(&format!("no frame of kind {other} goes with adds"))),
        }
        Ok(())
    }

    /// Returns whose entries come; none if it was refused or closed, which it may not know yet.
    fn current(&mut self) -> Result<Option<&mut Adder>, Refusal> {
        if self.current >= self.next {
            return Err(bad("an adder was not opened"));
        }
        Ok(self.adders.get_mut(&self.current))
    }

    async fn open(&mut self, open: &OpenAdds) -> Result<(), Refusal> {
        let number = open.adder;
        if number < self.next || number == u32::MAX {
            return Err(bad("adders must have ascending numbers"));
        }
        if self.adders.len() >= ADDERS_MAX {
            return Err(bad(&format!("a stream may have {ADDERS_MAX} adders at a time")));
        }
        self.next = number + 1;
        let adder = match Adder::parse(open) {
            Ok(adder) => adder,
            Err(refusal) => {
                self.refuse(number, refusal);
                return Ok(());
            }
        };
        let (stores, ledger) = (self.stores.clone(), adder.ledger);
        self.adders.insert(number, adder);
        let mut home = async move { (number, stores.home(ledger).await) }.boxed();
        match (&mut home).now_or_never() {
            Some((number, home)) => self.on_home(number, home).await,
            None => self.opening.push(home),
        }
        Ok(())
    }

    /// Hands on what has waited for a home.
    async fn on_home(&mut self, number: u32, home: Result<Home, Refusal>) {
        let Some(adder) = self.adders.get_mut(&number) else { return };
        let waiting = mem::take(&mut adder.waiting);
        self.waiting_bytes -= waiting.iter().map(bytes_of).sum::<usize>();
        match home {
            Ok(home) => adder.home = Some(home),
            Err(refusal) => return self.refuse(number, refusal),
        }
        let closed = adder.closed;
        for batch in waiting {
            self.add(number, batch).await;
        }
        if closed {
            self.adders.remove(&number);
        }
    }

    /// Hands on what has come of the current adder.
    async fn hand_on(&mut self) {
        let number = self.current;
        let entries = mem::take(&mut self.entries);
        self.bytes = 0;
        let Some(adder) = self.adders.get_mut(&number) else { return };
        let Some(batch) = adder.batch(number, entries) else { return };
        if adder.home.is_none() {
            self.waiting_bytes += bytes_of(&batch);
            adder.waiting.push(batch);
        } else {
            self.add(number, batch).await;
        }
    }

    async fn add(&mut self, number: u32, batch: Batch) {
        if let Err(refusal) = self.add_at_home(number, batch).await {
            self.refuse(number, refusal);
        }
    }

    async fn add_at_home(&mut self, number: u32, batch: Batch) -> Result<(), Refusal> {
        let Some(adder) = self.adders.get(&number) else { return Ok(()) };
        let Adder { ledger, adder, home: Some(home), .. } = adder else { return Ok(()) };
        let mut adding = Box::pin(home.add(*ledger, adder, batch, &self.outcomes));
        let added = match (&mut adding).now_or_never() {
            Some(added) => added,
            None => {
                let until = self.patience.entry(home.number());
                let until = *until.or_insert_with(|| Instant::now() + PATIENCE);
                let late = "the disk does not keep up with the adds";
                let late = |_| Refusal::Unknown(late.to_owned());
                timeout_at(until, adding).await.map_err(late)?
            }
        };
        self.patience.remove(&home.number());
        added
    }

    /// Takes nothing more of an adder.
    fn refuse(&mut self, number: u32, refusal: Refusal) {
        if let Some(adder) = self.adders.remove(&number) {
            self.waiting_bytes -= adder.waiting.iter().map(bytes_of).sum::<usize>();
        }
        if self.current == number {
            self.entries.clear();
            self.bytes = 0;
        }
        // The stream may be gone.
        let _ = self.outcomes.send(Outcome::refused(number, refusal));
    }
}

impl Adder {
    fn parse(open: &OpenAdds) -> Result<Self, Refusal> {
        let (ledger, writer) = open.parse()?;
        let adder = match writer {
            None => gate::Adder::Recovery,
            Some(id) => {
                let fragment = open.fragment.clone().unwrap_or_default();
                let is_bookie = |id: &Vec<u8>| id.len() == 16;
                if fragment.ensemble.len() > ENSEMBLE_MAX
                    || !fragment.ensemble.iter().all(is_bookie)
                {
                    return Err(bad("the fragment's ensemble is not a list of bookies"));
                }
                gate::Adder::Writer { id, fragment: FragmentBrief::encode_to_vec(&fragment).into() }
            }
        };
        Ok(Self {
            ledger,
            adder: Arc::new(adder),
            home: None,
            waiting: Vec::new(),
            newest: None,
            confirmed: None,
            sequence: 0,
            closed: false,
        })
    }

    fn accept(&mut self, bytes: Bytes) -> Result<Entry, Refusal> {
        let entry = Entry::decode(bytes)
            .map_err(|error| Refusal::Corrupt(format!("as it arrived: {error}")))?;
        if entry.header().ledger != self.ledger {
            return Err(bad("the entry is of another ledger than its adder"));
        }
        // Acknowledged runs are of what lies between two ids.
        if Some(entry.id()) <= self.newest {
            return Err(bad("entries must be sent in ascending order"));
        }
        self.newest = Some(entry.id());
        Ok(entry)
    }

    /// Gives what is to be handed on, if there is anything.
    fn batch(&mut self, number: u32, entries: Vec<Entry>) -> Option<Batch> {
        let (count, confirmed) = (entries.len() as u64, self.confirmed.take());
        let sequence = self.sequence;
        self.sequence += count;
        let add = Run::new(entries).map(|run| Add { run, adder: number, sequence });
        (add.is_some() || confirmed.is_some()).then_some(Batch { add, confirmed })
    }
}

/// Answers what has become durable, in runs. What is not answered holds room that all streams need,
/// so a client has to read its answers.
async fn acknowledge(
    mut outcomes: mpsc::UnboundedReceiver<Outcome>,
    sender: &mut FrameSender,
) -> Served {
    let mut batch = Vec::with_capacity(ANSWERS_MAX);
    while outcomes.recv_many(&mut batch, ANSWERS_MAX).await > 0 {
        // Those of one adder stay in their order.
        batch.sort_by_key(|outcome| outcome.adder);
        let mut frames = Frames::default();
        for of_one in batch.chunk_by(|one, next| one.adder == next.adder) {
            answer(of_one, &mut frames);
        }
        send(sender, &mut frames).await?;
        batch.clear();
    }
    Ok(())
}

/// Answers the outcomes of one adder, up to the first that is a refusal.
fn answer(outcomes: &[Outcome], frames: &mut Frames) {
    let follows = |one: &Outcome, next: &Outcome| match (&one.result, &next.result) {
        (Ok(one), Ok(next)) => one.sequences.end == next.sequences.start,
        _ => false,
    };
    for run in outcomes.chunk_by(follows) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { return };
        let adder = first.adder;
        match (&first.result, &last.result) {
            (Ok(Written { entries: (first, _), .. }), Ok(Written { entries: (_, last), .. })) => {
                let added = Added { adder, first: *first, last: *last };
                frames.push(kind::ADDED, &Bytes::copy_from_slice(&added.encode()));
            }
            (Err(refusal), _) | (_, Err(refusal)) => {
                let refused = AddsRefused { adder, refused: refusal.to_message() };
                return frames.push(kind::ADDS_REFUSED, &refused.encode_to_vec().into());
            }
        }
    }
}

fn adder_of(frame: &Frame) -> Result<u32, Refusal> {
    decode_adder(&frame.body).ok_or_else(|| bad("the number of an adder is too short"))
}

fn bytes_of(batch: &Batch) -> usize {
    let entries = batch.add.iter().flat_map(|add| add.run.entries());
    entries.map(|entry| entry.bytes().len()).sum()
}
