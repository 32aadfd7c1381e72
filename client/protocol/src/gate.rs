//! The bookie's gate: decides, for one ledger on one bookie, which adds are let in.

use std::collections::VecDeque;
use std::mem;

use bytes::Bytes;

use crate::{EntryId, Refusal, Run, WriterId};

/// Names a question put to the gate, so that its answer finds the way back.
pub type Ticket = u64;

/// Guards one ledger on one bookie.
///
/// Feed it with `on_*`; after each call, take actions until there is none. What it asks to be
/// written must go to the log in that order, and [`on_durable`](Self::on_durable) must report
/// it in that order: that is why an add that was let in before a fence is on disk, and can be
/// read, when the fence is answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gate {
    fence: Mark,
    /// The ledger was deleted.
    tombstone: Mark,
    writer: Option<WriterId>,
    last_add_confirmed: Option<EntryId>,
    /// In the order of the log.
    in_flight: VecDeque<InFlight>,
    /// No entry in flight is higher.
    in_flight_max: Option<EntryId>,
    actions: VecDeque<Action>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Mark {
    Unset,
    Writing { waiting: Vec<Ticket> },
    Durable,
}

/// Entries that were let in and are not on disk yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct InFlight {
    run: Run,
    ticket: Ticket,
    /// Who else adds some of them, and nothing that comes to the disk later.
    others: Vec<Ticket>,
}

/// Who adds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Adder {
    /// The ledger's writer.
    Writer {
        /// Its UUID.
        id: WriterId,
        /// The encoded fragment brief that it sent, to be kept with its name.
        fragment: Bytes,
    },
    /// A recovery, which is let in after the fence and never becomes the writer.
    Recovery,
}

/// What the bookie has on disk at an entry's id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stored {
    /// Certainly nothing.
    Nothing,
    /// The very same bytes; they were read and verified.
    Same,
    /// Other bytes, which are sound.
    Other,
    /// Something that cannot be read or told.
    Unsound(Refusal),
}

/// A record for the log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// The ledger's first writer and the fragment that it began with.
    Writer {
        /// Its UUID.
        id: WriterId,
        /// The encoded fragment brief.
        fragment: Bytes,
    },
    /// Entries.
    Entries(Run),
    /// The fence.
    Fence,
    /// The mark that the ledger was deleted, and whatever is here of it with it.
    Tombstone,
}

/// What the gate wants to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Append a record to the log.
    Write(Record),
    /// Answer a question.
    Answer(Ticket, Answer),
}

/// An answer of the gate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The entries are on disk.
    Added,
    /// The fence is on disk, and so is every add that was let in before it.
    Fenced {
        /// The highest last add confirmed that the bookie knows.
        last_add_confirmed: Option<EntryId>,
    },
    /// The tombstone is on disk.
    Deleted,
    /// It is not done.
    Refused(Refusal),
}

impl Answer {
    /// Says whether it is done, whatever was asked.
    pub fn done(self) -> Result<(), Refusal> {
        match self {
            Self::Added | Self::Fenced { .. } | Self::Deleted => Ok(()),
            Self::Refused(refusal) => Err(refusal),
        }
    }
}

impl Gate {
    /// Makes the gate of a ledger from what its records on disk say; an unknown ledger has none.
    pub const fn new(
        fenced: bool,
        writer: Option<WriterId>,
        last_add_confirmed: Option<EntryId>,
    ) -> Self {
        Self {
            fence: if fenced { Mark::Durable } else { Mark::Unset },
            tombstone: Mark::Unset,
            writer,
            last_add_confirmed,
            in_flight: VecDeque::new(),
            in_flight_max: None,
            actions: VecDeque::new(),
        }
    }

    /// Makes the gate of a ledger whose tombstone is on disk.
    pub fn deleted() -> Self {
        Self { tombstone: Mark::Durable, ..Self::new(false, None, None) }
    }

    /// Takes an add of one or more entries. `stored` is what is on disk at their ids now: where
    /// there is anything, the add is of one entry.
    ///
    /// It is answered once all of them are on disk, or refused at once as a whole.
    pub fn on_add(&mut self, ticket: Ticket, adder: &Adder, run: Run, stored: Stored) {
        if self.tombstone != Mark::Unset {
            return self.refuse(ticket, Refusal::Deleted);
        }
        if let Adder::Writer { id, .. } = adder {
            if self.fence != Mark::Unset {
                return self.refuse(ticket, Refusal::Fenced);
            }
            if self.writer.is_some_and(|first| first != *id) {
                return self.refuse(ticket, Refusal::OtherWriter);
            }
        }
        let run = if Some(run.first().id()) <= self.in_flight_max {
            match self.without_in_flight(ticket, run) {
                Some(run) => run,
                None => return,
            }
        } else {
            run
        };
        match stored {
            Stored::Nothing => self.let_in(ticket, adder, run),
            Stored::Same => self.actions.push_back(Action::Answer(ticket, Answer::Added)),
            Stored::Other => self.refuse(ticket, Refusal::Conflict),
            Stored::Unsound(refusal) => self.refuse(ticket, refusal),
        }
    }

    /// Takes a fence. It is answered once it is on disk; adds of the writer are refused from now.
    pub fn on_fence(&mut self, ticket: Ticket) {
        if self.tombstone != Mark::Unset {
            return self.refuse(ticket, Refusal::Deleted);
        }
        match &mut self.fence {
            Mark::Unset => {
                self.fence = Mark::Writing { waiting: vec![ticket] };
                self.actions.push_back(Action::Write(Record::Fence));
            }
            Mark::Writing { waiting } => waiting.push(ticket),
            Mark::Durable => self.answer_fenced(ticket),
        }
    }

    /// Takes the proof that the ledger was deleted. It is answered once the tombstone is on disk;
    /// adds and fences are refused from now, and those let in before are answered before.
    pub fn on_delete(&mut self, ticket: Ticket) {
        match &mut self.tombstone {
            Mark::Unset => {
                self.tombstone = Mark::Writing { waiting: vec![ticket] };
                self.actions.push_back(Action::Write(Record::Tombstone));
            }
            Mark::Writing { waiting } => waiting.push(ticket),
            Mark::Durable => self.actions.push_back(Action::Answer(ticket, Answer::Deleted)),
        }
    }

    /// Takes the writer's word that an entry, and with it every lower one, is confirmed.
    ///
    /// It counts until the bookie stops: only what stands in entries is kept. Nobody else is
    /// believed, and the writer neither before its first add nor once the ledger is fenced.
    pub fn on_confirmed(&mut self, adder: &Adder, confirmed: EntryId) {
        if let Adder::Writer { id, .. } = adder
            && self.writer == Some(*id)
            && self.fence == Mark::Unset
            && confirmed <= EntryId::MAX
        {
            self.last_add_confirmed = self.last_add_confirmed.max(Some(confirmed));
        }
    }

    /// Notes that a record is on disk, and can be read.
    pub fn on_durable(&mut self, record: &Record) {
        match record {
            Record::Writer { .. } => {}
            Record::Entries(run) => {
                if let Some(in_flight) = self.in_flight.pop_front() {
                    debug_assert_eq!(in_flight.run.first().id(), run.first().id(), "in order");
                    let tickets = [in_flight.ticket].into_iter().chain(in_flight.others);
                    let answers = tickets.map(|ticket| Action::Answer(ticket, Answer::Added));
                    self.actions.extend(answers);
                }
                if self.in_flight.is_empty() {
                    self.in_flight_max = None;
                }
            }
            Record::Fence => {
                if let Mark::Writing { waiting } = mem::replace(&mut self.fence, Mark::Durable) {
                    waiting.into_iter().for_each(|ticket| self.answer_fenced(ticket));
                }
            }
            Record::Tombstone => {
                if let Mark::Writing { waiting } = mem::replace(&mut self.tombstone, Mark::Durable)
                {
                    let answers = waiting.into_iter();
                    let answers = answers.map(|ticket| Action::Answer(ticket, Answer::Deleted));
                    self.actions.extend(answers);
                }
            }
        }
    }

    /// Notes that the log has failed for good: nothing that is not on disk will ever be. Whoever
    /// waits is refused.
    pub fn on_log_failed(&mut self, why: &str) {
        let adds = mem::take(&mut self.in_flight).into_iter();
        let mut waiting: Vec<_> =
            adds.flat_map(|add| [add.ticket].into_iter().chain(add.others)).collect();
        self.in_flight_max = None;
        for mark in [&mut self.fence, &mut self.tombstone] {
            if let Mark::Writing { waiting: marks } = mark {
                waiting.append(marks);
                // The next must ask the log again, and be refused, not wait for this one.
                *mark = Mark::Unset;
            }
        }
        waiting
            .into_iter()
            .for_each(|ticket| self.refuse(ticket, Refusal::ReadOnly(why.to_owned())));
    }

    /// Returns the next thing to be done.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Returns the highest last add confirmed that the writer has told: in an add that was let
    /// in, or by itself.
    pub const fn last_add_confirmed(&self) -> Option<EntryId> {
        self.last_add_confirmed
    }

    /// Says whether nothing is under way, so that a gate made from what is on disk is the same.
    pub fn is_idle(&self) -> bool {
        let is_writing = |mark: &Mark| matches!(mark, Mark::Writing { .. });
        let marks = is_writing(&self.fence) || is_writing(&self.tombstone);
        self.in_flight.is_empty() && self.actions.is_empty() && !marks
    }

    /// Says whether the fence is on disk.
    pub fn is_fenced(&self) -> bool {
        self.fence == Mark::Durable
    }

    /// Takes from an add what is in flight already. None is left if it is settled: refused, or
    /// waiting for the last of what it adds.
    fn without_in_flight(&mut self, ticket: Ticket, run: Run) -> Option<Run> {
        let mut new = Vec::new();
        let mut last = None;
        for entry in run.entries() {
            let in_flight = self.in_flight.iter().enumerate().rev();
            let found = in_flight.flat_map(|(index, it)| Some((index, it.run.get(entry.id())?)));
            match found.last() {
                Some((_, other)) if other != entry => {
                    self.refuse(ticket, Refusal::Conflict);
                    return None;
                }
                Some((index, _)) => last = last.max(Some(index)),
                None => new.push(entry.clone()),
            }
        }
        let new = Run::new(new);
        if let (None, Some(last)) = (&new, last) {
            self.in_flight[last].others.push(ticket);
        }
        new
    }

    fn let_in(&mut self, ticket: Ticket, adder: &Adder, run: Run) {
        if let (Adder::Writer { id, fragment }, None) = (adder, self.writer) {
            // In the log before its first entry: no entry of a writer without its name.
            self.writer = Some(*id);
            let record = Record::Writer { id: *id, fragment: fragment.clone() };
            self.actions.push_back(Action::Write(record));
        }
        // It is about entries that an ack quorum has on disk, whatever becomes of these.
        let confirmed = run.entries().iter().map(|entry| entry.header().last_add_confirmed).max();
        self.last_add_confirmed = self.last_add_confirmed.max(confirmed.flatten());
        self.in_flight_max = self.in_flight_max.max(Some(run.last().id()));
        self.in_flight.push_back(InFlight { run: run.clone(), ticket, others: Vec::new() });
        self.actions.push_back(Action::Write(Record::Entries(run)));
    }

    fn answer_fenced(&mut self, ticket: Ticket) {
        let answer = Answer::Fenced { last_add_confirmed: self.last_add_confirmed };
        self.actions.push_back(Action::Answer(ticket, answer));
    }

    fn refuse(&mut self, ticket: Ticket, refusal: Refusal) {
        self.actions.push_back(Action::Answer(ticket, Answer::Refused(refusal)));
    }
}
