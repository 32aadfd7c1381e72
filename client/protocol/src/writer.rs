//! The writer: numbers entries, counts acknowledgements, confirms in order, changes the ensemble
//! when a bookie fails, closes.

use std::collections::{BTreeSet, VecDeque};

use bytes::BytesMut;

use crate::{
    BookieId, ENTRY_HEADER_BYTES, Entry, EntryHeader, EntryId, LedgerMetadata, MetadataVersion,
    PAYLOAD_BYTES_MAX, Places, Refusal, State, Tenure,
};

use change::Change;

pub(crate) use actions::list;
pub use actions::{Action, CasOutcome, WriteError};

mod actions;
mod change;

/// How many bytes are set aside at a time for the entries to come, while some are in flight.
const BUFFER_BYTES: usize = 32 << 10;

/// Appends to one open ledger.
///
/// Feed it with [`append`](Self::append), [`close`](Self::close) and `on_*`; after each call,
/// take actions until there is none. It asks the metastore one question at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    /// The newest metadata that is known to have been there while the ledger was ours.
    version: MetadataVersion,
    metadata: LedgerMetadata,
    places: Vec<Place>,
    /// The entries above the last add confirmed, without a gap. What was acknowledged is kept
    /// beyond Qa: an ensemble change takes acknowledgements back.
    pending: VecDeque<Pending>,
    /// Empty memory for the next entries; none while nothing is pending.
    buffer: BytesMut,
    last_add_confirmed: Option<EntryId>,
    confirmed_length: u64,
    /// The last add confirmed that the bookies were told.
    told: Option<EntryId>,
    phase: Phase,
    /// The ensemble change whose outcome is not known.
    change: Option<Change>,
    /// Bookies are being sought for the places that have failed.
    choosing: bool,
    /// Why the ensemble cannot be changed any more: the metadata is full.
    full: Option<String>,
    /// The bookies that will never take entries of this ledger.
    refused: BTreeSet<BookieId>,
    /// What the metastore was asked and has not answered.
    asked: Option<Question>,
    /// Somebody may have taken the ledger over: the metadata must be read after this was set.
    doubt: bool,
    /// A compare-and-set did not win, so the metadata must be read before the next.
    unsettled: bool,
    /// The last question got no answer.
    metastore_away: bool,
    /// The appends have waited for too long.
    overdue: bool,
    actions: VecDeque<Action>,
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
    /// The close is with the metastore, or will be when the question before it is answered.
    Closing,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Question {
    Read,
    Change,
    Close,
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
            buffer: BytesMut::new(),
            last_add_confirmed: None,
            confirmed_length: 0,
            told: None,
            phase: Phase::Writing,
            change: None,
            choosing: false,
            full: None,
            refused: BTreeSet::new(),
            asked: None,
            doubt: false,
            unsettled: false,
            metastore_away: false,
            overdue: false,
            actions: VecDeque::new(),
        }
    }

    /// Numbers an entry and sends it to its write set.
    pub fn append(&mut self, payload: &[u8], written_at_ms: u64) -> Result<EntryId, WriteError> {
        match &self.phase {
            Phase::Writing => {}
            Phase::Failed(error) => return Err(error.clone()),
            Phase::Closing | Phase::Closed => return Err(WriteError::Closed),
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
        self.reserve(ENTRY_HEADER_BYTES + payload.len());
        let entry = Entry::encode_in(&mut self.buffer, header, payload);
        for place in self.metadata.replication.write_set(header.entry.get()) {
            self.send(place, &entry);
        }
        self.told = self.told.max(self.last_add_confirmed);
        self.pending.push_back(Pending { entry, acknowledged: Places::default() });
        Ok(header.entry)
    }

    /// Takes the acknowledgement of a run of entries that were sent to a place in a tenure.
    pub fn on_added(&mut self, place: usize, tenure: Tenure, first: EntryId, last: EntryId) {
        let counts = self.places[place].tenure == tenure && !self.is_being_replaced(place);
        if self.phase != Phase::Writing || !counts {
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

    /// Takes a refusal of the bookie at a place, or a failure to reach it. The place has failed
    /// until there is a bookie for it.
    pub fn on_refused(&mut self, place: usize, tenure: Tenure, refusal: Refusal) {
        let Place { tenure: of_now, standing } = &self.places[place];
        if self.phase != Phase::Writing || *of_now != tenure || *standing != Standing::Live {
            return;
        }
        let taken_over = matches!(refusal, Refusal::Fenced | Refusal::Deleted);
        if !matches!(refusal, Refusal::Unknown(_) | Refusal::ReadOnly(_)) {
            self.refused.insert(self.metadata.last_fragment().ensemble[place]);
        }
        self.places[place].standing = Standing::Failed(refusal);
        // A bookie in limbo says "fenced" too, and one that cannot be reached may have been fenced:
        // only the metadata knows.
        let live = (0..self.places.len()).filter(|&p| self.places[p].standing == Standing::Live);
        self.doubt |= taken_over || !self.metadata.replication.is_writable_on(live.collect());
        self.go_on();
    }

    /// Notes that nothing was appended for a while: the bookies are told the last add confirmed,
    /// which no entry may tell them soon.
    pub fn on_idle(&mut self) {
        let Some(confirmed) = self.last_add_confirmed.filter(|_| self.is_untold()) else { return };
        for place in 0..self.places.len() {
            if self.places[place].standing == Standing::Live {
                let tenure = self.places[place].tenure;
                self.actions.push_back(Action::Tell { place, tenure, confirmed });
            }
        }
        self.told = Some(confirmed);
    }

    /// Notes that nothing was confirmed for as long as appends are to wait. They fail, unless the
    /// metadata tells that the ledger was taken over, or a confirmation comes first; told so again,
    /// the writer does not wait for the metadata.
    pub fn on_overdue(&mut self) {
        if self.phase != Phase::Writing || self.pending.is_empty() {
            return;
        }
        if self.metastore_away || self.overdue {
            return self.give_up();
        }
        (self.overdue, self.doubt) = (true, true);
        self.go_on();
    }

    /// Closes the ledger at the last add confirmed; what is not confirmed fails.
    pub fn close(&mut self) {
        match self.phase {
            Phase::Closing | Phase::Closed => return,
            Phase::Writing => self.fail(WriteError::Closed),
            Phase::Failed(_) => {}
        }
        self.phase = Phase::Closing;
        self.go_on();
    }

    /// Takes the metadata that was asked for.
    pub fn on_metadata(&mut self, version: MetadataVersion, metadata: LedgerMetadata) {
        if !self.answered(Question::Read) {
            return;
        }
        let state = metadata.state;
        let ours = metadata.writer == self.metadata.writer
            && state == State::Open
            && self.learn(version, metadata);
        match self.phase {
            Phase::Writing if !ours => self.fail(WriteError::Fenced),
            Phase::Writing if self.overdue && !self.doubt => self.give_up(),
            Phase::Closing if state == self.end() => self.closed(),
            Phase::Closing if !ours => self.not_closed(WriteError::Fenced),
            Phase::Writing | Phase::Closing | Phase::Failed(_) | Phase::Closed => {}
        }
        self.go_on();
    }

    /// Notes that the metadata could not be read. The writer goes on as far as the bookies allow,
    /// and asks again; a close ends without saying how.
    pub fn on_metadata_unavailable(&mut self) {
        if !self.answered(Question::Read) {
            return;
        }
        self.metastore_away = true;
        match self.phase {
            Phase::Writing if self.overdue => return self.give_up(),
            Phase::Writing => self.doubt = true,
            Phase::Closing if self.unsettled => return self.not_closed(WriteError::Unsettled),
            Phase::Closing | Phase::Failed(_) | Phase::Closed => {}
        }
        self.go_on();
    }

    /// Notes that the metadata that was asked for is not there any more.
    pub fn on_deleted(&mut self) {
        if !self.answered(Question::Read) {
            return;
        }
        match self.phase {
            Phase::Writing => self.fail(WriteError::Deleted),
            Phase::Closing => self.not_closed(WriteError::Deleted),
            Phase::Failed(_) | Phase::Closed => {}
        }
    }

    /// Takes the outcome of a compare-and-set.
    pub fn on_cas(&mut self, outcome: CasOutcome) {
        let Some(question @ (Question::Change | Question::Close)) = self.asked else { return };
        self.answered(question);
        match (outcome, question) {
            (CasOutcome::Won(version), Question::Close) => {
                self.version = version;
                return self.closed();
            }
            (CasOutcome::Won(version), _) => self.change_won(version),
            (CasOutcome::Lost, _) => self.unsettled = true,
            (CasOutcome::Unknown, _) => (self.unsettled, self.metastore_away) = (true, true),
        }
        self.go_on();
    }

    /// Notes that what the metastore was asked can never be done, and why. Without a change of the
    /// ensemble the writer goes on as far as the bookies allow.
    pub fn on_impossible(&mut self, why: String) {
        let Some(question) = self.asked else { return };
        self.answered(question);
        match (&self.phase, question) {
            (Phase::Writing, Question::Read) => self.fail(WriteError::NotStored(why)),
            (Phase::Closing, Question::Read | Question::Close) => {
                self.not_closed(WriteError::NotStored(why));
            }
            _ => (self.change, self.full, self.choosing) = (None, Some(why), false),
        }
        self.go_on();
    }

    /// Returns the next thing to be done.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the highest entry that is acknowledged, as every lower one is.
    pub const fn last_add_confirmed(&self) -> Option<EntryId> {
        self.last_add_confirmed
    }

    /// Says whether the bookies have not been told the last add confirmed.
    pub fn is_untold(&self) -> bool {
        self.phase == Phase::Writing && self.last_add_confirmed > self.told
    }

    /// Returns the ledger's metadata as the writer knows it. The places of its actions are of the
    /// last ensemble.
    pub const fn metadata(&self) -> &LedgerMetadata {
        &self.metadata
    }

    /// Makes sure that the buffer has so many bytes.
    fn reserve(&mut self, bytes: usize) {
        if self.buffer.capacity() < bytes {
            let alone = self.pending.is_empty() || bytes > BUFFER_BYTES / 4;
            self.buffer = BytesMut::with_capacity(if alone { bytes } else { BUFFER_BYTES });
        }
    }

    /// Sends an entry to a place, if a bookie is there that takes it.
    fn send(&mut self, place: usize, entry: &Entry) {
        let Place { tenure, standing } = &self.places[place];
        if *standing == Standing::Live {
            let send = Action::Send { place, tenure: *tenure, entry: entry.clone() };
            self.actions.push_back(send);
        }
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
            self.overdue = false;
            self.actions.push_back(Action::Confirm(confirmed));
            if self.pending.is_empty() {
                self.buffer = BytesMut::new();
            }
        }
    }

    /// Asks for what is needed next, unless a question is open.
    fn go_on(&mut self) {
        self.choose();
        if self.asked.is_some() {
            return;
        }
        let question = match self.phase {
            Phase::Writing if self.doubt || self.unsettled => Question::Read,
            Phase::Writing if self.change.is_some() => Question::Change,
            Phase::Closing if self.unsettled => Question::Read,
            Phase::Closing => Question::Close,
            Phase::Writing | Phase::Failed(_) | Phase::Closed => return,
        };
        self.asked = Some(question);
        let action = match question {
            Question::Read => {
                self.doubt = false;
                Action::ReadMetadata
            }
            Question::Change => self.cas(self.changed()),
            Question::Close => {
                self.cas(LedgerMetadata { state: self.end(), ..self.metadata.clone() })
            }
        };
        self.actions.push_back(action);
    }

    const fn cas(&self, metadata: LedgerMetadata) -> Action {
        Action::Cas { version: self.version, metadata }
    }

    /// Closes the question that is open; says whether it was this one.
    fn answered(&mut self, question: Question) -> bool {
        let answered = self.asked == Some(question);
        if answered {
            (self.asked, self.metastore_away) = (None, false);
        }
        answered
    }

    /// Fails because too few bookies took entries for too long.
    fn give_up(&mut self) {
        let ensemble = self.metadata.last_fragment().ensemble.iter();
        let failed = ensemble.zip(&self.places).filter_map(|(bookie, place)| {
            let Standing::Failed(refusal) = &place.standing else { return None };
            Some((*bookie, refusal.clone()))
        });
        let failed = failed.collect();
        self.fail(match (&self.change, &self.full) {
            (Some(_), _) => WriteError::NotReplaced(failed),
            (None, Some(why)) => WriteError::NotStored(why.clone()),
            (None, None) => WriteError::NotEnoughBookies(failed),
        });
    }

    fn fail(&mut self, error: WriteError) {
        self.pending.clear();
        self.buffer = BytesMut::new();
        self.phase = Phase::Failed(error.clone());
        self.actions.push_back(Action::Fail(error));
    }

    const fn end(&self) -> State {
        State::Closed { last: self.last_add_confirmed, length: self.confirmed_length }
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
