//! The writer: numbers entries, counts acknowledgements, confirms in order, closes.

use std::collections::VecDeque;
use std::mem;

use crate::{
    BookieId, Entry, EntryHeader, EntryId, LedgerMetadata, MetadataVersion, PAYLOAD_BYTES_MAX,
    Places, Refusal, State, Tenure,
};

/// Appends to one open ledger.
///
/// Feed it with [`append`](Self::append), [`close`](Self::close) and `on_*`; after each call,
/// take actions until there is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    version: MetadataVersion,
    metadata: LedgerMetadata,
    places: Vec<Place>,
    /// The entries above the last add confirmed, without a gap. What was acknowledged is kept
    /// beyond Qa: an ensemble change takes acknowledgements back.
    pending: VecDeque<Pending>,
    last_add_confirmed: Option<EntryId>,
    confirmed_length: u64,
    phase: Phase,
    doubt: Doubt,
    actions: VecDeque<Action>,
}

/// Whether the metadata is being read because somebody may have taken the ledger over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Doubt {
    None,
    Asked,
    /// There was another reason meanwhile, so what is being read may be too old.
    AskAgain,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    tenure: Tenure,
    standing: Standing,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Standing {
    Live,
    Failed(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    entry: Entry,
    acknowledged: Places,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Writing,
    /// An append has failed: the writer can only close.
    Failed(WriteError),
    /// The close is with the metastore.
    Closing,
    /// The close did not win, or got no answer: the metadata will tell what is there.
    Settling,
    Closed,
}

/// What the writer wants to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Send an entry to the bookie at a place. Entries for one place go out in this order.
    Send {
        /// The place in the ensemble.
        place: usize,
        /// The tenure that its acknowledgement must carry.
        tenure: Tenure,
        /// What to send.
        entry: Entry,
    },
    /// All entries up to this one are acknowledged.
    Confirm(EntryId),
    /// Every append that is not confirmed has failed, and so will every later one.
    Fail(WriteError),
    /// Read the metadata, and report by [`Writer::on_metadata`].
    ReadMetadata,
    /// Replace the metadata if its version is still this one, and report by [`Writer::on_cas`].
    Cas {
        /// The version to be replaced.
        version: MetadataVersion,
        /// What to put there.
        metadata: LedgerMetadata,
    },
    /// The ledger is closed with this end. It is the last action.
    Closed {
        /// The last entry.
        last: Option<EntryId>,
    },
    /// The ledger could not be closed by its writer. It is the last action.
    NotClosed(WriteError),
}

/// Why a writer cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WriteError {
    /// Another client recovers the ledger, or has closed it.
    #[error("fenced: another client has taken the ledger over")]
    Fenced,
    /// Too few bookies of the ensemble take entries.
    #[error("not enough bookies: {}", list(.0))]
    NotEnoughBookies(Vec<(BookieId, Refusal)>),
    /// The metastore did not answer while the ledger was being closed. Whether it is closed is
    /// not known; a recovery settles it.
    #[error("the metastore did not answer, so it is not known whether the ledger is closed")]
    Unsettled,
    /// The ledger was deleted.
    #[error("the ledger was deleted")]
    Deleted,
    /// The writer was closed.
    #[error("the writer is closed")]
    Closed,
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`]. The writer goes on.
    #[error("the entry has {0} bytes, and the limit is {PAYLOAD_BYTES_MAX}")]
    TooLarge(usize),
}

/// How a compare-and-set ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CasOutcome {
    /// It took effect, and the metadata has this version now.
    Won(MetadataVersion),
    /// Another version stood there, and nothing happened.
    Lost,
    /// No answer came: it may have taken effect, or may still do so.
    Unknown,
}

impl Writer {
    /// Begins to write a ledger that was just created.
    pub fn new(version: MetadataVersion, metadata: LedgerMetadata) -> Self {
        let place = Place { tenure: Tenure::default(), standing: Standing::Live };
        Self {
            places: vec![place; metadata.replication.ensemble()],
            version,
            metadata,
            pending: VecDeque::new(),
            last_add_confirmed: None,
            confirmed_length: 0,
            phase: Phase::Writing,
            doubt: Doubt::None,
            actions: VecDeque::new(),
        }
    }

    /// Numbers an entry and sends it to its write set.
    pub fn append(&mut self, payload: &[u8], written_at_ms: u64) -> Result<EntryId, WriteError> {
        match &self.phase {
            Phase::Writing => {}
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Closing | Phase::Settling | Phase::Closed => return Err(WriteError::Closed),
        }
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(WriteError::TooLarge(payload.len()));
        }
        let newest = self.pending.back().map(|pending| pending.entry.header());
        let header = EntryHeader {
            ledger: self.metadata.ledger,
            entry: EntryId::after(newest.map_or(self.last_add_confirmed, |h| Some(h.entry))),
            last_add_confirmed: self.last_add_confirmed,
            length: newest.map_or(self.confirmed_length, |h| h.length) + payload.len() as u64,
            written_at_ms,
        };
        let entry = Entry::encode(header, payload);
        for place in self.metadata.replication.write_set(header.entry.get()) {
            let Place { tenure, standing } = &self.places[place];
            if *standing == Standing::Live {
                let send = Action::Send { place, tenure: *tenure, entry: entry.clone() };
                self.actions.push_back(send);
            }
        }
        self.pending.push_back(Pending { entry, acknowledged: Places::default() });
        Ok(header.entry)
    }

    /// Takes the acknowledgement of a run of entries that were sent to a place in a tenure.
    pub fn on_added(&mut self, place: usize, tenure: Tenure, first: EntryId, last: EntryId) {
        if self.phase != Phase::Writing || self.places[place].tenure != tenure {
            return;
        }
        let lowest = EntryId::after(self.last_add_confirmed);
        let skip = usize::try_from(first.get().saturating_sub(lowest.get())).unwrap_or(usize::MAX);
        for Pending { entry, acknowledged } in
            self.pending.iter_mut().skip(skip).take_while(|pending| pending.entry.id() <= last)
        {
            if self.metadata.replication.write_set(entry.id().get()).any(|p| p == place) {
                acknowledged.insert(place);
            }
        }
        self.confirm();
    }

    /// Takes a refusal of the bookie at a place, or a failure to reach it. The place is given up.
    pub fn on_refused(&mut self, place: usize, tenure: Tenure, refusal: Refusal) {
        let Place { tenure: of_now, standing } = &self.places[place];
        if self.phase != Phase::Writing || *of_now != tenure || *standing != Standing::Live {
            return;
        }
        let said_fenced = refusal == Refusal::Fenced;
        self.places[place].standing = Standing::Failed(refusal);
        if said_fenced || !self.is_writable() {
            self.doubt();
        }
    }

    /// Closes the ledger at the last add confirmed; what is not confirmed fails.
    pub fn close(&mut self) {
        if matches!(self.phase, Phase::Closing | Phase::Settling | Phase::Closed) {
            return;
        }
        if self.phase == Phase::Writing {
            self.pending.clear();
            self.actions.push_back(Action::Fail(WriteError::Closed));
        }
        self.cas_closed();
    }

    /// Takes the metadata that was asked for.
    pub fn on_metadata(&mut self, version: MetadataVersion, metadata: LedgerMetadata) {
        match (&self.phase, metadata.state) {
            (Phase::Writing, State::Open) if self.is_ours(&metadata) => self.still_ours(),
            (Phase::Writing, _) => self.fail(WriteError::Fenced),
            (Phase::Settling, State::Open) if self.is_ours(&metadata) => {
                // Re-replication has changed earlier fragments. And if it is the version that
                // we tried to replace, our attempt may still land, and so may be repeated.
                (self.version, self.metadata) = (version, metadata);
                self.cas_closed();
            }
            (Phase::Settling, state) if state == self.end() => self.closed(),
            (Phase::Settling, _) => self.not_closed(WriteError::Fenced),
            // Asked for before the close was: the outcome of its CAS says more.
            (Phase::Failed(_) | Phase::Closing | Phase::Closed, _) => {}
        }
    }

    /// Notes that the metadata could not be read. The writer goes on if the bookies allow it; a
    /// close ends without saying how.
    pub fn on_metadata_unavailable(&mut self) {
        match self.phase {
            Phase::Writing => {
                self.doubt = Doubt::None;
                self.check_quorum();
            }
            Phase::Settling => self.not_closed(WriteError::Unsettled),
            Phase::Failed(_) | Phase::Closing | Phase::Closed => {}
        }
    }

    /// Notes that the metadata that was asked for is not there any more.
    pub fn on_deleted(&mut self) {
        match self.phase {
            Phase::Writing => self.fail(WriteError::Deleted),
            Phase::Settling => self.not_closed(WriteError::Deleted),
            Phase::Failed(_) | Phase::Closing | Phase::Closed => {}
        }
    }

    /// Takes the outcome of a compare-and-set.
    pub fn on_cas(&mut self, outcome: CasOutcome) {
        match outcome {
            CasOutcome::Won(version) => {
                self.version = version;
                self.closed();
            }
            CasOutcome::Lost | CasOutcome::Unknown => {
                self.phase = Phase::Settling;
                self.actions.push_back(Action::ReadMetadata);
            }
        }
    }

    /// Returns the next thing to be done.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the highest entry that is acknowledged, as every lower one is.
    pub const fn last_add_confirmed(&self) -> Option<EntryId> {
        self.last_add_confirmed
    }

    /// Returns the ledger's metadata as the writer knows it.
    pub const fn metadata(&self) -> &LedgerMetadata {
        &self.metadata
    }

    /// Confirms from the lowest pending entry on, as far as all are written.
    fn confirm(&mut self) {
        let before = self.last_add_confirmed;
        while let Some(lowest) = self.pending.front() {
            let Pending { entry, acknowledged } = lowest;
            if !self.metadata.replication.is_written(entry.id().get(), *acknowledged) {
                break;
            }
            assert!(entry.id() == EntryId::after(self.last_add_confirmed), "confirmed a gap");
            self.last_add_confirmed = Some(entry.id());
            self.confirmed_length = entry.header().length;
            self.pending.pop_front();
        }
        if let Some(confirmed) =
            self.last_add_confirmed.filter(|_| self.last_add_confirmed > before)
        {
            self.actions.push_back(Action::Confirm(confirmed));
        }
    }

    /// Has the metadata read: somebody may have taken the ledger over.
    ///
    /// A bookie in limbo says "fenced" too, and one that cannot be reached may have been fenced;
    /// only the metadata knows. What is read must be read after the last reason to doubt.
    fn doubt(&mut self) {
        self.doubt = match self.doubt {
            Doubt::None => {
                self.actions.push_back(Action::ReadMetadata);
                Doubt::Asked
            }
            Doubt::Asked | Doubt::AskAgain => Doubt::AskAgain,
        };
    }

    /// Goes on as far as the bookies allow, since nobody has taken the ledger over.
    fn still_ours(&mut self) {
        if mem::replace(&mut self.doubt, Doubt::None) == Doubt::AskAgain {
            self.doubt();
        } else {
            self.check_quorum();
        }
    }

    /// Fails if some entry could not be written any more.
    fn check_quorum(&mut self) {
        if self.is_writable() {
            return;
        }
        let ensemble = self.metadata.last_fragment().ensemble.iter();
        let missing =
            ensemble.zip(&self.places).filter_map(|(bookie, place)| match &place.standing {
                Standing::Live => None,
                Standing::Failed(refusal) => Some((*bookie, refusal.clone())),
            });
        self.fail(WriteError::NotEnoughBookies(missing.collect()));
    }

    /// Says whether every entry can still be written on the places that are live.
    fn is_writable(&self) -> bool {
        let live = (0..self.places.len()).filter(|&p| self.places[p].standing == Standing::Live);
        self.metadata.replication.is_writable_on(live.collect())
    }

    fn fail(&mut self, error: WriteError) {
        self.pending.clear();
        self.phase = Phase::Failed(error.clone());
        self.actions.push_back(Action::Fail(error));
    }

    fn is_ours(&self, metadata: &LedgerMetadata) -> bool {
        metadata.writer == self.metadata.writer
    }

    const fn end(&self) -> State {
        State::Closed { last: self.last_add_confirmed, length: self.confirmed_length }
    }

    fn cas_closed(&mut self) {
        self.phase = Phase::Closing;
        let metadata = LedgerMetadata { state: self.end(), ..self.metadata.clone() };
        self.actions.push_back(Action::Cas { version: self.version, metadata });
    }

    fn not_closed(&mut self, error: WriteError) {
        self.phase = Phase::Closed;
        self.actions.push_back(Action::NotClosed(error));
    }

    fn closed(&mut self) {
        self.phase = Phase::Closed;
        self.metadata.state = self.end();
        self.actions.push_back(Action::Closed { last: self.last_add_confirmed });
    }
}

/// Names each bookie with what it said.
pub(crate) fn list(refusals: &[(BookieId, Refusal)]) -> String {
    let said = refusals.iter().map(|(bookie, refusal)| format!("bookie {bookie}: {refusal}"));
    said.collect::<Vec<_>>().join("; ")
}
