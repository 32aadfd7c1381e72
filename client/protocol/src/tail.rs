//! The tail: follows a ledger while it is written and delivers its entries in order, until it is
//! closed.
//!
//! The ledger is cut into as many *lanes* as its ensemble has places: lane r has the entries whose
//! write set begins at place r. One bookie of its write set pushes each lane, the second if nothing
//! speaks against it: so the load is spread, and the second takes part in the next entry, which
//! tells it that this one is confirmed. All of them tell how far the ledger is confirmed, and
//! what one has told counts for all.

use std::collections::{BTreeSet, VecDeque};

use crate::reader::Lost;
use crate::{BookieId, Entry, EntryId, LedgerMetadata, Refusal, State};

/// Names a stream of pushes. A later stream of the same tail has a higher number.
pub type StreamNumber = u64;

/// Follows one ledger.
///
/// Feed it with `on_*`; after each call, take actions until there is none. What comes from a
/// stream that was replaced is ignored. It holds no more than its streams may push, which whoever
/// grants them credit decides.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tail {
    metadata: LedgerMetadata,
    /// The next entry to be delivered.
    next: EntryId,
    /// The highest entry that anybody has told to be confirmed; the end of a closed ledger.
    confirmed: Option<EntryId>,
    lanes: Vec<Lane>,
    last_stream: StreamNumber,
    /// Bookies that could not be reached or were late are asked last until they push something.
    silent: BTreeSet<BookieId>,
    /// The metadata was asked for.
    reading: bool,
    /// A pause was asked for.
    pausing: bool,
    ended: bool,
    actions: VecDeque<Action>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lane {
    /// The next entry that is to come.
    next: EntryId,
    /// What has come and is not delivered.
    held: VecDeque<Entry>,
    source: Source,
    /// The bookies that have failed to give the next entry since the last pause.
    tried: BTreeSet<BookieId>,
    /// What each bookie has last said of the next entry, in the order in which they said it.
    refused: Vec<(BookieId, Refusal)>,
    /// All have got long enough to give the next entry: when they have failed once more, it is
    /// lost.
    overdue: bool,
}

/// Where the entries of a lane come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Stream {
        number: StreamNumber,
        bookie: BookieId,
        to: Option<EntryId>,
    },
    /// The whole write set has failed. Perhaps the metadata, read after that, names others.
    Exhausted {
        asked: bool,
    },
    /// All are tried again after a pause.
    Pausing,
    /// The ledger ends before the next entry.
    Over,
}

/// What the tail wants to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Have a bookie push a lane, in the place of the lane's stream before.
    Follow {
        /// Names the stream.
        stream: StreamNumber,
        /// The bookie.
        bookie: BookieId,
        /// Which lane, of as many as the ensemble has places.
        lane: usize,
        /// The first entry to be pushed.
        from: EntryId,
        /// The last, if there is no more in the fragment. All up to it are confirmed then.
        to: Option<EntryId>,
    },
    /// Hand an entry to the user.
    Deliver(Entry),
    /// Read the metadata, and tell it by [`on_metadata`](Tail::on_metadata). What was read
    /// before this action must not be told between the two.
    ReadMetadata,
    /// Call [`on_retry`](Tail::on_retry) after a pause.
    Retry,
    /// The ledger is closed, and all of it is delivered. It is the last action.
    Done,
    /// It cannot go on. It is the last action.
    Fail(TailError),
}

/// Why a tail ended before its ledger did.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TailError {
    /// No bookie could give an entry that is confirmed.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// The ledger was deleted.
    #[error("the ledger was deleted")]
    Deleted,
}

impl Tail {
    /// Begins to follow a ledger from an entry on, which need not be there yet. From beyond the
    /// end of a closed ledger there is nothing to follow.
    pub fn new(metadata: LedgerMetadata, from: EntryId) -> Self {
        let lanes = metadata.replication.ensemble() as u64;
        let lane_of = |lane: u64| Lane {
            next: EntryId::new(
                from.get().saturating_add((lane + lanes - from.get() % lanes) % lanes),
            ),
            held: VecDeque::new(),
            source: Source::Pausing,
            tried: BTreeSet::new(),
            refused: Vec::new(),
            overdue: false,
        };
        let mut tail = Self {
            next: from,
            confirmed: confirmed_by(&metadata),
            lanes: (0..lanes).map(lane_of).collect(),
            last_stream: 0,
            silent: BTreeSet::new(),
            reading: false,
            pausing: false,
            ended: false,
            actions: VecDeque::new(),
            metadata,
        };
        tail.deliver();
        (0..tail.lanes.len()).for_each(|lane| tail.follow(lane));
        tail
    }

    /// Takes an entry that was pushed, and verified.
    pub fn on_entry(&mut self, stream: StreamNumber, entry: Entry) {
        let Some((lane, bookie)) = self.source_of(stream) else { return };
        if entry.id() != self.lanes[lane].next {
            return self.on_failed(stream, &format!("pushed entry {} out of turn", entry.id()));
        }
        self.silent.remove(&bookie);
        self.note_confirmed(entry.header().last_add_confirmed);
        let lanes = self.lanes.len() as u64;
        let Lane { next, held, tried, refused, overdue, .. } = &mut self.lanes[lane];
        *next = EntryId::new(next.get().saturating_add(lanes));
        held.push_back(entry);
        tried.clear();
        refused.clear();
        *overdue = false;
        self.deliver();
        self.settle(lane);
    }

    /// Takes the word of a stream that an entry, and with it every lower one, is confirmed.
    pub fn on_confirmed(&mut self, confirmed: EntryId) {
        self.note_confirmed(Some(confirmed));
        self.deliver();
    }

    /// Takes the word of a bookie that it cannot push an entry.
    pub fn on_missing(&mut self, stream: StreamNumber, entry: EntryId, refusal: Refusal) {
        match self.source_of(stream) {
            Some((lane, bookie)) if self.lanes[lane].next == entry => {
                self.refuse(lane, bookie, refusal);
            }
            _ => self.on_failed(stream, &format!("spoke of entry {entry} out of turn")),
        }
    }

    /// Notes that a stream could not be opened, broke off, or carried what makes no sense.
    pub fn on_failed(&mut self, stream: StreamNumber, why: &str) {
        let Some((lane, bookie)) = self.source_of(stream) else { return };
        self.silent.insert(bookie);
        self.refuse(lane, bookie, Refusal::Unknown(why.to_owned()));
    }

    /// Notes that the entry that is [waited for](Self::waits_for) has not come for too long: its
    /// lane tries another bookie.
    pub fn on_late(&mut self) {
        if let Some(entry) = self.waits_for()
            && let Source::Stream { number, .. } = self.lanes[self.lane_with(entry)].source
        {
            self.on_failed(number, "did not push it in time");
        }
    }

    /// Takes the metadata, which is never older than what was told before.
    pub fn on_metadata(&mut self, metadata: LedgerMetadata) {
        if self.ended {
            return;
        }
        let was = std::mem::replace(&mut self.metadata, metadata);
        let answered = std::mem::take(&mut self.reading);
        self.note_confirmed(confirmed_by(&self.metadata));
        self.deliver();
        for lane in 0..self.lanes.len() {
            let next = self.lanes[lane].next;
            let other = was.fragment_of(next).ensemble != self.metadata.fragment_of(next).ensemble;
            if other {
                self.lanes[lane].tried.clear();
                self.lanes[lane].refused.clear();
            }
            match self.lanes[lane].source {
                Source::Stream { .. } => self.settle(lane),
                _ if other || self.is_beyond_end(next) => self.follow(lane),
                Source::Exhausted { asked: true } if answered => self.judge(lane),
                Source::Exhausted { .. } | Source::Pausing | Source::Over => {}
            }
        }
        self.read_metadata();
    }

    /// Notes that the metadata could not be read.
    pub fn on_metadata_unavailable(&mut self) {
        self.reading = false;
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].source == (Source::Exhausted { asked: true }) {
                self.pause(lane);
            }
        }
        self.read_metadata();
    }

    /// Notes that the ledger was deleted.
    pub fn on_deleted(&mut self) {
        self.end(Action::Fail(TailError::Deleted));
    }

    /// Notes that the pause that was asked for is over.
    pub fn on_retry(&mut self) {
        self.pausing = false;
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].source == Source::Pausing {
                self.lanes[lane].tried.clear();
                self.follow(lane);
            }
        }
    }

    /// Notes that the entry that is [waited for](Self::waits_for) has been waited for long enough.
    /// Its whole write set is asked once more, and then the metadata: perhaps nobody has listened
    /// all the time, so that nobody is to blame. Then it is lost.
    pub fn on_overdue(&mut self) {
        if let Some(entry) = self.waits_for() {
            let lane = self.lane_with(entry);
            let Lane { tried, overdue, .. } = &mut self.lanes[lane];
            if !std::mem::replace(overdue, true) {
                tried.clear();
            }
        }
    }

    /// Returns the next thing to be done.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the next entry to be delivered, if it is known to be confirmed and has not come.
    pub fn waits_for(&self) -> Option<EntryId> {
        let is_confirmed = self.confirmed >= Some(self.next);
        (is_confirmed && !self.ended).then_some(self.next)
    }

    /// Returns the lane that has an entry.
    pub fn lane_with(&self, entry: EntryId) -> usize {
        // The remainder is below the number of lanes, so it fits.
        usize::try_from(entry.get() % self.lanes.len() as u64).unwrap_or(0)
    }

    /// Returns the lane that a stream pushes, and the bookie; none if the stream was replaced.
    pub fn source_of(&self, stream: StreamNumber) -> Option<(usize, BookieId)> {
        self.lanes.iter().enumerate().find_map(|(lane, of)| match of.source {
            Source::Stream { number, bookie, .. } if number == stream => Some((lane, bookie)),
            _ => None,
        })
    }

    fn note_confirmed(&mut self, confirmed: Option<EntryId>) {
        self.confirmed = match self.metadata.state {
            State::Closed { last, .. } => last,
            State::Open | State::InRecovery => self.confirmed.max(confirmed),
        };
    }

    /// Delivers what has come, in order, as far as it is confirmed.
    fn deliver(&mut self) {
        while self.confirmed >= Some(self.next) {
            let lane = self.lane_with(self.next);
            let Some(entry) = self.lanes[lane].held.pop_front() else { return };
            self.actions.push_back(Action::Deliver(entry));
            self.next = self.next.next();
        }
        if self.is_beyond_end(self.next) {
            self.end(Action::Done);
        }
    }

    /// Lets a lane go on with its stream if its bookie has the next entry too, and knows that it
    /// is confirmed if the metadata says so.
    fn settle(&mut self, lane: usize) {
        let Lane { next, source: Source::Stream { bookie, to, .. }, .. } = self.lanes[lane] else {
            return;
        };
        let has_next = self.write_set(next).any(|other| other == bookie);
        if !has_next || self.end_of_fragment(next) != to || self.is_beyond_end(next) {
            self.follow(lane);
        }
    }

    /// Has the best bookie that was not tried push a lane.
    fn follow(&mut self, lane: usize) {
        if self.ended {
            return;
        }
        let from = self.lanes[lane].next;
        let tried = &self.lanes[lane].tried;
        let hears_last = self.write_set(from).next();
        let untried = self.write_set(from).filter(|bookie| !tried.contains(bookie));
        let best = untried
            .min_by_key(|bookie| (self.silent.contains(bookie), Some(*bookie) == hears_last));
        self.lanes[lane].source = if self.is_beyond_end(from) {
            Source::Over
        } else if let Some(bookie) = best {
            let to = self.end_of_fragment(from);
            self.last_stream += 1;
            let number = self.last_stream;
            self.actions.push_back(Action::Follow { stream: number, bookie, lane, from, to });
            Source::Stream { number, bookie, to }
        } else {
            Source::Exhausted { asked: false }
        };
        self.read_metadata();
    }

    /// Notes what a bookie said of the next entry of a lane, which goes to another.
    fn refuse(&mut self, lane: usize, bookie: BookieId, refusal: Refusal) {
        let Lane { tried, refused, .. } = &mut self.lanes[lane];
        tried.insert(bookie);
        refused.retain(|(other, _)| *other != bookie);
        refused.push((bookie, refusal));
        self.follow(lane);
    }

    /// Asks for the metadata if a lane has nobody left to ask.
    fn read_metadata(&mut self) {
        if self.reading || self.ended {
            return;
        }
        for lane in &mut self.lanes {
            if let Source::Exhausted { asked } = &mut lane.source {
                *asked = true;
                self.reading = true;
            }
        }
        if self.reading {
            self.actions.push_back(Action::ReadMetadata);
        }
    }

    /// Decides what becomes of a lane whose write set, and there is no other, has failed.
    fn judge(&mut self, lane: usize) {
        let Lane { next, tried, refused, overdue, .. } = &self.lanes[lane];
        let is_definite = |said: &Refusal| matches!(said, Refusal::Absent | Refusal::Corrupt(_));
        let is_overdue = *overdue && self.write_set(*next).all(|bookie| tried.contains(&bookie));
        if is_overdue || refused.iter().all(|(_, said)| is_definite(said)) {
            let lost = Lost { entry: *next, refused: refused.clone() };
            self.end(Action::Fail(lost.into()));
        } else {
            self.pause(lane);
        }
    }

    fn pause(&mut self, lane: usize) {
        self.lanes[lane].source = Source::Pausing;
        if !std::mem::replace(&mut self.pausing, true) {
            self.actions.push_back(Action::Retry);
        }
    }

    fn end(&mut self, last: Action) {
        if !std::mem::replace(&mut self.ended, true) {
            self.lanes.iter_mut().for_each(|lane| lane.source = Source::Over);
            self.actions.push_back(last);
        }
    }

    fn write_set(&self, entry: EntryId) -> impl Iterator<Item = BookieId> + '_ {
        let ensemble = &self.metadata.fragment_of(entry).ensemble;
        self.metadata.replication.write_set(entry.get()).map(|place| ensemble[place])
    }

    /// Returns the last entry of the fragment that an entry is in, if it has an end.
    fn end_of_fragment(&self, entry: EntryId) -> Option<EntryId> {
        let fragments = &self.metadata.fragments;
        let after = fragments.partition_point(|fragment| fragment.first <= entry);
        let before_next = fragments.get(after).and_then(|next| next.first.previous());
        match self.metadata.state {
            State::Closed { last: Some(last), .. } => {
                Some(before_next.map_or(last, |end| end.min(last)))
            }
            _ => before_next,
        }
    }

    fn is_beyond_end(&self, entry: EntryId) -> bool {
        matches!(self.metadata.state, State::Closed { last, .. } if last < Some(entry))
    }
}

/// Returns the highest entry that the metadata says to be confirmed: the end of the ledger, or
/// what was confirmed when its last fragment was made.
fn confirmed_by(metadata: &LedgerMetadata) -> Option<EntryId> {
    match metadata.state {
        State::Closed { last, .. } => last,
        State::Open | State::InRecovery => metadata.last_fragment().first.previous(),
    }
}
