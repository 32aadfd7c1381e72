//! The reader: finds the copies of a run of entries and delivers them in order.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::ops::RangeInclusive;

use crate::writer::list;
use crate::{BookieId, Entry, EntryId, LedgerMetadata, Refusal};

/// The bytes that a reader holds and cannot deliver yet, at most, and wants to have asked for.
const AHEAD_BYTES_MAX: usize = 8 << 20;
/// The entries that a reader has asked for and not delivered, at most.
const AHEAD_ENTRIES_MAX: usize = 8192;
/// What an entry is taken to have until one has come.
const ENTRY_BYTES_GUESS: usize = 64 << 10;
/// One bookie is asked for so many bytes, about, before it is another's turn: it reads entries that
/// are neighbours with one access to its disk.
const TURN_BYTES: usize = 512 << 10;
/// And for so many entries at most, so that several bookies have some of what is asked ahead.
const TURN_ENTRIES_MAX: usize = 512;

/// Reads a run of entries that are known to be confirmed.
///
/// Feed it with `on_*`; after each call, take actions until there is none. Each entry is asked
/// of one bookie of its write set, and of the next when that one refuses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reader {
    metadata: LedgerMetadata,
    last: EntryId,
    /// The entry to be delivered next.
    lowest: EntryId,
    /// What was asked, from the lowest entry on.
    asked: VecDeque<Asked>,
    /// Bookies that did not answer are asked last from then on.
    silent: BTreeSet<BookieId>,
    /// The bytes of the largest entry that has come.
    largest_bytes: Option<usize>,
    /// The bytes of all copies that wait to be delivered.
    held_bytes: usize,
    ended: bool,
    actions: VecDeque<Action>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Asked {
    /// A bookie was asked; others have refused.
    Waiting { bookie: BookieId, refused: Vec<(BookieId, Refusal)> },
    /// A copy has come.
    Here(Entry),
    /// The whole write set has refused.
    Lost(Vec<(BookieId, Refusal)>),
}

impl Asked {
    fn bytes(&self) -> usize {
        match self {
            Self::Here(copy) => copy.bytes().len(),
            Self::Waiting { .. } | Self::Lost(_) => 0,
        }
    }
}

/// What the reader wants to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Ask a bookie for an entry.
    Ask {
        /// The bookie.
        bookie: BookieId,
        /// The entry.
        entry: EntryId,
    },
    /// Hand an entry to the user.
    Deliver(Entry),
    /// All is delivered. It is the last action.
    Done,
    /// No bookie of the write set could give an entry. It is the last action.
    Fail(Lost),
}

/// An entry that no bookie could give.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("entry {entry} cannot be read: {}", list(refused))]
pub struct Lost {
    /// The entry.
    pub entry: EntryId,
    /// What each bookie of its write set said.
    pub refused: Vec<(BookieId, Refusal)>,
}

impl Reader {
    /// Begins to read a run of entries. The caller knows that all of them are confirmed.
    pub fn new(metadata: LedgerMetadata, entries: RangeInclusive<EntryId>) -> Self {
        let mut reader = Self {
            metadata,
            last: *entries.end(),
            lowest: *entries.start(),
            asked: VecDeque::new(),
            silent: BTreeSet::new(),
            largest_bytes: None,
            held_bytes: 0,
            ended: false,
            actions: VecDeque::new(),
        };
        reader.go_on();
        reader
    }

    /// Takes a verified copy of an entry, whichever bookie it is from.
    pub fn on_copy(&mut self, entry: Entry) {
        let Some(place) = self.place(entry.id()) else { return };
        if !matches!(self.asked[place], Asked::Waiting { .. }) {
            return;
        }
        let bytes = entry.bytes().len();
        self.largest_bytes = self.largest_bytes.max(Some(bytes));
        if self.held_bytes + bytes > AHEAD_BYTES_MAX && place > 0 {
            // The entries have grown. What does not fit is asked again when its turn comes.
            self.begin_again(place);
        } else {
            self.held_bytes += bytes;
            self.asked[place] = Asked::Here(entry);
        }
        self.go_on();
    }

    /// Takes a refusal of a bookie that was asked for an entry.
    pub fn on_refused(&mut self, bookie: BookieId, entry: EntryId, refusal: Refusal) {
        if let Some(place) = self.place(entry)
            && let Asked::Waiting { bookie: asked, refused } = &mut self.asked[place]
            && *asked == bookie
        {
            let mut refused = mem::take(refused);
            refused.push((bookie, refusal));
            self.asked[place] = self.ask(entry, refused);
            self.go_on();
        }
    }

    /// Notes that a bookie has not answered for an entry, or cannot be reached. It is asked last
    /// from then on.
    pub fn on_silent(&mut self, bookie: BookieId, entry: EntryId, why: &str) {
        self.silent.insert(bookie);
        self.on_refused(bookie, entry, Refusal::Unknown(why.to_owned()));
    }

    /// Notes that nobody listens any more to those that were asked: what has not come is asked
    /// again, and not more of it than fits by the size of what has come.
    pub fn on_hung_up(&mut self) {
        let is_waiting = |asked: &Asked| matches!(asked, Asked::Waiting { .. });
        if let Some(first) = self.asked.iter().position(is_waiting) {
            self.actions.retain(|action| !matches!(action, Action::Ask { .. }));
            self.begin_again(first);
            self.go_on();
        }
    }

    /// Returns the next thing to be done.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns where an entry is among those that were asked, if it is one of them.
    fn place(&self, entry: EntryId) -> Option<usize> {
        let place = usize::try_from(entry.get().checked_sub(self.lowest.get())?).ok()?;
        (place < self.asked.len()).then_some(place)
    }

    /// Forgets what was asked and what has come from a place on.
    fn begin_again(&mut self, place: usize) {
        for dropped in self.asked.drain(place..) {
            self.held_bytes -= dropped.bytes();
        }
    }

    /// Delivers what has come in order, and asks for more as far as it may.
    fn go_on(&mut self) {
        let has_come = |asked: &mut Asked| !matches!(asked, Asked::Waiting { .. });
        while let Some(lowest) = self.asked.pop_front_if(has_come) {
            self.held_bytes -= lowest.bytes();
            match lowest {
                Asked::Here(copy) => self.actions.push_back(Action::Deliver(copy)),
                Asked::Lost(refused) => {
                    let lost = Lost { entry: self.lowest, refused };
                    self.actions.push_back(Action::Fail(lost));
                    self.asked.clear();
                    self.ended = true;
                    return;
                }
                Asked::Waiting { .. } => {}
            }
            self.lowest = self.lowest.next();
        }
        let largest_bytes = self.largest_bytes.unwrap_or(ENTRY_BYTES_GUESS);
        let ahead = (AHEAD_BYTES_MAX / largest_bytes).clamp(1, AHEAD_ENTRIES_MAX);
        // Many at a time, when a quarter of what was asked has come: a question each would be dear.
        if self.asked.len() <= ahead * 3 / 4 {
            let mut next = EntryId::new(self.lowest.get() + self.asked.len() as u64);
            while self.asked.len() < ahead && next <= self.last && !self.ended {
                let asked = self.ask(next, Vec::new());
                self.asked.push_back(asked);
                next = next.next();
            }
        }
        if self.asked.is_empty() && !self.ended {
            self.ended = true;
            self.actions.push_back(Action::Done);
        }
    }

    /// Asks the next bookie of an entry's write set for it.
    fn ask(&mut self, entry: EntryId, refused: Vec<(BookieId, Refusal)>) -> Asked {
        let ensemble = &self.metadata.fragment_of(entry).ensemble;
        let turn = self.turn(entry);
        let ahead = |place: usize| if place < turn { ensemble.len() } else { 0 };
        let distance = |place: usize| place + ahead(place) - turn;
        let write_set = self.metadata.replication.write_set(entry.get());
        let write_set = write_set.map(|place| (distance(place), ensemble[place]));
        let untried = write_set.filter(|(_, b)| refused.iter().all(|(tried, _)| tried != b));
        let next =
            untried.min_by_key(|(distance, bookie)| (self.silent.contains(bookie), *distance));
        match next.map(|(_, bookie)| bookie) {
            Some(bookie) => {
                self.actions.push_back(Action::Ask { bookie, entry });
                Asked::Waiting { bookie, refused }
            }
            None => Asked::Lost(refused),
        }
    }

    /// Returns the place of the ensemble that is to be asked for an entry if it holds it; otherwise
    /// it is the next. The places take turns, so that the load is spread.
    fn turn(&self, entry: EntryId) -> usize {
        let entries = self.largest_bytes.map_or(1, |bytes| TURN_BYTES / bytes);
        let turn = entry.get() / entries.clamp(1, TURN_ENTRIES_MAX) as u64;
        // The remainder is below the ensemble's size, so it fits.
        usize::try_from(turn % self.metadata.replication.ensemble() as u64).unwrap_or(0)
    }
}
