//! Streams of adds: one for all the ledgers that a client writes.

use std::collections::BTreeMap;
use std::mem;
use std::pin::pin;
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
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, timeout_at};

use super::{BookieService, Served, bad, refuse, send};
use crate::store::{Add, Batch, Outcome, Outcomes, Written};
use crate::stores::{Home, Stores};

/// The most entries, and turns of adders, that are handed on at once.
pub(super) const LOT_MAX: usize = 512;
/// The most bytes of entries that are handed on at once; a larger entry goes alone.
const LOT_BYTES_MAX: usize = 256 << 10;
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
        // Each outcome holds room: of its store, or of the refusals.
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
pub(super) struct Adding {
    stores: Stores,
    adders: BTreeMap<u32, Adder>,
    /// The number above all adders that were opened.
    next: u32,
    /// Whose entries come.
    current: u32,
    /// What of them is in no lot yet.
    entries: Vec<Entry>,
    /// What is handed on next, to each store.
    pub(super) lots: BTreeMap<usize, Vec<Batch>>,
    /// How many entries and turns have come since lots were handed on, and how many bytes they are.
    come: usize,
    come_bytes: usize,
    /// Who is gone, but has something in a lot: until that is handed on its ledger may not get
    /// another home.
    leaving: Vec<Adder>,
    /// The adders that have no home yet.
    opening: FuturesUnordered<BoxFuture<'static, (u32, Result<Home, Refusal>)>>,
    /// What they have sent meanwhile.
    waiting_bytes: usize,
    /// Until when the stores that have no room hold up this stream.
    patience: BTreeMap<usize, Instant>,
    outcomes: Outcomes,
    /// For the refusals of adders that are not sent yet.
    refusals: Arc<Semaphore>,
}

/// Who adds to one ledger.
struct Adder {
    ledger: LedgerId,
    by: Arc<gate::Adder>,
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
    pub(super) fn new(stores: Stores, outcomes: Outcomes) -> Self {
        Self {
            stores,
            adders: BTreeMap::new(),
            next: 0,
            current: 0,
            entries: Vec::new(),
            lots: BTreeMap::new(),
            come: 0,
            come_bytes: 0,
            leaving: Vec::new(),
            opening: FuturesUnordered::new(),
            waiting_bytes: 0,
            patience: BTreeMap::new(),
            outcomes,
            refusals: Arc::new(Semaphore::new(ADDERS_MAX)),
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
            self.hand_on().await?;
            next = tokio::select! {
                Some((number, home)) = self.opening.next() => {
                    self.on_home(number, home).await?;
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

    pub(super) async fn on_frame(&mut self, frame: Frame) -> Result<(), Refusal> {
        match frame.kind {
            kind::ENTRY => {
                let bytes = frame.body.len();
                if self.come >= LOT_MAX
                    || (self.come > 0 && self.come_bytes + bytes > LOT_BYTES_MAX)
                {
                    self.hand_on().await?;
                }
                let number = self.current;
                let Some(adder) = self.current()? else { return Ok(()) };
                match adder.accept(frame.body) {
                    Ok(entry) => self.entries.push(entry),
                    Err(refusal) => self.refuse(number, refusal)?,
                }
                self.come += 1;
                self.come_bytes += bytes;
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
                self.end_turn().await?;
                self.current = adder_of(&frame)?;
            }
            kind::OPEN_ADDS => {
                let open = frame.decode().map_err(|error| bad(&error.to_string()))?;
                self.open(&open).await?;
            }
            kind::CLOSE_ADDS => {
                self.end_turn().await?;
                let number = adder_of(&frame)?;
                match self.adders.get_mut(&number) {
                    Some(adder) if adder.home.is_none() => adder.closed = true,
                    _ => self.leaving.extend(self.adders.remove(&number)),
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

    pub(super) async fn open(&mut self, open: &OpenAdds) -> Result<(), Refusal> {
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
            Err(refusal) => return self.refuse(number, refusal),
        };
        let (stores, ledger) = (self.stores.clone(), adder.ledger);
        self.adders.insert(number, adder);
        let mut home = async move { (number, stores.home(ledger).await) }.boxed();
        match (&mut home).now_or_never() {
            Some((number, home)) => self.on_home(number, home).await?,
            None => self.opening.push(home),
        }
        Ok(())
    }

    /// Hands on what has waited for a home.
    async fn on_home(&mut self, number: u32, home: Result<Home, Refusal>) -> Result<(), Refusal> {
        let Some(adder) = self.adders.get_mut(&number) else { return Ok(()) };
        let waiting = mem::take(&mut adder.waiting);
        self.waiting_bytes -= waiting.iter().map(bytes_of).sum::<usize>();
        match home {
            Ok(home) => adder.home = Some(home),
            Err(refusal) => return self.refuse(number, refusal),
        }
        let closed = adder.closed;
        for batch in waiting {
            self.put(batch)?;
            self.hand_lots_on().await?;
        }
        if closed {
            self.adders.remove(&number);
        }
        Ok(())
    }

    /// Gathers what has come of the current adder. Many turns without an entry are handed on too.
    async fn end_turn(&mut self) -> Result<(), Refusal> {
        self.gather()?;
        self.come += 1;
        if self.come >= LOT_MAX { self.hand_on().await } else { Ok(()) }
    }

    /// Hands on what has come.
    async fn hand_on(&mut self) -> Result<(), Refusal> {
        self.gather()?;
        self.hand_lots_on().await?;
        (self.come, self.come_bytes) = (0, 0);
        Ok(())
    }

    /// Puts what has come of the current adder into a lot.
    fn gather(&mut self) -> Result<(), Refusal> {
        let Some(adder) = self.adders.get_mut(&self.current) else { return Ok(()) };
        match adder.batch(self.current, &mut self.entries) {
            Some(batch) => self.put(batch),
            None => Ok(()),
        }
    }

    /// Puts a batch into the lot for its store, or lets it wait until that is known.
    fn put(&mut self, batch: Batch) -> Result<(), Refusal> {
        let Some(adder) = self.adders.get_mut(&batch.adder) else { return Ok(()) };
        let Some(home) = &adder.home else {
            self.waiting_bytes += bytes_of(&batch);
            adder.waiting.push(batch);
            return Ok(());
        };
        if batch.add.is_some()
            && let Err(refusal) = home.let_in(&adder.by)
        {
            return self.refuse(batch.adder, refusal);
        }
        self.lots.entry(home.number()).or_default().push(batch);
        Ok(())
    }

    async fn hand_lots_on(&mut self) -> Result<(), Refusal> {
        while let Some((store, mut lot)) = self.lots.pop_first() {
            if let Err(refusal) = self.add(store, &mut lot).await {
                for Batch { adder, .. } in lot {
                    // One that has left does not wait, and one hears it once.
                    if self.adders.contains_key(&adder) {
                        self.refuse(adder, refusal.clone())?;
                    }
                }
            }
        }
        self.leaving.clear();
        Ok(())
    }

    async fn add(&mut self, store: usize, lot: &mut Vec<Batch>) -> Result<(), Refusal> {
        let mut adding = pin!(self.stores.store(store).add(lot, &self.outcomes));
        let added = match adding.as_mut().now_or_never() {
            Some(added) => added,
            None => {
                let until = self.patience.entry(store);
                let until = *until.or_insert_with(|| Instant::now() + PATIENCE);
                let late = "the disk does not keep up with the adds";
                let late = |_| Refusal::Unknown(late.to_owned());
                timeout_at(until, adding).await.map_err(late)?
            }
        };
        self.patience.remove(&store);
        added
    }

    /// Takes nothing more of an adder.
    fn refuse(&mut self, number: u32, refusal: Refusal) -> Result<(), Refusal> {
        if let Some(adder) = self.adders.remove(&number) {
            self.waiting_bytes -= adder.waiting.iter().map(bytes_of).sum::<usize>();
            self.leaving.push(adder);
        }
        if self.current == number {
            self.entries.clear();
        }
        let room = Arc::clone(&self.refusals).try_acquire_owned();
        let room = room.map_err(|_| bad("refusals of adders must be read"))?;
        // The stream may be gone.
        let _ = self.outcomes.send(Outcome::refused(number, refusal, Arc::new(room)));
        Ok(())
    }
}

impl Adder {
    fn parse(open: &OpenAdds) -> Result<Self, Refusal> {
        let (ledger, writer) = open.parse()?;
        let by = match writer {
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
            by: Arc::new(by),
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

    /// Gives what is to be handed on with these entries, if there is anything.
    fn batch(&mut self, number: u32, entries: &mut Vec<Entry>) -> Option<Batch> {
        let (count, confirmed) = (entries.len() as u64, self.confirmed.take());
        let sequence = self.sequence;
        self.sequence += count;
        let add = Run::new(entries.drain(..)).map(|run| Add { run, sequence });
        let (ledger, by) = (self.ledger, Arc::clone(&self.by));
        let batch = || Batch { ledger, by, adder: number, add, confirmed };
        (count > 0 || confirmed.is_some()).then(batch)
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
