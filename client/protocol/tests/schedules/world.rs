//! The writer, the recoveries, the bookies and the metastore, and what can happen to them.

use std::collections::{BTreeMap, BTreeSet};

use inkfast_protocol::gate::Answer;
use inkfast_protocol::recovery::{self, Recovery, Round};
use inkfast_protocol::writer::{self, CasOutcome, Writer};
use inkfast_protocol::{BookieId, Entry, EntryId, Refusal, Replication, State, Tenure};

use crate::bookie::Bookie;
use crate::ledgers::{bookie, entry, ledger};
use crate::messages::{Asked, Message, Question, Ticket};
use crate::metastore::Metastore;

const ENTRIES_MAX: usize = 16;
const RECOVERIES_MAX: usize = 3;

pub(crate) struct World {
    pub(crate) replication: Replication,
    pub(crate) metastore: Metastore,
    pub(crate) bookies: Vec<Bookie>,
    pub(crate) writer: Writer,
    pub(crate) recoveries: Vec<Recovery>,
    /// All that was ever asked; its index is the ticket.
    pub(crate) questions: Vec<Question>,
    /// Those that may still time out.
    pub(crate) waiting: BTreeSet<Ticket>,
    /// Ordered by when it was sent.
    pub(crate) on_the_way: Vec<Message>,
    /// The bookie that each place of the writer had in each tenure.
    pub(crate) streams: BTreeMap<(usize, Tenure), usize>,
    /// What was appended, by id.
    pub(crate) appended: Vec<Entry>,
    pub(crate) confirmed: Option<EntryId>,
    /// The appends of the writer have failed.
    pub(crate) failed: bool,
    /// The writer has said its last word.
    pub(crate) ended: bool,
    /// The metadata has once been too large for what the writer wanted.
    pub(crate) full: bool,
    /// The recoveries that wait for bookies, or have waited for them in an earlier round.
    pub(crate) seeking: BTreeSet<(usize, Round)>,
    /// The recovery that began last has closed the ledger.
    pub(crate) recovered: bool,
}

impl World {
    pub(crate) fn new(replication: Replication, spares: usize) -> Self {
        let metastore = Metastore::new(ledger(replication));
        Self {
            replication,
            bookies: (0..replication.ensemble() + spares).map(|_| Bookie::new()).collect(),
            writer: Writer::new(metastore.version, metastore.metadata.clone()),
            metastore,
            recoveries: Vec::new(),
            questions: Vec::new(),
            waiting: BTreeSet::new(),
            on_the_way: Vec::new(),
            streams: BTreeMap::new(),
            appended: Vec::new(),
            confirmed: None,
            failed: false,
            ended: false,
            full: false,
            seeking: BTreeSet::new(),
            recovered: false,
        }
    }

    pub(crate) fn append(&mut self) {
        if self.appended.len() < ENTRIES_MAX {
            self.append_one();
        }
    }

    pub(crate) fn append_one(&mut self) {
        let number = self.appended.len();
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

    pub(crate) fn idle(&mut self) {
        self.writer.on_idle();
        self.take_actions();
    }

    pub(crate) fn overdue(&mut self) {
        self.writer.on_overdue();
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

    pub(crate) fn begin_recovery(&mut self) {
        let Metastore { version, metadata, .. } = &self.metastore;
        self.recoveries.push(Recovery::new(*version, metadata.clone()));
        self.take_actions();
    }

    /// Gives bookies to a recovery that has asked, or to the writer, asked or not.
    pub(crate) fn choose(&mut self, which: usize, picks: &[usize]) {
        match self.seeking.iter().copied().nth(which % (self.seeking.len() + 1)) {
            Some((r, round)) => {
                let chosen = self.pick_bookies(self.recoveries[r].ensemble(), picks);
                self.give_recovery(r, round, &chosen);
            }
            None => {
                let chosen = self.pick_bookies(self.ensemble(), picks);
                self.give(&chosen);
            }
        }
    }

    /// Picks for each place a spare, its own bookie, any or none.
    fn pick_bookies(&self, ensemble: &[BookieId], picks: &[usize]) -> BTreeMap<usize, BookieId> {
        let ensemble: Vec<_> = ensemble.iter().map(number).collect();
        let spares: Vec<_> = (0..self.bookies.len()).filter(|n| !ensemble.contains(n)).collect();
        let mut chosen = BTreeMap::new();
        for (place, (own, pick)) in ensemble.into_iter().zip(picks).enumerate() {
            let which = pick / 8;
            let number = match pick % 8 {
                0 | 1 => continue,
                2 => own,
                3 => which % self.bookies.len(),
                _ => spares[which % spares.len()],
            };
            chosen.insert(place, bookie(number));
        }
        chosen
    }

    pub(crate) fn give(&mut self, chosen: &BTreeMap<usize, BookieId>) {
        self.writer.on_chosen(chosen);
        self.take_actions();
    }

    pub(crate) fn give_recovery(
        &mut self,
        r: usize,
        round: Round,
        chosen: &BTreeMap<usize, BookieId>,
    ) {
        self.seeking.remove(&(r, round));
        self.recoveries[r].on_chosen(round, chosen);
        self.take_actions();
    }

    /// The ensemble as the writer knows it.
    pub(crate) fn ensemble(&self) -> &[BookieId] {
        &self.writer.metadata().last_fragment().ensemble
    }

    /// Has a message arrive, and says whether there was one that could.
    pub(crate) fn deliver(&mut self, which: usize) -> bool {
        let mut streams = BTreeSet::new();
        let mut taken = Vec::new();
        for (at, message) in self.on_the_way.iter().enumerate() {
            let Message::Question(ticket) = message else {
                taken.push(at);
                continue;
            };
            let Question { bookie, stream, .. } = &self.questions[*ticket];
            let is_first = stream.is_none_or(|stream| streams.insert(stream));
            if is_first && bookie.is_none_or(|bookie| !self.bookies[bookie].hung) {
                taken.push(at);
            }
        }
        if !taken.is_empty() {
            let message = self.on_the_way.remove(taken[which % taken.len()]);
            self.arrive(message);
        }
        !taken.is_empty()
    }

    /// Loses a message. What was sent behind it arrives nevertheless, which is worse than the
    /// break of a stream.
    pub(crate) fn lose(&mut self, which: usize) {
        if !self.on_the_way.is_empty() {
            self.on_the_way.remove(which % self.on_the_way.len());
        }
    }

    /// Lets somebody give up waiting, or be refused what the bookie has taken or will take.
    pub(crate) fn time_out(&mut self, which: usize) {
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        let (kind, which) = (which % 8, which / 8);
        if !waiting.is_empty() {
            let refusal = match kind {
                0 => Refusal::Fenced,
                1 => Refusal::ReadOnly("full".to_owned()),
                _ => Refusal::Unknown("no answer".to_owned()),
            };
            self.give_up(waiting[which % waiting.len()], refusal);
        }
    }

    /// Lets somebody give up waiting for the metastore.
    pub(crate) fn miss_metastore(&mut self, which: usize) {
        let of_metastore = |ticket: &Ticket| self.questions[*ticket].bookie.is_none();
        let waiting: Vec<_> = self.waiting.iter().copied().filter(of_metastore).collect();
        if !waiting.is_empty() {
            self.give_up(waiting[which % waiting.len()], Refusal::Unknown(String::new()));
        }
    }

    pub(crate) fn give_up(&mut self, ticket: Ticket, refusal: Refusal) {
        match &self.questions[ticket].asked {
            Asked::Writer(writer::Action::Cas { .. })
            | Asked::Recovery(_, recovery::Action::Cas { .. }) => {
                self.arrive(Message::Cas(ticket, CasOutcome::Unknown));
            }
            Asked::Writer(writer::Action::ReadMetadata) => {
                self.waiting.remove(&ticket);
                self.writer.on_metadata_unavailable();
            }
            // It has no other way to go on than to wait.
            Asked::Recovery(_, recovery::Action::ReadMetadata) => {}
            _ => self.arrive(Message::Bookie(ticket, Answer::Refused(refusal))),
        }
        self.take_actions();
    }

    /// Finds that what the writer wants to put into the metastore can never be there. So it was
    /// not put there before.
    pub(crate) fn refuse_to_send(&mut self) {
        let Some(&ticket) = self.waiting.iter().find(|ticket| self.is_first_cas(**ticket)) else {
            return;
        };
        let is_unsent = |message: &Message| matches!(message, Message::Question(t) if *t == ticket);
        if let Some(at) = self.on_the_way.iter().position(is_unsent) {
            self.on_the_way.remove(at);
            self.waiting.remove(&ticket);
            self.full = true;
            self.writer.on_impossible("it is too large".to_owned());
            self.take_actions();
        }
    }

    /// Says whether this is the writer's first attempt to put just this into the metastore.
    fn is_first_cas(&self, ticket: Ticket) -> bool {
        let asked = |ticket: Ticket| match &self.questions[ticket].asked {
            Asked::Writer(action @ writer::Action::Cas { .. }) => Some(action),
            _ => None,
        };
        asked(ticket).is_some() && (0..ticket).all(|before| asked(before) != asked(ticket))
    }

    pub(crate) fn sync(&mut self, which: usize) {
        let unsynced: Vec<_> =
            (0..self.bookies.len()).filter(|&b| self.bookies[b].is_unsynced()).collect();
        if !unsynced.is_empty() {
            self.sync_one(unsynced[which % unsynced.len()]);
        }
    }

    pub(crate) fn sync_one(&mut self, bookie: usize) {
        let answers = self.bookies[bookie].sync();
        self.send(bookie, answers);
    }

    pub(crate) fn hang(&mut self, which: usize) {
        let bookie = which % self.bookies.len();
        self.bookies[bookie].hung ^= true;
    }

    pub(crate) fn fill(&mut self, which: usize) {
        let bookie = which % self.bookies.len();
        let is_full = self.bookies[bookie].room == 0;
        self.bookies[bookie].room = if is_full { usize::MAX } else { 0 };
    }

    pub(crate) fn restart(&mut self, which: usize) {
        let bookie = which % self.bookies.len();
        self.bookies[bookie].restart();
    }

    /// Gives a fragment that is complete another bookie, once that has the entries.
    pub(crate) fn rereplicate(&mut self, which: usize) {
        let fragments = &self.metastore.metadata.fragments;
        let end = match self.metastore.metadata.state {
            State::Closed { last, .. } => Some(EntryId::after(last)),
            State::Open | State::InRecovery => None,
        };
        let firsts_of_next = fragments.iter().skip(1).map(|next| next.first).chain(end);
        let complete: Vec<_> = fragments.iter().zip(firsts_of_next).enumerate().collect();
        if complete.is_empty() {
            return;
        }
        let (at, (fragment, end)) = complete[which % complete.len()];
        let which = which / complete.len();
        let ensemble: Vec<_> = fragment.ensemble.iter().map(number).collect();
        let others: Vec<_> = (0..self.bookies.len()).filter(|n| !ensemble.contains(n)).collect();
        let place = which % ensemble.len();
        let to = others[which / ensemble.len() % others.len()];
        let mut entries = Vec::new();
        for entry in fragment.first.get()..end.get() {
            let write_set: Vec<_> = self.replication.write_set(entry).collect();
            if write_set.contains(&place) {
                let copy = |p: &usize| self.bookies[ensemble[*p]].entry(EntryId::new(entry));
                entries.push(write_set.iter().find_map(copy).expect("a copy").clone());
            }
        }
        let answers = self.bookies[to].copy(entries);
        self.send(to, answers);
        self.metastore.swap(at, place, bookie(to));
    }
}

/// The number of a bookie.
pub(crate) fn number(bookie: &BookieId) -> usize {
    usize::try_from(bookie.0.as_u128()).unwrap()
}

pub(crate) fn index(entry: EntryId) -> usize {
    usize::try_from(entry.get()).unwrap()
}
