//! The task that owns the store.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use inkfast_protocol::gate::{Action, Adder, Answer, Record, Stored, Ticket};
use inkfast_protocol::{Entry, EntryId, LedgerId, Refusal, Run, Tenure};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::ledgers::Ledgers;
use super::places::Places;
use super::tips::Tips;
use super::{Add, Batch, Command, Outcome, State};
use crate::log::{self, Append, Appender, Completions, Durable, Failed, Place, Reader};
use crate::record;

/// What comes back with a record when it is on disk.
type Token = (LedgerId, Record);

pub(super) struct Owner {
    ledgers: Ledgers,
    log: Appender<Token>,
    reader: Reader,
    /// Who waits for the answers of the gates.
    replies: BTreeMap<Ticket, Reply>,
    next_ticket: Ticket,
    tips: Tips,
    standing: Standing,
    /// Tells whether writers are refused.
    read_only: watch::Sender<bool>,
}

/// Whether the log can be trusted to hold all that it ever held, and to take more.
enum Standing {
    Sound,
    /// Some of it is lost, and with it perhaps a fence: no writer is let in, and nothing that is
    /// not found is called absent. Recovery may write.
    Damaged,
    /// It takes nothing more, and what was being written may be there or not.
    Failed(String),
}

enum Reply {
    Add {
        entries: (EntryId, EntryId),
        sequences: Range<u64>,
        tenure: Tenure,
        outcomes: mpsc::Sender<Outcome>,
        room: Arc<OwnedSemaphorePermit>,
    },
    Fence(oneshot::Sender<Result<Option<EntryId>, Refusal>>),
}

impl Owner {
    pub(super) fn new(
        ledgers: Ledgers,
        log: Appender<Token>,
        reader: Reader,
        damaged: bool,
    ) -> Self {
        let read_only = watch::Sender::new(damaged);
        Self {
            read_only,
            ledgers,
            log,
            reader,
            replies: BTreeMap::new(),
            next_ticket: 0,
            tips: Tips::default(),
            standing: if damaged { Standing::Damaged } else { Standing::Sound },
        }
    }

    /// Takes commands until all handles are dropped, and then writes what is left.
    pub(super) async fn run(
        mut self,
        mut commands: mpsc::Receiver<Command>,
        mut completions: Completions<Token>,
    ) {
        loop {
            let writing = !matches!(self.standing, Standing::Failed(_));
            let log = &self.log;
            let next_command = async {
                // A log that has failed is always ready: it is not written to.
                let _ = log.ready().await;
                commands.recv().await
            };
            tokio::select! {
                durable = completions.next(), if writing => match durable {
                    Ok(batch) => self.on_durable(batch),
                    Err(failed) => self.on_log_failed(&failed),
                },
                command = next_command => match command {
                    Some(command) => self.on_command(command).await,
                    None => break,
                },
            }
        }
        self.finish(completions).await;
    }

    /// Waits until the log has written everything.
    async fn finish(mut self, mut completions: Completions<Token>) {
        while !self.replies.is_empty() {
            match completions.next().await {
                Ok(Some(batch)) => self.on_durable(Some(batch)),
                Ok(None) => break,
                Err(failed) => self.on_log_failed(&failed),
            }
        }
    }

    async fn on_command(&mut self, command: Command) {
        match command {
            Command::Add { ledger, adder, batch, outcomes, room } => {
                let Batch { add, confirmed } = batch;
                if let Some(Add { run, mut sequence, tenure }) = add {
                    for run in self.separate(ledger, run) {
                        let sequences = sequence..sequence + run.entries().len() as u64;
                        sequence = sequences.end;
                        let entries = (run.first().id(), run.last().id());
                        let (outcomes, room) = (outcomes.clone(), Arc::clone(&room));
                        let reply = Reply::Add { entries, sequences, tenure, outcomes, room };
                        self.add(ledger, &adder, run, reply).await;
                    }
                }
                if let (Some(confirmed), Some(ledger)) = (confirmed, self.ledgers.get_mut(ledger)) {
                    ledger.gate.on_confirmed(&adder, confirmed);
                }
                self.tips.tell(ledger, &self.ledgers);
            }
            Command::Fence { ledger, fenced } => {
                let reply = Reply::Fence(fenced);
                let is_fenced = self.ledgers.get(ledger).is_some_and(|l| l.gate.is_fenced());
                if let Standing::Failed(why) = &self.standing
                    && !is_fenced
                {
                    return reply.send(Answer::Refused(Refusal::ReadOnly(why.clone())));
                }
                let ticket = self.ticket(reply);
                self.ledgers.entry(ledger).gate.on_fence(ticket);
                self.act(ledger);
            }
            Command::State { ledger, state } => {
                let known = self.ledgers.get(ledger).map(|ledger| &ledger.gate);
                // Whoever asked may be gone.
                let _ = state.send(State {
                    last_add_confirmed: known.and_then(|gate| gate.last_add_confirmed()),
                    fenced: known.is_some_and(|gate| gate.is_fenced()),
                });
            }
            Command::Locate { ledger, entries, places } => {
                let known = self.ledgers.get(ledger).map(|ledger| &ledger.entries);
                let locate = |entry: EntryId| {
                    known.and_then(|known| known.get(entry)).ok_or_else(|| self.missing())
                };
                let _ = places.send(entries.into_iter().map(locate).collect());
            }
            Command::Follow { ledger, tip } => {
                let _ = tip.send(self.tips.follow(ledger, &self.ledgers));
            }
        }
    }

    /// Gives a run as it is if nothing of it is on disk, and else its entries one by one.
    fn separate(&self, ledger: LedgerId, run: Run) -> Vec<Run> {
        let stored = self.ledgers.get(ledger).map(|ledger| &ledger.entries);
        let is_stored = |entry: &Entry| stored.and_then(|stored| stored.get(entry.id())).is_some();
        let is_new = stored.and_then(Places::last) < Some(run.first().id());
        if is_new || !run.entries().iter().any(is_stored) {
            return vec![run];
        }
        run.entries().iter().map(|entry| entry.clone().into()).collect()
    }

    async fn add(&mut self, ledger: LedgerId, adder: &Adder, run: Run, reply: Reply) {
        let refusal = match (&self.standing, adder) {
            (Standing::Failed(why), _) => Some(why.clone()),
            (Standing::Damaged, Adder::Writer { .. }) => {
                Some("its log is damaged, and a fence may be lost".to_owned())
            }
            (Standing::Damaged, Adder::Recovery) | (Standing::Sound, _) => None,
        };
        if let Some(why) = refusal {
            return reply.send(Answer::Refused(Refusal::ReadOnly(why)));
        }
        let place = self.ledgers.get(ledger).and_then(|l| l.entries.get(run.first().id()));
        let stored = match place {
            None => Stored::Nothing,
            Some(place) => self.compare(run.first(), place).await,
        };
        let ticket = self.ticket(reply);
        self.ledgers.entry(ledger).gate.on_add(ticket, adder, run, stored);
        self.act(ledger);
    }

    /// Compares an entry with the copy that is on disk.
    async fn compare(&self, entry: &Entry, place: Place) -> Stored {
        match self.reader.read(place).await {
            Ok(bytes) if bytes == *entry.bytes() => Stored::Same,
            Ok(_) => Stored::Other,
            Err(error) => Stored::Unsound(Refusal::Corrupt(error.to_string())),
        }
    }

    fn on_durable(&mut self, batch: Option<log::Batch<Token>>) {
        let mut moved = BTreeSet::new();
        for Durable { token: (id, record), places } in
            batch.into_iter().flat_map(|batch| batch.appends)
        {
            if !self.tips.is_empty() {
                moved.insert(id);
            }
            let ledger = self.ledgers.entry(id);
            if let Record::Entries(run) = &record {
                for (entry, place) in run.entries().iter().zip(places) {
                    ledger.entries.insert(entry.id(), place);
                }
            }
            ledger.gate.on_durable(&record);
            self.act(id);
        }
        moved.into_iter().for_each(|id| self.tips.tell(id, &self.ledgers));
    }

    fn on_log_failed(&mut self, failed: &Failed) {
        tracing::error!(%failed, "the bookie takes no more writes; restart it on a sound disk");
        let why = failed.to_string();
        for id in self.ledgers.ids() {
            self.ledgers.entry(id).gate.on_log_failed(&why);
            self.act(id);
        }
        self.standing = Standing::Failed(why);
        self.read_only.send_replace(true);
    }

    pub(super) fn read_only(&self) -> watch::Receiver<bool> {
        self.read_only.subscribe()
    }

    /// Does what a ledger's gate wants.
    fn act(&mut self, id: LedgerId) {
        while let Some(action) = self.ledgers.entry(id).gate.next_action() {
            match action {
                Action::Write(record) => {
                    let (kind, payloads) = record::encode(id, &record);
                    self.log.push(Append { kind, payloads, token: (id, record) });
                }
                Action::Answer(ticket, answer) => {
                    if let Some(reply) = self.replies.remove(&ticket) {
                        reply.send(answer);
                    }
                }
            }
        }
    }

    fn ticket(&mut self, reply: Reply) -> Ticket {
        self.next_ticket += 1;
        self.replies.insert(self.next_ticket, reply);
        self.next_ticket
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

impl Reply {
    fn send(self, answer: Answer) {
        match self {
            Self::Add { entries, sequences, tenure, outcomes, room } => {
                let result = match answer {
                    Answer::Added | Answer::Fenced { .. } => Ok(()),
                    Answer::Refused(refusal) => Err(refusal),
                };
                // It has room for all that can be under way; or the stream is gone.
                let outcome = Outcome { entries, sequences, tenure, result, _room: room };
                let _ = outcomes.try_send(outcome);
            }
            Self::Fence(fenced) => {
                let _ = fenced.send(match answer {
                    Answer::Fenced { last_add_confirmed } => Ok(last_add_confirmed),
                    Answer::Refused(refusal) => Err(refusal),
                    Answer::Added => Err(Refusal::Unknown("no fence was asked for".to_owned())),
                });
            }
        }
    }
}
