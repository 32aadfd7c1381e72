//! Recovery: closes the ledger of a writer that is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;

use crate::writer::{CasOutcome, list};
use crate::{
    BookieId, Entry, EntryId, Fragment, LedgerMetadata, MetadataVersion, Places, Refusal,
    Replication, State, Tenure,
};

use reading::Reading;

mod reading;
mod writing;

/// Closes one ledger: takes it from its writer, fences it, finds its end, makes every entry up
/// to there safe, and puts the end into the metadata.
///
/// Feed it with `on_*`; after each call, take actions until there is none. Any number of clients
/// may recover a ledger at once, also while it is written: all end with the same value.
///
/// A bookie that fails to take what has to be made safe is replaced, if there is another. Only
/// the close makes that known: until then every recovery reads where the writer wrote, and so
/// finds the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recovery {
    version: MetadataVersion,
    metadata: LedgerMetadata,
    round: Round,
    phase: Phase,
    actions: VecDeque<Action>,
}

/// Counts how often the recovery has begun again. Answers to an earlier round count for nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    /// The CAS from open to "in recovery" is with the metastore.
    Joining,
    Fencing {
        fenced: Places,
        refused: BTreeMap<usize, Refusal>,
        last_add_confirmed: Option<EntryId>,
    },
    Reading(Box<Reading>),
    /// The close is with the metastore.
    Closing(End),
    /// It cannot finish; the metadata will tell whether another recovery has.
    Failing(RecoveryError),
    Ended,
}

/// What the close puts into the metadata.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct End {
    last: Option<EntryId>,
    length: u64,
    /// The fragments of those that replaced others.
    changes: Vec<Fragment>,
}

/// What the recovery wants to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Fence the ledger at the bookie of this place; report by [`Recovery::on_fenced`] or
    /// [`Recovery::on_fence_refused`].
    Fence {
        /// The round to report for.
        round: Round,
        /// The place in the ensemble, to report for.
        place: usize,
        /// The bookie there.
        bookie: BookieId,
    },
    /// Read an entry from a place, fencing; report by [`Recovery::on_copy`] or
    /// [`Recovery::on_read_refused`].
    Read {
        /// The round to report for.
        round: Round,
        /// The place in the ensemble, to report for.
        place: usize,
        /// The bookie that was there when the round began.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// Write an entry to a place with the recovery flag, the very bytes that were read; report
    /// by [`Recovery::on_written`] or [`Recovery::on_write_refused`]. Entries for one tenure of a
    /// place go out in this order.
    WriteBack {
        /// The round to report for.
        round: Round,
        /// The place in the ensemble, to report for.
        place: usize,
        /// The tenure to report for.
        tenure: Tenure,
        /// The bookie that has the place in this tenure.
        bookie: BookieId,
        /// The entry.
        entry: Entry,
    },
    /// Find bookies for the places that are [lacking](Recovery::lacking) one, and report by
    /// [`Recovery::on_chosen`], also if there is none.
    Choose {
        /// The round to report for.
        round: Round,
    },
    /// Read the metadata, and report by [`Recovery::on_metadata`].
    ReadMetadata,
    /// Replace the metadata if its version is still this one, and report by
    /// [`Recovery::on_cas`].
    Cas {
        /// The version to be replaced.
        version: MetadataVersion,
        /// What to put there.
        metadata: LedgerMetadata,
    },
    /// The ledger is closed; this is its metadata. It is the last action.
    Done(MetadataVersion, LedgerMetadata),
    /// The ledger could not be closed. It stays as it is, and recovery may be tried again. It is
    /// the last action.
    Fail(RecoveryError),
}

/// Why a recovery could not finish. Another one may.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RecoveryError {
    /// The ledger could not be fenced: some entry might still be written.
    #[error("not enough bookies to fence the ledger: {}", list(.0))]
    NotFenced(Vec<(BookieId, Refusal)>),
    /// It cannot be told whether an entry was written.
    #[error("cannot tell whether entry {entry} was written: {}", list(refused))]
    Undecided {
        /// The entry.
        entry: EntryId,
        /// What those said that do not have it.
        refused: Vec<(BookieId, Refusal)>,
    },
    /// Too few bookies take the entries that have to be made safe.
    #[error("not enough bookies to write entries back: {}", list(.0))]
    NotWritten(Vec<(BookieId, Refusal)>),
}

impl Recovery {
    /// Begins to recover a ledger with this metadata.
    pub fn new(version: MetadataVersion, metadata: LedgerMetadata) -> Self {
        let mut recovery = Self {
            version,
            metadata,
            round: Round::default(),
            phase: Phase::Joining,
            actions: VecDeque::new(),
        };
        recovery.begin();
        recovery
    }

    /// Takes the outcome of a compare-and-set.
    pub fn on_cas(&mut self, outcome: CasOutcome) {
        match (outcome, &self.phase) {
            (CasOutcome::Won(version), Phase::Joining) => {
                self.version = version;
                self.metadata.state = State::InRecovery;
                self.fence();
            }
            (CasOutcome::Won(version), Phase::Closing(end)) => {
                self.version = version;
                end.put_into(&mut self.metadata);
                self.done();
            }
            (CasOutcome::Lost | CasOutcome::Unknown, Phase::Joining | Phase::Closing(_)) => {
                self.actions.push_back(Action::ReadMetadata);
            }
            (_, Phase::Fencing { .. } | Phase::Reading(_) | Phase::Failing(_) | Phase::Ended) => {}
        }
    }

    /// Takes the metadata that was asked for.
    pub fn on_metadata(&mut self, version: MetadataVersion, metadata: LedgerMetadata) {
        let ours = self.metadata.last_fragment() == metadata.last_fragment();
        (self.version, self.metadata) = (version, metadata);
        match (&self.phase, self.metadata.state) {
            // Re-replication has changed earlier fragments, or our own attempt may still land
            // and may as well be repeated: the end that was found is still the end.
            (Phase::Closing(_), State::InRecovery) if ours => self.close(),
            (Phase::Joining | Phase::Closing(_), _) => self.begin(),
            (Phase::Failing(_), State::Closed { .. }) => self.done(),
            (Phase::Failing(error), _) => {
                self.actions.push_back(Action::Fail(error.clone()));
                self.phase = Phase::Ended;
            }
            (Phase::Fencing { .. } | Phase::Reading(_) | Phase::Ended, _) => {}
        }
    }

    /// Takes the answer of a place that has fenced the ledger, with the highest last add
    /// confirmed that it knows.
    pub fn on_fenced(&mut self, round: Round, place: usize, confirmed: Option<EntryId>) {
        if let Phase::Fencing { fenced, last_add_confirmed, .. } = &mut self.phase
            && round == self.round
        {
            fenced.insert(place);
            *last_add_confirmed = (*last_add_confirmed).max(confirmed);
            if self.metadata.replication.is_fenced_by(*fenced) {
                let reading = Reading::new(round, &self.metadata, *last_add_confirmed);
                self.phase = Phase::Reading(Box::new(reading));
                self.read_on();
            }
        }
    }

    /// Notes that a place has not fenced the ledger. That is no answer.
    pub fn on_fence_refused(&mut self, round: Round, place: usize, refusal: Refusal) {
        if let Phase::Fencing { refused, .. } = &mut self.phase
            && round == self.round
        {
            refused.insert(place, refusal);
            let answering = (0..self.metadata.replication.ensemble())
                .filter(|place| !refused.contains_key(place))
                .collect();
            if !self.metadata.replication.is_fenced_by(answering) {
                let refused = named(self.metadata.last_fragment(), refused);
                self.fail(RecoveryError::NotFenced(refused));
            }
        }
    }

    /// Takes a verified copy of an entry.
    pub fn on_copy(&mut self, round: Round, entry: Entry) {
        if let Phase::Reading(reading) = &mut self.phase
            && round == self.round
        {
            reading.on_copy(entry);
            self.read_on();
        }
    }

    /// Takes what a place said that has not given an entry. Only
    /// [`Absent`](Refusal::Absent) says that it is not there.
    pub fn on_read_refused(&mut self, round: Round, place: usize, entry: EntryId, said: Refusal) {
        if let Phase::Reading(reading) = &mut self.phase
            && round == self.round
        {
            reading.on_refused(place, entry, said);
            self.read_on();
        }
    }

    /// Notes that a place has on disk what was written back to it of a run of entries.
    pub fn on_written(
        &mut self,
        round: Round,
        place: usize,
        tenure: Tenure,
        entries: RangeInclusive<EntryId>,
    ) {
        if let Phase::Reading(reading) = &mut self.phase
            && round == self.round
        {
            reading.writing.on_written(place, tenure, &entries);
            self.read_on();
        }
    }

    /// Notes that a place does not take what was to be written back to it, now or later in this
    /// tenure.
    pub fn on_write_refused(
        &mut self,
        round: Round,
        place: usize,
        tenure: Tenure,
        refusal: Refusal,
    ) {
        if let Phase::Reading(reading) = &mut self.phase
            && round == self.round
        {
            reading.writing.on_refused(place, tenure, refusal);
            self.read_on();
        }
    }

    /// Takes the bookies that were found for places that lack one; there may be fewer than
    /// places, or none. A bookie that has refused, or has a place already, is not taken.
    ///
    /// For a place that gets none, none is asked for again in this round until another place
    /// lacks one too.
    pub fn on_chosen(&mut self, round: Round, chosen: &BTreeMap<usize, BookieId>) {
        if let Phase::Reading(reading) = &mut self.phase
            && round == self.round
        {
            reading.writing.on_chosen(chosen, &self.metadata, &mut self.actions);
            self.read_on();
        }
    }

    /// Returns the next thing to be done.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns why the recovery is about to fail, if only the metadata can still save it.
    pub const fn failing(&self) -> Option<&RecoveryError> {
        match &self.phase {
            Phase::Failing(why) => Some(why),
            _ => None,
        }
    }

    /// Returns the ensemble that write-backs go to at present: the last in the metadata, with the
    /// replacements of this round.
    pub fn ensemble(&self) -> &[BookieId] {
        match &self.phase {
            Phase::Reading(reading) => reading.writing.ensemble(),
            _ => &self.metadata.last_fragment().ensemble,
        }
    }

    /// Returns how the ledger's entries are spread.
    pub const fn replication(&self) -> Replication {
        self.metadata.replication
    }

    /// Returns the places that have failed and are needed for what is being written back.
    pub fn lacking(&self) -> Places {
        match &self.phase {
            Phase::Reading(reading) => reading.writing.lacking(),
            _ => Places::default(),
        }
    }

    /// Returns the bookies that have refused write-backs in this round: none of them is taken for
    /// a replacement.
    pub fn refused(&self) -> BTreeSet<BookieId> {
        match &self.phase {
            Phase::Reading(reading) => reading.writing.refused(),
            _ => BTreeSet::new(),
        }
    }

    /// Begins, or begins again, from what the metadata says.
    fn begin(&mut self) {
        self.round.0 += 1;
        match self.metadata.state {
            State::Open => {
                self.phase = Phase::Joining;
                let metadata = LedgerMetadata { state: State::InRecovery, ..self.metadata.clone() };
                self.actions.push_back(Action::Cas { version: self.version, metadata });
            }
            State::InRecovery => self.fence(),
            State::Closed { .. } => self.done(),
        }
    }

    fn fence(&mut self) {
        let round = self.round;
        let ensemble = self.metadata.last_fragment().ensemble.iter().enumerate();
        self.actions.extend(ensemble.map(|(place, &bookie)| Action::Fence {
            round,
            place,
            bookie,
        }));
        self.phase = Phase::Fencing {
            fenced: Places::default(),
            refused: BTreeMap::new(),
            last_add_confirmed: None,
        };
    }

    /// Goes as far as the answers allow.
    fn read_on(&mut self) {
        let Phase::Reading(reading) = &mut self.phase else { return };
        match reading.go_on(&mut self.actions) {
            Ok(None) => {}
            Ok(Some(end)) => {
                self.phase = Phase::Closing(end);
                self.close();
            }
            Err(error) => self.fail(error),
        }
    }

    fn close(&mut self) {
        if let Phase::Closing(end) = &self.phase {
            let mut metadata = self.metadata.clone();
            end.put_into(&mut metadata);
            self.actions.push_back(Action::Cas { version: self.version, metadata });
        }
    }

    fn done(&mut self) {
        self.phase = Phase::Ended;
        self.actions.push_back(Action::Done(self.version, self.metadata.clone()));
    }

    /// Gives up, unless another recovery has closed the ledger meanwhile.
    fn fail(&mut self, error: RecoveryError) {
        self.phase = Phase::Failing(error);
        self.actions.push_back(Action::ReadMetadata);
    }
}

impl End {
    fn put_into(&self, metadata: &mut LedgerMetadata) {
        writing::change_all(metadata, &self.changes);
        metadata.state = State::Closed { last: self.last, length: self.length };
    }
}

/// Puts bookies to the places of a fragment's ensemble.
fn named(fragment: &Fragment, said: &BTreeMap<usize, Refusal>) -> Vec<(BookieId, Refusal)> {
    said.iter().map(|(place, said)| (fragment.ensemble[*place], said.clone())).collect()
}
