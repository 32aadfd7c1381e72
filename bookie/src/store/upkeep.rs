//! What keeps a store in order: deletion, and room in the log.
//!
//! An entry is dead when its ledger was deleted or when it was moved. A segment in which nothing is
//! needed is dropped, and its file becomes another's. The order makes it safe at any moment: what
//! is needed is written again, then a checkpoint brings that to the index, and only when the index
//! needs nothing of a segment is its end written to the log.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use bytes::Bytes;
use inkfast_protocol::gate::{Gate, Record};
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use smallvec::SmallVec;
use tokio::sync::oneshot;

use super::checkpoint::Indexed;
use super::effects::Reply;
use super::ledgers::Ledger;
use super::owner::{self, Owner, Standing};
use super::{Store, stopped};
use crate::index::{Index, SegmentInfo};
use crate::log::{Append, Place, SegmentNumber};
use crate::record;

/// Entries of a ledger, ascending, to be written again.
pub(super) type Move = (LedgerId, Vec<(EntryId, Bytes)>);

/// What is asked of the owner.
pub(super) enum Command {
    Delete {
        ledger: LedgerId,
        deleted: oneshot::Sender<Result<(), Refusal>>,
    },
    Move {
        moves: Vec<Move>,
        done: oneshot::Sender<()>,
    },
    Restate {
        ledgers: Vec<LedgerId>,
        segment: SegmentNumber,
        done: oneshot::Sender<()>,
    },
    Checkpoint {
        done: oneshot::Sender<()>,
    },
    /// Of which ledgers in memory there is something that could be deleted, none if only the index
    /// can tell; and the index.
    OfUse {
        ledgers: Vec<LedgerId>,
        of_use: oneshot::Sender<(Vec<Option<bool>>, Index)>,
    },
    Verified {
        segment: SegmentNumber,
        at_ms: u64,
    },
}

/// What comes back when it is on disk.
pub(super) enum Token {
    Moved(LedgerId, Vec<EntryId>),
    /// With the segment that the records were in, after the last one of the ledger.
    Restated(LedgerId, Option<SegmentNumber>),
    Dropped(SegmentNumber),
    Done(oneshot::Sender<()>),
}

/// What of it is under way.
#[derive(Default)]
pub(super) struct Upkeep {
    /// Who waits for a checkpoint that has not begun, and for the one that runs.
    waiting: Vec<oneshot::Sender<()>>,
    served: Vec<oneshot::Sender<()>>,
    /// The segments whose end is under way to the log.
    dropping: BTreeSet<SegmentNumber>,
}

impl Store {
    /// Notes that a ledger was deleted, durably; nothing of it is given out or taken from then on,
    /// and its entries are dead.
    pub(crate) async fn delete(&self, ledger: LedgerId) -> Result<(), Refusal> {
        self.upkeep(|deleted| Command::Delete { ledger, deleted }).await?
    }

    /// Returns those of some ledgers of which something is here, or on its way, that is of use as
    /// long as they are not deleted.
    pub(crate) async fn of_use(&self, ledgers: Vec<LedgerId>) -> Result<Vec<LedgerId>, Refusal> {
        let asked = ledgers.clone();
        let (known, index) =
            self.upkeep(|of_use| Command::OfUse { ledgers: asked, of_use }).await?;
        let find = move |index: &Index| {
            let mut found = Vec::new();
            for (id, known) in ledgers.into_iter().zip(known) {
                let indexed = || index.ledger(id).map(|it| it.is_some_and(|it| !it.deleted));
                if known.map_or_else(indexed, Ok)? {
                    found.push(id);
                }
            }
            Ok(found)
        };
        self.indexed(index, find).await
    }

    /// Brings the index up to what is durable now. What is dead then, is dropped.
    pub(crate) async fn checkpoint(&self) -> Result<(), Refusal> {
        self.upkeep(|done| Command::Checkpoint { done }).await
    }

    /// Writes entries again, which are on disk; those of one ledger are at most
    /// [`APPEND_BYTES_MAX`](crate::log::APPEND_BYTES_MAX) in the log. They are found where they are
    /// then, unless their ledger was deleted.
    pub(super) async fn move_entries(&self, moves: Vec<Move>) -> Result<(), Refusal> {
        self.upkeep(|done| Command::Move { moves, done }).await
    }

    /// Writes those records of ledgers again that are no entries, if there are any in this segment.
    pub(super) async fn restate(
        &self,
        ledgers: Vec<LedgerId>,
        segment: SegmentNumber,
    ) -> Result<(), Refusal> {
        self.upkeep(|done| Command::Restate { ledgers, segment, done }).await
    }

    /// Notes when a segment was read and found whole, in milliseconds since 1970. It is in the
    /// index after the next checkpoint.
    pub(crate) async fn verified(&self, segment: SegmentNumber, at_ms: u64) -> Result<(), Refusal> {
        let command = Command::Verified { segment, at_ms };
        self.commands.send(super::Command::Upkeep(command)).await.map_err(|_| stopped())
    }

    /// Returns what was known of the segments at the last checkpoint, and the one that grew then;
    /// none before the first, and none of a log that has lost something.
    pub(crate) async fn segments(
        &self,
    ) -> Result<Option<(BTreeMap<SegmentNumber, SegmentInfo>, SegmentNumber)>, Refusal> {
        let read = move |index: &Index| {
            // In this order: a segment that grew then has ended at most.
            let (known, damaged) = (index.known()?, index.is_damaged()?);
            let Some(known) = known.filter(|_| !damaged) else { return Ok(None) };
            Ok(Some((index.segments()?, known.mark.segment)))
        };
        self.indexed(self.index()?, read).await
    }

    async fn upkeep<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, Refusal> {
        self.ask(|done| super::Command::Upkeep(command(done))).await
    }
}

impl Owner {
    pub(super) async fn on_upkeep(&mut self, command: Command) {
        // Who asks for what is not done is told so by the end of its channel.
        if matches!(self.standing, Standing::Failed(_)) {
            return;
        }
        match command {
            Command::Delete { ledger, deleted } => match self.load(ledger).await {
                Ok(()) => self.feed(ledger, Reply::Delete(deleted), Gate::on_delete),
                Err(refusal) => drop(deleted.send(Err(refusal))),
            },
            Command::Move { moves, done } => {
                let ledgers = moves.iter().map(|(ledger, _)| *ledger);
                if self.load_all(ledgers).await {
                    moves.into_iter().for_each(|of_ledger| self.write_again(of_ledger));
                    self.tell_when_durable(done);
                }
            }
            Command::Restate { ledgers, segment, done } => {
                if self.load_all(ledgers.iter().copied()).await {
                    ledgers.into_iter().for_each(|ledger| self.restate(ledger, segment));
                    self.tell_when_durable(done);
                }
            }
            Command::Checkpoint { done } => {
                self.upkeep.waiting.push(done);
                self.checkpoint_if_due();
            }
            Command::OfUse { ledgers, of_use } => {
                let known = ledgers.into_iter().map(|id| Some(self.ledgers.get(id)?.is_of_use()));
                let _ = of_use.send((known.collect(), self.indexing.index()));
            }
            Command::Verified { segment, at_ms } => self.indexing.on_verified(segment, at_ms),
        }
    }

    /// Gets all of some ledgers into memory before anything is written, so that what is written
    /// comes to the log together.
    async fn load_all(&mut self, ledgers: impl Iterator<Item = LedgerId>) -> bool {
        for ledger in ledgers {
            if self.load(ledger).await.is_err() {
                return false;
            }
        }
        true
    }

    fn write_again(&mut self, (ledger, entries): Move) {
        let (entries, payloads): (_, SmallVec<_>) = entries.into_iter().unzip();
        let token = Token::Moved(ledger, entries);
        self.ledgers.on_write(ledger);
        self.write(Append { kind: record::ENTRY, payloads, token });
    }

    fn restate(&mut self, ledger: LedgerId, segment: SegmentNumber) {
        let stored = self.ledgers.get(ledger).map(Ledger::stored);
        let Some(stored) = stored.filter(|stored| stored.state_segments.contains(&segment)) else {
            return;
        };
        let writer = stored.writer.clone().map(|(id, fragment)| Record::Writer { id, fragment });
        let fence = stored.fenced.then_some(Record::Fence);
        let tombstone = stored.deleted.then_some(Record::Tombstone);
        let mut records = writer.into_iter().chain(fence).chain(tombstone).peekable();
        while let Some(record) = records.next() {
            let (kind, payloads) = record::encode(ledger, &record);
            let instead_of = records.peek().is_none().then_some(segment);
            self.ledgers.on_write(ledger);
            self.write(Append { kind, payloads, token: Token::Restated(ledger, instead_of) });
        }
    }

    /// Tells when all that was written before is durable.
    fn tell_when_durable(&self, done: oneshot::Sender<()>) {
        self.write(Append { kind: 0, payloads: SmallVec::new(), token: Token::Done(done) });
    }

    fn write(&self, append: Append<Token>) {
        let Append { kind, payloads, token } = append;
        self.effects.log.push(Append { kind, payloads, token: owner::Token::Upkeep(token) });
    }

    pub(super) fn on_kept_up(&mut self, token: Token, places: &[Place]) {
        match token {
            Token::Moved(ledger, entries) => self.ledgers.on_moved(ledger, &entries, places),
            Token::Restated(ledger, instead_of) => {
                let is_at = places.iter().map(|place| place.segment);
                self.ledgers.on_restated(ledger, is_at, instead_of);
            }
            Token::Dropped(number) => {
                tracing::info!(segment = %number, "nothing in it was needed; it was dropped");
                self.indexing.on_dropped(number);
                self.reader.forget(number);
            }
            // Who waits may be gone.
            Token::Done(done) => drop(done.send(())),
        }
    }

    /// Tells who waited for the checkpoint, and drops what is dead. Of a log that has lost
    /// something nothing is dropped: what seems dead may be all that is left.
    pub(super) fn on_checkpointed(&mut self, indexed: &Indexed) {
        for done in mem::take(&mut self.upkeep.served) {
            let _ = done.send(());
        }
        if !matches!(self.standing, Standing::Sound) {
            return;
        }
        self.upkeep.dropping.retain(|number| indexed.segments.contains_key(number));
        for (&number, info) in &indexed.segments {
            let is_dead = info.is_dead() && number < indexed.growing;
            if is_dead && self.upkeep.dropping.insert(number) {
                let token = owner::Token::Upkeep(Token::Dropped(number));
                self.effects.log.push(Append::dropping(number, token));
            }
        }
    }
}

impl Upkeep {
    /// Says whether somebody waits for a checkpoint.
    pub(super) const fn wants_checkpoint(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Notes that there will be no checkpoint any more.
    pub(super) fn on_failed(&mut self) {
        *self = Self::default();
    }

    /// Notes that a checkpoint begins: it is the one that those have waited for.
    pub(super) fn on_checkpoint(&mut self) {
        self.served.append(&mut self.waiting);
    }
}
