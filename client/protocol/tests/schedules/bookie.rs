//! A bookie: a real gate, a disk, and a log whose records are put on it one by one.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use inkfast_protocol::gate::{Action, Adder, Answer, Gate, Record, Stored, Ticket};
use inkfast_protocol::{Entry, EntryId, Refusal, WriterId};

/// The ticket of a copy, which nobody waits for.
const COPY: Ticket = Ticket::MAX;

pub(crate) struct Bookie {
    pub(crate) hung: bool,
    /// How many more adds it takes before its disk is full.
    pub(crate) room: usize,
    gate: Gate,
    disk: Disk,
    log: VecDeque<Record>,
    /// It has told somebody that the ledger is fenced.
    told_fenced: bool,
}

#[derive(Default)]
struct Disk {
    entries: BTreeMap<EntryId, Entry>,
    writer: Option<WriterId>,
    fenced: bool,
}

type Answers = Vec<(Ticket, Answer)>;

impl Bookie {
    pub(crate) fn new() -> Self {
        let (gate, disk) = (Gate::new(false, None, None), Disk::default());
        let log = VecDeque::new();
        Self { hung: false, room: usize::MAX, gate, disk, log, told_fenced: false }
    }

    pub(crate) fn add(&mut self, ticket: Ticket, by: Option<WriterId>, entry: &Entry) -> Answers {
        let Some(room) = self.room.checked_sub(1) else {
            return vec![(ticket, Answer::Refused(Refusal::ReadOnly("full".to_owned())))];
        };
        self.room = room;
        let adder = match by {
            Some(id) => Adder::Writer { id, fragment: Bytes::new() },
            None => Adder::Recovery,
        };
        let stored = match self.disk.entries.get(&entry.id()) {
            None => Stored::Nothing,
            Some(stored) if stored == entry => Stored::Same,
            Some(_) => Stored::Other,
        };
        self.gate.on_add(ticket, &adder, entry.clone().into(), stored);
        self.answers()
    }

    pub(crate) fn tell(&mut self, by: WriterId, confirmed: EntryId) {
        let writer = Adder::Writer { id: by, fragment: Bytes::new() };
        self.gate.on_confirmed(&writer, confirmed);
    }

    pub(crate) fn fence(&mut self, ticket: Ticket) -> Answers {
        self.gate.on_fence(ticket);
        self.answers()
    }

    /// Takes copies of entries that were lost elsewhere, and has them on disk.
    pub(crate) fn copy(&mut self, entries: Vec<Entry>) -> Answers {
        let mut answers = Vec::new();
        for entry in entries {
            self.room = self.room.saturating_add(1);
            answers.append(&mut self.add(COPY, None, &entry));
        }
        while self.is_unsynced() {
            answers.append(&mut self.sync());
        }
        answers.retain(|(ticket, _)| *ticket != COPY);
        answers
    }

    pub(crate) fn is_unsynced(&self) -> bool {
        !self.log.is_empty()
    }

    pub(crate) fn entry(&self, id: EntryId) -> Option<&Entry> {
        self.disk.entries.get(&id)
    }

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.disk.entries.values()
    }

    pub(crate) fn last_add_confirmed(&self) -> Option<EntryId> {
        self.gate.last_add_confirmed()
    }

    /// Puts the next record of the log on disk.
    pub(crate) fn sync(&mut self) -> Answers {
        let Some(record) = self.log.pop_front() else { return Vec::new() };
        match &record {
            Record::Entries(run) => {
                for entry in run.entries() {
                    let other = self.disk.entries.insert(entry.id(), entry.clone());
                    assert_eq!(other, None, "an entry was written over another");
                }
            }
            Record::Writer { id, .. } => {
                let other = self.disk.writer.replace(*id);
                assert_eq!(other, None, "there was a first writer");
            }
            Record::Fence => self.disk.fenced = true,
            Record::Tombstone => unreachable!("no ledger is deleted here"),
        }
        self.gate.on_durable(&record);
        self.answers()
    }

    pub(crate) fn restart(&mut self) {
        self.log.clear();
        let confirmed = self.entries().filter_map(|e| e.header().last_add_confirmed).max();
        self.gate = Gate::new(self.disk.fenced, self.disk.writer, confirmed);
    }

    pub(crate) fn check(&self) {
        assert!(!self.told_fenced || self.gate.is_fenced(), "a fence was forgotten");
    }

    fn answers(&mut self) -> Answers {
        let mut answers = Vec::new();
        while let Some(action) = self.gate.next_action() {
            match action {
                Action::Write(record) => self.log.push_back(record),
                Action::Answer(ticket, answer) => {
                    self.told_fenced |= matches!(answer, Answer::Fenced { .. });
                    answers.push((ticket, answer));
                }
            }
        }
        answers
    }
}
