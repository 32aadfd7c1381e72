//! One stream of reads from one bookie: a reader's, or a recovery's.

use std::collections::VecDeque;
use std::mem;

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
///
/// What is asked for together goes out together, and what has come together is told together: that
/// is what has arrived in few datagrams, or one large entry.
pub(crate) async fn run(
    bookies: Bookies,
    reads: Reads,
    mut queue: mpsc::Receiver<Vec<EntryId>>,
    answers: mpsc::Sender<Vec<Answer>>,
) {
    let mut asked = VecDeque::new();
    let Err(refusal) = read(&bookies, reads, &mut queue, &mut asked, &answers).await else {
        return;
    };
    queue.close();
    while let Ok(entries) = queue.try_recv() {
        asked.extend(entries);
    }
    let answer = |entry| {
        let copy = Err(refusal.clone());
        Answer { bookie: reads.bookie, entry, copy, silent: true }
    };
    // Nobody may want to know any more.
    let _ = answers.send(asked.into_iter().map(answer).collect()).await;
}

async fn read(
    bookies: &Bookies,
    reads: Reads,
    queue: &mut mpsc::Receiver<Vec<EntryId>>,
    asked: &mut VecDeque<EntryId>,
    answers: &mpsc::Sender<Vec<Answer>>,
) -> Result<(), Refusal> {
    let deadline = bookies.deadlines().read;
    let mut stream = within(deadline, bookies.open(reads.bookie, Traffic::Reads)).await?;
    let mut come = Vec::new();
    let mut waiting_since = Instant::now();
    let mut closed = false;
    while !(closed && asked.is_empty()) {
        let silence = tokio::time::sleep_until(waiting_since + deadline);
        tokio::select! {
            entries = queue.recv(), if !closed => {
                let Some(entries) = entries else {
                    closed = true;
                    continue;
                };
                if asked.is_empty() {
                    waiting_since = Instant::now();
                }
                asked.extend(&entries);
                within(deadline, ask(&mut stream.sender, reads, &entries)).await?;
            }
            took = take(&mut stream.receiver, reads, asked, &mut come), if !asked.is_empty() => {
                if !come.is_empty() && answers.send(mem::take(&mut come)).await.is_err() {
                    return Ok(());
                }
                took?;
                waiting_since = Instant::now();
            }
            () = silence, if !asked.is_empty() => {
                return Err(Refusal::Unknown(format!("no answer within {deadline:?}")));
            }
        }
    }
    Ok(())
}

async fn ask(sender: &mut FrameSender, reads: Reads, entries: &[EntryId]) -> Result<(), Refusal> {
    for entries in entries.chunks(READ_ENTRIES_MAX) {
        let entries = entries.iter().map(|entry| entry.get()).collect();
        let read = Read { ledger: reads.ledger.get(), entries, fence: reads.fence };
        sender.send(&Frame::message(kind::READ, &read)).await.map_err(unreachable)?;
    }
    Ok(())
}

/// Waits for an answer, and takes with it those that have come too. May be dropped at any time
/// without losing anything. An error is silence, from the first entry on that has no answer.
async fn take(
    receiver: &mut FrameReceiver,
    reads: Reads,
    asked: &mut VecDeque<EntryId>,
    come: &mut Vec<Answer>,
) -> Result<(), Refusal> {
    let mut next = receiver.next().await.map_err(unreachable)?;
    if next.is_none() {
        return Err(Refusal::Unknown("the bookie ended the stream of reads".to_owned()));
    }
    while let (Some(frame), Some(entry)) = (next.take(), asked.front().copied()) {
        let copy = match frame.kind {
            kind::ENTRY => Entry::decode_as(reads.ledger, entry, frame.body)
                .map_err(|error| Refusal::Corrupt(error.to_string())),
            kind::REFUSED => Err(refusal(&frame)),
            _ => return Err(refusal(&frame)),
        };
        asked.pop_front();
        come.push(Answer { bookie: reads.bookie, entry, copy, silent: false });
        if !asked.is_empty() {
            next = receiver.next_buffered().map_err(unreachable)?;
        }
    }
    Ok(())
}
