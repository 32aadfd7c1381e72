//! What gates want: records in the log, and answers to those who have asked.

use std::collections::VecDeque;

use inkfast_protocol::gate::{Action, Answer, Gate, Ticket};
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use tokio::sync::oneshot;

use super::ledgers::Ledger;
use super::owner::Token;
use super::{Outcome, Outcomes, Room, Written};
use crate::log::{Append, Appender};
use crate::record;

/// Does what gates want.
pub(super) struct Effects {
    pub(super) log: Appender<Token>,
    replies: Replies,
}

/// Where an answer goes.
pub(super) enum Reply {
    Add { adder: u32, written: Written, outcomes: Outcomes, room: Room },
    Fence(oneshot::Sender<Result<Option<EntryId>, Refusal>>),
    Delete(oneshot::Sender<Result<(), Refusal>>),
}

/// Who waits for the answers, by ticket. Whatever waits, waits for the log, so that they are
/// answered nearly in order.
#[derive(Default)]
struct Replies {
    /// The ticket of the first.
    first: Ticket,
    waiting: VecDeque<Option<Reply>>,
}

impl Effects {
    pub(super) fn new(log: Appender<Token>) -> Self {
        Self { log, replies: Replies::default() }
    }

    /// Says whether nobody waits for an answer.
    pub(super) fn is_done(&self) -> bool {
        self.replies.waiting.is_empty()
    }

    /// Puts a question to the gate of a ledger, and does what it wants.
    pub(super) fn feed(
        &mut self,
        (id, ledger): (LedgerId, &mut Ledger),
        reply: Reply,
        question: impl FnOnce(&mut Gate, Ticket),
    ) {
        let ticket = self.replies.put(reply);
        question(&mut ledger.gate, ticket);
        self.act(id, ledger);
    }

    /// Does what the gate of a ledger wants.
    pub(super) fn act(&mut self, id: LedgerId, ledger: &mut Ledger) {
        while let Some(action) = ledger.next_action() {
            match action {
                Action::Write(record) => {
                    let (kind, payloads) = record::encode(id, &record);
                    self.log.push(Append { kind, payloads, token: Token::Gate(id, record) });
                }
                Action::Answer(ticket, answer) => {
                    if let Some(reply) = self.replies.take(ticket) {
                        reply.send(answer);
                    }
                }
            }
        }
    }
}

impl Reply {
    pub(super) fn send(self, answer: Answer) {
        match self {
            Self::Add { adder, written, outcomes, room } => {
                let result = answer.done().map(|()| written);
                // The stream may be gone.
                let _ = outcomes.send(Outcome { adder, result, _room: room });
            }
            Self::Fence(fenced) => {
                let _ = fenced.send(match answer {
                    Answer::Fenced { last_add_confirmed } => Ok(last_add_confirmed),
                    Answer::Refused(refusal) => Err(refusal),
                    _ => Err(Refusal::Unknown("no fence was asked for".to_owned())),
                });
            }
            Self::Delete(deleted) => {
                let _ = deleted.send(answer.done());
            }
        }
    }
}

impl Replies {
    fn put(&mut self, reply: Reply) -> Ticket {
        self.waiting.push_back(Some(reply));
        self.first + self.waiting.len() as u64 - 1
    }

    fn take(&mut self, ticket: Ticket) -> Option<Reply> {
        let position = usize::try_from(ticket.checked_sub(self.first)?).ok()?;
        let reply = self.waiting.get_mut(position)?.take();
        while self.waiting.pop_front_if(|first| first.is_none()).is_some() {
            self.first += 1;
        }
        reply
    }
}
