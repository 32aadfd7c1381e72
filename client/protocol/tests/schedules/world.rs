//! The writer, the recoveries, the bookies and the metastore, and all that is on its way between
//! them. What the protocol promises is checked after every step.

use std::collections::{BTreeMap, BTreeSet};

use inkfast_protocol::gate::Answer;
use inkfast_protocol::recovery::{self, Recovery};
use inkfast_protocol::writer::{self, CasOutcome, Writer};
use inkfast_protocol::{
    Entry, EntryId, LedgerMetadata, MetadataVersion, Places, Refusal, Replication, State,
};

use crate::bookie::Bookie;
use crate::ledgers::{entry, ledger};

const ENTRIES_MAX: usize = 10;
const RECOVERIES_MAX: usize = 3;
/// A recovery that is not disturbed has ended after so many deliveries.
const DELIVERIES_MAX: usize = 20_000;

pub(crate) struct World {
    replication: Replication,
    version: MetadataVersion,
    metadata: LedgerMetadata,
    bookies: Vec<Bookie>,
    writer: Writer,
    recoveries: Vec<Recovery>,
    /// All that was ever asked; its index is the ticket.
    questions: Vec<Question>,
    /// Those that may still time out.
    waiting: BTreeSet<Ticket>,
    on_the_way: Vec<Message>,
    /// What was appended, by id.
    appended: Vec<Entry>,
    confirmed: Option<EntryId>,
    /// How the ledger was closed, once it was.
    end: Option<State>,
    /// The recovery that ended last has closed the ledger.
    recovered: bool,
}

/// Names a question.
type Ticket = usize;

/// An action of a machine that somebody has to answer.
#[derive(Clone)]
enum Question {
    Writer(writer::Action),
    Recovery(usize, recovery::Action),
}

enum Message {
    Question(Ticket),
    Bookie(Ticket, Answer),
    Copy(Ticket, Entry),
    Cas(Ticket, CasOutcome),
    Metadata(Ticket, MetadataVersion, LedgerMetadata),
}

impl World {
    pub(crate) fn new(replication: Replication) -> Self {
        let (version, metadata) = (MetadataVersion(1), ledger(replication));
        Self {
            replication,
            version,
            bookies: (0..replication.ensemble()).map(|_| Bookie::new()).collect(),
            writer: Writer::new(version, metadata.clone()),
            metadata,
            recoveries: Vec::new(),
            questions: Vec::new(),
            waiting: BTreeSet::new(),
            on_the_way: Vec::new(),
            appended: Vec::new(),
            confirmed: None,
            end: None,
            recovered: false,
        }
    }

    pub(crate) fn append(&mut self) {
        let number = self.appended.len();
        if number == ENTRIES_MAX {
            return;
        }
        // Each entry has other bytes and another length.
        let payload = vec![b'x'; number];
        if let Ok(id) = self.writer.append(&payload, 0) {
            assert_eq!(index(id), number, "an id was skipped or used twice");
            let before = self.appended.last().map_or(0, |last| last.header().length);
            let confirmed = self.confirmed.map(EntryId::get);
            let length = before + payload.len() as u64;
            self.appended.push(entry(id.get(), confirmed, length, &payload));
        }
        self.take_actions();
    }

    pub(crate) fn close(&mut self) {
        self.writer.close();
        self.take_actions();
    }

    pub(crate) fn recover(&mut self) {
        if self.recoveries.len() < RECOVERIES_MAX {
            self.begin_recovery();
        }
    }

    pub(crate) fn deliver(&mut self, which: usize) {
        let taken = |message: &Message| match message {
            Message::Question(ticket) => {
                place_of(&self.questions[*ticket]).is_none_or(|place| !self.bookies[place].hung)
            }
            _ => true,
        };
        let taken: Vec<_> =
            (0..self.on_the_way.len()).filter(|&i| taken(&self.on_the_way[i])).collect();
        if !taken.is_empty() {
            let message = self.on_the_way.remove(taken[which % taken.len()]);
            self.arrive(message);
        }
    }

    pub(crate) fn lose(&mut self, which: usize) {
        if !self.on_the_way.is_empty() {
            self.on_the_way.remove(which % self.on_the_way.len());
        }
    }

    pub(crate) fn time_out(&mut self, which: usize) {
        if self.waiting.is_empty() {
            return;
        }
        let ticket = *self.waiting.iter().nth(which % self.waiting.len()).unwrap();
        match &self.questions[ticket] {
            Question::Writer(writer::Action::Cas { .. })
            | Question::Recovery(_, recovery::Action::Cas { .. }) => {
                self.arrive(Message::Cas(ticket, CasOutcome::Unknown));
            }
            Question::Writer(writer::Action::ReadMetadata) => {
                self.waiting.remove(&ticket);
                self.writer.on_metadata_unavailable();
            }
            // It has no other way to go on than to wait.
            Question::Recovery(_, recovery::Action::ReadMetadata) => {}
            _ => {
                let silent = Refusal::Unknown("no answer".to_owned());
                self.arrive(Message::Bookie(ticket, Answer::Refused(silent)));
            }
        }
        self.take_actions();
    }

    pub(crate) fn sync(&mut self, which: usize) {
        let place = which % self.bookies.len();
        let answers = self.bookies[place].sync();
        self.send(place, answers);
    }

    pub(crate) fn hang(&mut self, which: usize) {
        let place = which % self.bookies.len();
        self.bookies[place].hung ^= true;
    }

    pub(crate) fn restart(&mut self, which: usize) {
        let place = which % self.bookies.len();
        self.bookies[place].restart();
    }

    pub(crate) fn note(&mut self) {
        self.version.0 += 1;
        let note = self.version.0.to_string();
        self.metadata.custom.insert("note".to_owned(), note.into());
    }

    /// Runs a recovery to its end. Of those that would hang, as many do as there may be: fewer
    /// than Qa of a write set, and no more than Qw - Qa.
    pub(crate) fn recover_undisturbed(&mut self, would_hang: &[bool]) {
        let [write, ack] = [self.replication.write_quorum(), self.replication.ack_quorum()];
        let mut hung = Places::default();
        for place in (0..self.bookies.len()).filter(|&place| would_hang[place]) {
            hung.insert(place);
            let hung_of = |entry: u64| {
                self.replication.write_set(entry).filter(|&p| hung.contains(p)).count()
            };
            if (0..self.bookies.len()).any(|e| hung_of(e as u64) > (ack - 1).min(write - ack)) {
                hung.remove(place);
            }
        }
        for (place, bookie) in self.bookies.iter_mut().enumerate() {
            bookie.hung = hung.contains(place);
        }
        self.recovered = false;
        self.begin_recovery();
        for _ in 0..DELIVERIES_MAX {
            if self.recovered {
                return;
            }
            (0..self.bookies.len()).filter(|&p| !hung.contains(p)).for_each(|p| self.sync(p));
            self.deliver(0);
            self.check();
        }
        panic!("the recovery did not end with {hung:?} hung");
    }

    /// Checks everything that must hold now.
    pub(crate) fn check(&self) {
        for bookie in &self.bookies {
            bookie.check();
            for entry in bookie.entries() {
                assert_eq!(entry, &self.appended[index(entry.id())], "a copy has other bytes");
            }
            self.check_written(bookie.last_add_confirmed(), "a bookie's last add confirmed");
        }
        self.check_written(self.confirmed, "what the writer was told");
        if let State::Closed { last, length } = self.metadata.state {
            assert_eq!(self.end, Some(self.metadata.state), "the end has changed");
            assert!(self.confirmed <= last, "{:?} was confirmed, beyond {last:?}", self.confirmed);
            self.check_written(last, "the end");
            let in_header = last.map_or(0, |last| self.appended[index(last)].header().length);
            assert_eq!(length, in_header, "the length is wrong");
        } else {
            assert_eq!(self.end, None, "the ledger was opened again");
        }
    }

    /// Checks that all entries up to the last are on the disks of an ack quorum.
    fn check_written(&self, last: Option<EntryId>, what: &str) {
        for id in last.into_iter().flat_map(|last| 0..=last.get()) {
            let has = |&place: &usize| self.bookies[place].entry(EntryId::new(id)).is_some();
            let copies: Places = (0..self.bookies.len()).filter(has).collect();
            assert!(
                self.replication.is_written(id, copies),
                "{what} is {last:?}, and entry {id} is only on {copies:?}"
            );
        }
    }

    fn begin_recovery(&mut self) {
        self.recoveries.push(Recovery::new(self.version, self.metadata.clone()));
        self.take_actions();
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Question(ticket) => self.serve(ticket),
            Message::Bookie(ticket, answer) => self.answered(ticket, answer),
            Message::Copy(ticket, entry) => {
                self.waiting.remove(&ticket);
                if let Question::Recovery(r, recovery::Action::Read { round, .. }) =
                    self.questions[ticket]
                {
                    self.recoveries[r].on_copy(round, entry);
                }
            }
            // Nobody waits any more for an answer that comes too late.
            Message::Cas(ticket, _) | Message::Metadata(ticket, ..)
                if !self.waiting.remove(&ticket) => {}
            Message::Cas(ticket, outcome) => match self.questions[ticket] {
                Question::Writer(_) => self.writer.on_cas(outcome),
                Question::Recovery(r, _) => self.recoveries[r].on_cas(outcome),
            },
            Message::Metadata(ticket, version, metadata) => match self.questions[ticket] {
                Question::Writer(_) => self.writer.on_metadata(version, metadata),
                Question::Recovery(r, _) => self.recoveries[r].on_metadata(version, metadata),
            },
        }
        self.take_actions();
    }

    /// Does what was asked, where it was asked.
    fn serve(&mut self, ticket: Ticket) {
        let number = ticket as u64;
        match self.questions[ticket].clone() {
            Question::Writer(writer::Action::Send { place, entry, .. }) => {
                let by = Some(self.metadata.writer);
                let answers = self.bookies[place].add(number, by, &entry);
                self.send(place, answers);
            }
            Question::Recovery(_, recovery::Action::WriteBack { place, entry, .. }) => {
                let answers = self.bookies[place].add(number, None, &entry);
                self.send(place, answers);
            }
            // A read fences as well.
            Question::Recovery(
                _,
                recovery::Action::Fence { place, .. } | recovery::Action::Read { place, .. },
            ) => {
                let answers = self.bookies[place].fence(number);
                self.send(place, answers);
            }
            Question::Writer(writer::Action::Cas { version, metadata })
            | Question::Recovery(_, recovery::Action::Cas { version, metadata }) => {
                let outcome = self.compare_and_set(version, metadata);
                self.on_the_way.push(Message::Cas(ticket, outcome));
            }
            _ => {
                let message = Message::Metadata(ticket, self.version, self.metadata.clone());
                self.on_the_way.push(message);
            }
        }
    }

    fn compare_and_set(
        &mut self,
        version: MetadataVersion,
        metadata: LedgerMetadata,
    ) -> CasOutcome {
        if version != self.version {
            return CasOutcome::Lost;
        }
        self.version.0 += 1;
        self.metadata = metadata;
        if self.end.is_none() && matches!(self.metadata.state, State::Closed { .. }) {
            self.end = Some(self.metadata.state);
        }
        CasOutcome::Won(self.version)
    }

    /// Sends what a bookie answers; a read is answered once the fence that it brought is.
    fn send(&mut self, place: usize, answers: Vec<(u64, Answer)>) {
        for (number, answer) in answers {
            let ticket = usize::try_from(number).unwrap();
            let message = match (&self.questions[ticket], answer) {
                (
                    Question::Recovery(_, recovery::Action::Read { entry, .. }),
                    Answer::Fenced { .. },
                ) => match self.bookies[place].entry(*entry) {
                    Some(copy) => Message::Copy(ticket, copy.clone()),
                    None => Message::Bookie(ticket, Answer::Refused(Refusal::Absent)),
                },
                (_, answer) => Message::Bookie(ticket, answer),
            };
            self.on_the_way.push(message);
        }
    }

    /// Tells a machine what a bookie answers.
    fn answered(&mut self, ticket: Ticket, answer: Answer) {
        self.waiting.remove(&ticket);
        match self.questions[ticket].clone() {
            Question::Writer(writer::Action::Send { place, tenure, entry }) => match answer {
                Answer::Refused(refusal) => self.writer.on_refused(place, tenure, refusal),
                _ => self.writer.on_added(place, tenure, entry.id(), entry.id()),
            },
            Question::Recovery(r, asked) => {
                let recovery = &mut self.recoveries[r];
                match (asked, answer) {
                    (recovery::Action::Fence { round, place, .. }, Answer::Refused(refusal)) => {
                        recovery.on_fence_refused(round, place, refusal);
                    }
                    (
                        recovery::Action::Fence { round, place, .. },
                        Answer::Fenced { last_add_confirmed },
                    ) => recovery.on_fenced(round, place, last_add_confirmed),
                    (
                        recovery::Action::Read { round, place, entry, .. },
                        Answer::Refused(refusal),
                    ) => {
                        recovery.on_read_refused(round, place, entry, refusal);
                    }
                    (
                        recovery::Action::WriteBack { round, place, tenure, .. },
                        Answer::Refused(refusal),
                    ) => {
                        recovery.on_write_refused(round, place, tenure, refusal);
                    }
                    (
                        recovery::Action::WriteBack { round, place, tenure, entry, .. },
                        Answer::Added,
                    ) => {
                        recovery.on_written(round, place, tenure, entry.id()..=entry.id());
                    }
                    (asked, answer) => panic!("{answer:?} is no answer to {asked:?}"),
                }
            }
            Question::Writer(asked) => panic!("{answer:?} is no answer to {asked:?}"),
        }
    }

    /// Takes what the machines want to be done.
    fn take_actions(&mut self) {
        while let Some(action) = self.writer.next_action() {
            match action {
                writer::Action::Send { .. }
                | writer::Action::Cas { .. }
                | writer::Action::ReadMetadata => self.ask(Question::Writer(action)),
                writer::Action::Confirm(entry) => {
                    assert!(Some(entry) > self.confirmed, "{entry} was confirmed before");
                    self.confirmed = Some(entry);
                }
                writer::Action::Closed { last } => {
                    assert!(
                        matches!(self.end, Some(State::Closed { last: end, .. }) if end == last)
                    );
                }
                writer::Action::NotClosed(_)
                | writer::Action::Fail(_)
                | writer::Action::Tell { .. }
                | writer::Action::Choose => {}
            }
        }
        for r in 0..self.recoveries.len() {
            while let Some(action) = self.recoveries[r].next_action() {
                match action {
                    recovery::Action::Done(_, metadata) => {
                        assert_eq!(Some(metadata.state), self.end, "another end");
                        self.recovered |= r + 1 == self.recoveries.len();
                    }
                    recovery::Action::Fail(_) => {}
                    // There is no other bookie.
                    recovery::Action::Choose { round } => {
                        self.recoveries[r].on_chosen(round, &BTreeMap::new());
                    }
                    // What was never appended is read ahead to no avail, and only takes steps.
                    recovery::Action::Read { entry, .. } if index(entry) > self.appended.len() => {}
                    _ => self.ask(Question::Recovery(r, action)),
                }
            }
        }
    }

    fn ask(&mut self, question: Question) {
        let ticket = self.questions.len();
        self.questions.push(question);
        self.waiting.insert(ticket);
        self.on_the_way.push(Message::Question(ticket));
    }
}

/// The bookie that a question is for, if it is for one.
fn place_of(question: &Question) -> Option<usize> {
    match question {
        Question::Writer(writer::Action::Send { place, .. })
        | Question::Recovery(
            _,
            recovery::Action::Fence { place, .. }
            | recovery::Action::Read { place, .. }
            | recovery::Action::WriteBack { place, .. },
        ) => Some(*place),
        _ => None,
    }
}

fn index(entry: EntryId) -> usize {
    usize::try_from(entry.get()).unwrap()
}
