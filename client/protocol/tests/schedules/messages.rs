//! What the machines ask, and all that is on its way between them, the bookies and the metastore.

use inkfast_protocol::gate::Answer;
use inkfast_protocol::recovery::{self, Round};
use inkfast_protocol::writer::{self, CasOutcome, WriteError};
use inkfast_protocol::{Entry, LedgerMetadata, MetadataVersion, Refusal, State, Tenure};

use crate::metastore::Metastore;
use crate::world::{World, index, number};

/// Names a question.
pub(crate) type Ticket = usize;

/// An action of a machine that somebody has to answer.
pub(crate) struct Question {
    pub(crate) asked: Asked,
    /// The bookie that stood at the place when this was asked; none if the metastore is asked.
    pub(crate) bookie: Option<usize>,
    pub(crate) stream: Option<Stream>,
}

/// What arrives in the order in which it was sent: from the writer or a round of a recovery, to a
/// place in a tenure.
pub(crate) type Stream = (Option<(usize, Round)>, usize, Tenure);

#[derive(Clone)]
pub(crate) enum Asked {
    Writer(writer::Action),
    Recovery(usize, recovery::Action),
}

pub(crate) enum Message {
    Question(Ticket),
    Bookie(Ticket, Answer),
    Copy(Ticket, Entry),
    Cas(Ticket, CasOutcome),
    Metadata(Ticket, MetadataVersion, LedgerMetadata),
}

impl World {
    pub(crate) fn arrive(&mut self, message: Message) {
        match message {
            Message::Question(ticket) => self.serve(ticket),
            Message::Bookie(ticket, answer) => self.answered(ticket, answer),
            Message::Copy(ticket, entry) => {
                self.waiting.remove(&ticket);
                if let Asked::Recovery(r, recovery::Action::Read { round, .. }) =
                    self.questions[ticket].asked
                {
                    self.recoveries[r].on_copy(round, entry);
                }
            }
            // Nobody waits any more for an answer that comes too late.
            Message::Cas(ticket, _) | Message::Metadata(ticket, ..)
                if !self.waiting.remove(&ticket) => {}
            Message::Cas(ticket, outcome) => match self.questions[ticket].asked {
                Asked::Writer(_) => self.writer.on_cas(outcome),
                Asked::Recovery(r, _) => self.recoveries[r].on_cas(outcome),
            },
            Message::Metadata(ticket, version, metadata) => match self.questions[ticket].asked {
                Asked::Writer(_) => self.writer.on_metadata(version, metadata),
                Asked::Recovery(r, _) => self.recoveries[r].on_metadata(version, metadata),
            },
        }
        self.take_actions();
    }

    /// Does what was asked, where it was asked.
    fn serve(&mut self, ticket: Ticket) {
        let number = ticket as u64;
        let Question { asked, bookie, .. } = &self.questions[ticket];
        let Some(at) = *bookie else { return self.serve_from_metastore(ticket) };
        let bookie = &mut self.bookies[at];
        let by = self.metastore.metadata.writer;
        let answers = match asked {
            Asked::Writer(writer::Action::Send { entry, .. }) => {
                bookie.add(number, Some(by), entry)
            }
            Asked::Recovery(_, recovery::Action::WriteBack { entry, .. }) => {
                bookie.add(number, None, entry)
            }
            Asked::Writer(writer::Action::Tell { confirmed, .. }) => {
                return bookie.tell(by, *confirmed);
            }
            // A read fences as well.
            _ => bookie.fence(number),
        };
        self.send(at, answers);
    }

    fn serve_from_metastore(&mut self, ticket: Ticket) {
        let asked = &self.questions[ticket].asked;
        let answer = match asked {
            Asked::Writer(writer::Action::Cas { version, metadata })
            | Asked::Recovery(_, recovery::Action::Cas { version, metadata }) => {
                let is_by_writer = matches!(asked, Asked::Writer(_));
                let outcome = self.metastore.compare_and_set(*version, metadata, is_by_writer);
                Message::Cas(ticket, outcome)
            }
            _ => {
                let Metastore { version, metadata, .. } = &self.metastore;
                Message::Metadata(ticket, *version, metadata.clone())
            }
        };
        self.on_the_way.push(answer);
    }

    /// Sends what a bookie answers; a read is answered once the fence that it brought is.
    pub(crate) fn send(&mut self, bookie: usize, answers: Vec<(u64, Answer)>) {
        for (number, answer) in answers {
            let ticket = usize::try_from(number).unwrap();
            let message = match (&self.questions[ticket].asked, answer) {
                (
                    Asked::Recovery(_, recovery::Action::Read { entry, .. }),
                    Answer::Fenced { .. },
                ) => match self.bookies[bookie].entry(*entry) {
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
        match self.questions[ticket].asked.clone() {
            Asked::Writer(writer::Action::Send { place, tenure, entry }) => match answer {
                Answer::Refused(refusal) => self.writer.on_refused(place, tenure, refusal),
                _ => self.writer.on_added(place, tenure, entry.id(), entry.id()),
            },
            Asked::Writer(asked) => panic!("{answer:?} is no answer to {asked:?}"),
            Asked::Recovery(r, asked) => self.answered_recovery(r, asked, answer),
        }
    }

    fn answered_recovery(&mut self, r: usize, asked: recovery::Action, answer: Answer) {
        use recovery::Action;
        let recovery = &mut self.recoveries[r];
        match (asked, answer) {
            (Action::Fence { round, place, .. }, Answer::Refused(refusal)) => {
                recovery.on_fence_refused(round, place, refusal);
            }
            (Action::Fence { round, place, .. }, Answer::Fenced { last_add_confirmed }) => {
                recovery.on_fenced(round, place, last_add_confirmed);
            }
            (Action::Read { round, place, entry, .. }, Answer::Refused(refusal)) => {
                recovery.on_read_refused(round, place, entry, refusal);
            }
            (Action::WriteBack { round, place, tenure, .. }, Answer::Refused(refusal)) => {
                recovery.on_write_refused(round, place, tenure, refusal);
            }
            (Action::WriteBack { round, place, tenure, entry, .. }, Answer::Added) => {
                recovery.on_written(round, place, tenure, entry.id()..=entry.id());
            }
            (asked, answer) => panic!("{answer:?} is no answer to {asked:?}"),
        }
    }

    /// Takes what the machines want to be done.
    pub(crate) fn take_actions(&mut self) {
        while let Some(action) = self.writer.next_action() {
            self.take_writers(action);
        }
        for r in 0..self.recoveries.len() {
            while let Some(action) = self.recoveries[r].next_action() {
                self.take_recoverys(r, action);
            }
        }
    }

    fn take_writers(&mut self, action: writer::Action) {
        assert!(!self.ended, "{action:?} came after the last word");
        match action {
            writer::Action::Send { place, tenure, .. }
            | writer::Action::Tell { place, tenure, .. } => {
                let stands_there = number(&self.ensemble()[place]);
                let bookie = *self.streams.entry((place, tenure)).or_insert(stands_there);
                self.ask(Asked::Writer(action), Some(bookie), Some((None, place, tenure)));
            }
            writer::Action::Cas { .. } | writer::Action::ReadMetadata => {
                self.ask(Asked::Writer(action), None, None);
            }
            writer::Action::Confirm(entry) => {
                assert!(!self.failed, "{entry} was confirmed after the appends had failed");
                assert!(Some(entry) > self.confirmed, "{entry} was confirmed before");
                self.confirmed = Some(entry);
            }
            writer::Action::Fail(error) => {
                assert!(!self.failed, "the appends have failed twice");
                self.failed = true;
                self.check_fenced(&error);
            }
            writer::Action::Choose => {}
            writer::Action::Closed { last } => {
                let end = self.metastore.end;
                assert!(matches!(end, Some(State::Closed { last: end, .. }) if end == last));
                self.ended = true;
            }
            writer::Action::NotClosed(error) => {
                self.ended = true;
                self.check_fenced(&error);
            }
        }
    }

    /// Nobody but a recovery takes the ledger from its writer.
    fn check_fenced(&self, error: &WriteError) {
        let is_open = self.metastore.metadata.state == State::Open;
        assert!(*error != WriteError::Fenced || !is_open, "the writer is fenced by nobody");
    }

    fn take_recoverys(&mut self, r: usize, action: recovery::Action) {
        match action {
            recovery::Action::Done(_, metadata) => {
                assert_eq!(Some(metadata.state), self.metastore.end, "another end");
                self.recovered |= r + 1 == self.recoveries.len();
            }
            recovery::Action::Fail(_) => {}
            // What was never appended is read ahead to no avail, and only takes steps.
            recovery::Action::Read { entry, .. } if index(entry) > self.appended.len() => {}
            recovery::Action::Choose { round } => {
                assert!(self.seeking.insert((r, round)), "bookies are being sought already");
            }
            recovery::Action::Fence { bookie, .. } | recovery::Action::Read { bookie, .. } => {
                self.ask(Asked::Recovery(r, action), Some(number(&bookie)), None);
            }
            recovery::Action::WriteBack { round, place, tenure, bookie, .. } => {
                let stream = (Some((r, round)), place, tenure);
                self.ask(Asked::Recovery(r, action), Some(number(&bookie)), Some(stream));
            }
            recovery::Action::Cas { .. } | recovery::Action::ReadMetadata => {
                self.ask(Asked::Recovery(r, action), None, None);
            }
        }
    }

    fn ask(&mut self, asked: Asked, bookie: Option<usize>, stream: Option<Stream>) {
        let ticket = self.questions.len();
        if !matches!(asked, Asked::Writer(writer::Action::Tell { .. })) {
            self.waiting.insert(ticket);
        }
        self.questions.push(Question { asked, bookie, stream });
        self.on_the_way.push(Message::Question(ticket));
    }
}
