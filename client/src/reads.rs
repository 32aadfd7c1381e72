//! One stream of reads from one bookie: a reader's, or a recovery's.

use std::collections::VecDeque;

use inkfast_protocol::messages::{READ_ENTRIES_MAX, Read, kind};
use inkfast_protocol::{BookieId, Entry, EntryId, LedgerId, Refusal};
use inkfast_wire::{Frame, FrameReceiver, FrameSender};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::bookies::{Bookies, Traffic, refusal, unreachable, within};

/// What the stream is for.
#[derive(Clone, Copy)]
pub(crate) struct Reads {
    pub(crate) bookie: BookieId,
    pub(crate) ledger: LedgerId,
    /// Whether each read fences the ledger first.
    pub(crate) fence: bool,
}

/// What came of one entry that was asked for.
pub(crate) struct Answer {
    pub(crate) bookie: BookieId,
    pub(crate) entry: EntryId,
    pub(crate) copy: Result<Entry, Refusal>,
    /// Whether the bookie did not say so itself: it is silent.
    pub(crate) silent: bool,
}

/// Asks for the entries of the queue and tells of each what came of it, exactly once, until the
/// queue is closed, or the bookie is silent for longer than the read deadline.
pub(crate) async fn run(
    bookies: Bookies,
    reads: Reads,
    mut queue: mpsc::Receiver<EntryId>,
    answers: mpsc::Sender<Answer>,
) {
    let mut asked = VecDeque::new();
    let Err(refusal) = read(&bookies, reads, &mut queue, &mut asked, &answers).await else {
        return;
    };
    queue.close();
    while let Ok(entry) = queue.try_recv() {
        asked.push_back(entry);
    }
    for entry in asked {
        let copy = Err(refusal.clone());
        let answer = Answer { bookie: reads.bookie, entry, copy, silent: true };
        if answers.send(answer).await.is_err() {
            return;
        }
    }
}

async fn read(
    bookies: &Bookies,
    reads: Reads,
    queue: &mut mpsc::Receiver<EntryId>,
    asked: &mut VecDeque<EntryId>,
    answers: &mpsc::Sender<Answer>,
) -> Result<(), Refusal> {
    let deadline = bookies.deadlines().read;
    let mut stream = within(deadline, bookies.open(reads.bookie, Traffic::Reads)).await?;
    let mut batch = Vec::new();
    let mut waiting_since = Instant::now();
    let mut closed = false;
    while !(closed && asked.is_empty()) {
        let silence = tokio::time::sleep_until(waiting_since + deadline);
        tokio::select! {
            count = queue.recv_many(&mut batch, READ_ENTRIES_MAX), if !closed => {
                closed = count == 0;
                if closed {
                    continue;
                }
                if asked.is_empty() {
                    waiting_since = Instant::now();
                }
                asked.extend(&batch);
                within(deadline, ask(&mut stream.sender, reads, &mut batch)).await?;
            }
            answer = next(&mut stream.receiver), if !asked.is_empty() => {
                let Some(entry) = asked.front().copied() else { continue };
                let copy = match answer? {
                    Ok(bytes) => Entry::decode_as(reads.ledger, entry, bytes)
                        .map_err(|error| Refusal::Corrupt(error.to_string())),
                    Err(refusal) => Err(refusal),
                };
                asked.pop_front();
                let answer = Answer { bookie: reads.bookie, entry, copy, silent: false };
                if answers.send(answer).await.is_err() {
                    return Ok(());
                }
                waiting_since = Instant::now();
            }
            () = silence, if !asked.is_empty() => {
                return Err(Refusal::Unknown(format!("no answer within {deadline:?}")));
            }
        }
    }
    Ok(())
}

async fn ask(
    sender: &mut FrameSender,
    reads: Reads,
    batch: &mut Vec<EntryId>,
) -> Result<(), Refusal> {
    let entries = batch.drain(..).map(EntryId::get).collect();
    let read = Read { ledger: reads.ledger.get(), entries, fence: reads.fence };
    sender.send(&Frame::message(kind::READ, &read)).await.map_err(unreachable)
}

/// Returns the next answer: the entry's bytes or a refusal. An error is silence.
async fn next(receiver: &mut FrameReceiver) -> Result<Result<bytes::Bytes, Refusal>, Refusal> {
    match receiver.next().await.map_err(unreachable)? {
        Some(frame) if frame.kind == kind::ENTRY => Ok(Ok(frame.body)),
        Some(frame) if frame.kind == kind::REFUSED => Ok(Err(refusal(&frame))),
        Some(frame) => Err(refusal(&frame)),
        None => Err(Refusal::Unknown("the bookie ended the stream of reads".to_owned())),
    }
}
