//! The task that owns the store.

use std::collections::BTreeSet;
use std::sync::Arc;

use inkfast_protocol::gate::{Adder, Answer, Gate, Record, Stored, Ticket};
use inkfast_protocol::{Entry, EntryId, LedgerId, Refusal, Run};
use tokio::sync::{mpsc, watch};

use super::checkpoint::{Indexed, Indexing, RECENT_ENTRIES_MAX};
use super::effects::{Effects, Reply};
use super::ledgers::{Known, Ledger, Ledgers};
use super::reading::said;
use super::tips::Tips;
use super::upkeep::{self, Upkeep};
use super::{Add, Batch, Command, Located, Outcomes, Room, State, Written, keeper, unsure};
use crate::index::IndexError;
use crate::log::{self, Appender, Completions, Durable, Failed, Place, Reader};

/// What comes back with records when they are on disk.
pub(super) enum Token {
    /// A gate wanted it.
    Gate(LedgerId, Record),
    /// It keeps the store in order.
    Upkeep(upkeep::Token),
}

pub(super) struct Owner {
    pub(super) ledgers: Ledgers,
    pub(super) indexing: Indexing,
    pub(super) effects: Effects,
    pub(super) reader: Reader,
    pub(super) upkeep: Upkeep,
    tips: Tips,
    pub(super) standing: Standing,
    /// Tells whether writers are refused.
    read_only: watch::Sender<bool>,
}

/// Whether the log can be trusted to hold all that it ever held, and to take more.
pub(super) enum Standing {
    Sound,
    /// Some of it is lost, and with it perhaps a fence: no writer is let in, and nothing that is
    /// not found is called absent. Recovery may write.
    Damaged,
    /// It takes nothing more, and what was being written may be there or not.
    Failed(String),
}

/// How an owner has ended.
pub(super) enum Ended {
    /// All handles were dropped, and all is written.
    Stopped,
    /// The log has all; the index is of no use any more.
    IndexDamaged,
}

impl Owner {
    pub(super) fn new(
        (ledgers, damaged): (Ledgers, bool),
        log: Appender<Token>,
        reader: Reader,
        indexing: Indexing,
        read_only: watch::Sender<bool>,
    ) -> Self {
        Self {
            read_only,
            ledgers,
            indexing,
            effects: Effects::new(log),
            reader,
            upkeep: Upkeep::default(),
            tips: Tips::default(),
            standing: if damaged { Standing::Damaged } else { Standing::Sound },
        }
    }

    /// Takes commands until all handles are dropped, and then writes what is left; or until the
    /// index turns out to be damaged.
    pub(super) async fn run(
        mut self,
        commands: &mut mpsc::Receiver<Command>,
        mut completions: Completions<Token>,
    ) -> Ended {
        // What the log had at the start may be much.
        self.checkpoint_if_due();
        let mut log_has_failed = false;
        let index = self.indexing.index();
        loop {
            let writing = !matches!(self.standing, Standing::Failed(_));
            // There is room again when a checkpoint has ended; a store that writes has one then.
            let has_room = self.ledgers.recent() < RECENT_ENTRIES_MAX || !writing;
            tokio::select! {
                durable = completions.next(), if !log_has_failed => match durable {
                    Ok(batch) => self.on_durable(batch),
                    Err(failed) => {
                        log_has_failed = true;
                        self.on_log_failed(&failed);
                    }
                },
                ended = self.indexing.ended() => self.on_indexed(ended),
                // A log that has failed is not opened again.
                () = index.damaged(), if !log_has_failed => {
                    self.give_up(completions).await;
                    return Ended::IndexDamaged;
                }
                // What waits for the log is bounded by the room that its entries hold.
                command = commands.recv(), if has_room => match command {
                    Some(command) => self.on_command(command).await,
                    None => break,
                },
            }
        }
        self.finish(completions).await;
        Ended::Stopped
    }

    /// Refuses whoever waits, and lets the log end with what it was given.
    async fn give_up(mut self, mut completions: Completions<Token>) {
        self.fail(keeper::MAKING);
        drop(self);
        while let Ok(Some(_)) = completions.next().await {}
    }

    /// Waits until the log has written everything, and the index has it, so that the next start
    /// reads nothing.
    async fn finish(mut self, mut completions: Completions<Token>) {
        while !self.effects.is_done() {
            match completions.next().await {
                Ok(Some(batch)) => self.on_durable(Some(batch)),
                Ok(None) => break,
                Err(failed) => self.on_log_failed(&failed),
            }
        }
        while self.indexing.is_running() {
            let ended = self.indexing.ended().await;
            self.on_indexed(ended);
        }
        if !matches!(self.standing, Standing::Failed(_)) {
            self.indexing.begin(self.ledgers.freeze());
            let ended = self.indexing.ended().await;
            self.on_indexed(ended);
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Add { lot, outcomes, room } => {
                for batch in lot {
                    self.on_batch(batch, (&outcomes, &room)).await;
                }
            }
            Command::Fence { ledger, fenced } => {
                let reply = Reply::Fence(fenced);
                if let Err(refusal) = self.load(ledger).await {
                    return reply.send(Answer::Refused(refusal));
                }
                let is_fenced = self.ledgers.get(ledger).is_some_and(|l| l.gate.is_fenced());
                if let Standing::Failed(why) = &self.standing
                    && !is_fenced
                {
                    return reply.send(Answer::Refused(Refusal::ReadOnly(why.clone())));
                }
                self.feed(ledger, reply, Gate::on_fence);
            }
            Command::State { ledger, state } => {
                let known = self.ledgers.get(ledger).map(|ledger| State {
                    last_add_confirmed: ledger.gate.last_add_confirmed(),
                    fenced: ledger.gate.is_fenced(),
                    deleted: ledger.stored().deleted,
                });
                // Whoever asked may be gone.
                let _ = state.send(known.ok_or_else(|| self.indexing.index()));
            }
            Command::Knows { ledger, known } => {
                let is_known = self.ledgers.get(ledger).is_some_and(Ledger::is_known);
                let _ = known.send((!is_known).then(|| self.indexing.index()));
            }
            Command::Locate { ledger, entries, located } => {
                let known = self.ledgers.get(ledger);
                let places = entries.into_iter().map(|entry| known?.find(entry)).collect();
                let deleted = known.is_some_and(|known| known.stored().deleted);
                let missing = if deleted { Refusal::Deleted } else { self.missing() };
                let index = self.indexing.index();
                let _ = located.send(Located { places, missing, index });
            }
            Command::Follow { ledger, tip } => {
                let loaded = self.load(ledger).await;
                let _ = tip.send(loaded.map(|()| self.tips.follow(ledger, &self.ledgers)));
            }
            Command::Upkeep(upkeep) => self.on_upkeep(upkeep).await,
        }
    }

    /// Gets a ledger into memory, if it is not there.
    pub(super) async fn load(&mut self, id: LedgerId) -> Result<(), Refusal> {
        if self.ledgers.get(id).is_none() {
            let stored = self.indexing.ledger(id).await.map_err(unsure)?;
            self.ledgers.insert(id, Known::new(stored));
        }
        Ok(())
    }

    async fn on_batch(&mut self, batch: Batch, (outcomes, room): (&Outcomes, &Room)) {
        let Batch { ledger, by, adder, add, confirmed } = batch;
        let loaded = match self.let_in(&by) {
            // What is confirmed may be told when the ledger is not in memory any more.
            Ok(()) => self.load(ledger).await,
            refused => refused,
        };
        if let Some(Add { run, mut sequence }) = add {
            let reply = |run: &Run| {
                let sequences = sequence..sequence + run.entries().len() as u64;
                sequence = sequences.end;
                let entries = (run.first().id(), run.last().id());
                let (outcomes, room) = (outcomes.clone(), Arc::clone(room));
                Reply::Add { adder, written: Written { entries, sequences }, outcomes, room }
            };
            self.add((ledger, loaded), &by, run, reply).await;
        }
        if let Some(confirmed) = confirmed
            && let Some(ledger) = self.ledgers.get_mut(ledger)
        {
            ledger.gate.on_confirmed(&by, confirmed);
        }
        self.tips.tell(ledger, &self.ledgers);
    }

    /// Adds entries to a ledger if it is in memory.
    async fn add(
        &mut self,
        (ledger, loaded): (LedgerId, Result<(), Refusal>),
        by: &Adder,
        run: Run,
        mut reply: impl FnMut(&Run) -> Reply,
    ) {
        let stored = match loaded {
            Ok(()) => self.stored(ledger, &run).await,
            Err(refusal) => Err(refusal),
        };
        match stored {
            Err(refusal) => reply(&run).send(Answer::Refused(refusal)),
            Ok(None) => {
                let reply = reply(&run);
                let add = |gate: &mut Gate, ticket| gate.on_add(ticket, by, run, Stored::Nothing);
                self.feed(ledger, reply, add);
            }
            // Some of it is there: each entry by itself.
            Ok(Some(places)) => {
                for (entry, place) in run.entries().iter().zip(places) {
                    let stored = match place {
                        None => Stored::Nothing,
                        Some(place) => self.compare(entry, place).await,
                    };
                    let run = Run::from(entry.clone());
                    let reply = reply(&run);
                    self.feed(ledger, reply, |gate, ticket| gate.on_add(ticket, by, run, stored));
                }
            }
        }
    }

    /// Says why adds are refused, if they are.
    fn let_in(&self, adder: &Adder) -> Result<(), Refusal> {
        match (&self.standing, adder) {
            (Standing::Failed(why), _) => Err(Refusal::ReadOnly(why.clone())),
            (Standing::Damaged, Adder::Writer { .. }) => {
                Err(Refusal::ReadOnly("its log is damaged, and a fence may be lost".to_owned()))
            }
            (Standing::Damaged, Adder::Recovery) | (Standing::Sound, _) => Ok(()),
        }
    }

    /// Finds which entries of a run are on disk; none if none of them is, which needs no look if
    /// they are above all that are. The ledger is in memory.
    async fn stored(
        &mut self,
        ledger: LedgerId,
        run: &Run,
    ) -> Result<Option<Vec<Option<Place>>>, Refusal> {
        let known = self.ledgers.get(ledger);
        if known.and_then(Ledger::last) < Some(run.first().id()) {
            return Ok(None);
        }
        let ids: Vec<EntryId> = run.entries().iter().map(Entry::id).collect();
        let indexed = self.indexing.find(ledger, ids.clone()).await.map_err(unsure)?;
        let known = self.ledgers.get(ledger);
        let places = ids.into_iter().zip(indexed);
        let places = places.map(|(entry, indexed)| known.and_then(|it| it.find(entry)).or(indexed));
        let places: Vec<Option<Place>> = places.collect();
        Ok(places.iter().any(Option::is_some).then_some(places))
    }

    /// Puts a question to the gate of a ledger that is in memory, and does what it wants.
    pub(super) fn feed(
        &mut self,
        ledger: LedgerId,
        reply: Reply,
        question: impl FnOnce(&mut Gate, Ticket),
    ) {
        if let Some(known) = self.ledgers.get_mut(ledger) {
            self.effects.feed((ledger, known), reply, question);
        }
    }

    /// Compares an entry with the copy that is on disk.
    async fn compare(&self, entry: &Entry, place: Place) -> Stored {
        match self.reader.read(place).await {
            Ok(bytes) if bytes == *entry.bytes() => Stored::Same,
            Ok(_) => Stored::Other,
            Err(error) => Stored::Unsound(said(error)),
        }
    }

    fn on_durable(&mut self, batch: Option<log::Batch<Token>>) {
        let Some(log::Batch { appends, mark, bytes }) = batch else { return };
        // Before anybody hears of it: who follows the ledger finds it there. What was merely moved
        // would take the place of that.
        if appends.iter().any(|durable| matches!(durable.token, Token::Gate(..))) {
            self.reader.keep(mark, bytes);
        }
        let mut moved = BTreeSet::new();
        for Durable { token, places } in appends {
            match token {
                Token::Gate(id, record) => {
                    if !self.tips.is_empty() {
                        moved.insert(id);
                    }
                    if let Some(ledger) = self.ledgers.on_durable(id, &record, &places) {
                        self.effects.act(id, ledger);
                    }
                }
                Token::Upkeep(token) => self.on_kept_up(token, &places),
            }
        }
        moved.into_iter().for_each(|id| self.tips.tell(id, &self.ledgers));
        self.indexing.on_durable(mark);
        self.checkpoint_if_due();
    }

    pub(super) fn checkpoint_if_due(&mut self) {
        let can = !matches!(self.standing, Standing::Failed(_)) && !self.indexing.is_running();
        if can
            && (self.indexing.is_due(self.ledgers.recent(), self.ledgers.len())
                || self.upkeep.wants_checkpoint())
        {
            self.upkeep.on_checkpoint();
            self.indexing.begin(self.ledgers.freeze());
        }
    }

    /// Without its index the bookie would fill its memory, so it takes no more writes.
    fn on_indexed(&mut self, ended: Result<Indexed, IndexError>) {
        match ended {
            Ok(indexed) => {
                self.ledgers.forget();
                self.on_checkpointed(&indexed);
                self.checkpoint_if_due();
            }
            Err(error) => self.fail(&error.to_string()),
        }
    }

    fn fail(&mut self, why: &str) {
        tracing::error!(why, "the store takes no more writes");
        for id in self.ledgers.ids() {
            if let Some(ledger) = self.ledgers.get_mut(id) {
                ledger.gate.on_log_failed(why);
                self.effects.act(id, ledger);
            }
        }
        self.upkeep.on_failed();
        self.standing = Standing::Failed(why.to_owned());
        self.read_only.send_replace(true);
    }

    fn on_log_failed(&mut self, failed: &Failed) {
        self.fail(&failed.to_string());
    }

    /// Says of an entry that is not in the index what can be said with certainty.
    fn missing(&self) -> Refusal {
        match &self.standing {
            Standing::Sound => Refusal::Absent,
            Standing::Damaged => Refusal::Unknown("its log is damaged".to_owned()),
            Standing::Failed(why) => Refusal::Unknown(why.clone()),
        }
    }
}
