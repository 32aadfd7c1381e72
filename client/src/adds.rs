//! One stream of adds to one bookie: a writer's, or a recovery's write-backs.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use inkfast_protocol::messages::{Added, OpenAdds, encode_tenure, kind};
use inkfast_protocol::{BookieId, EntryId, Refusal, Tenure};
use inkfast_wire::{FrameReceiver, FrameSender, Frames};
use prost::Message;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, sleep_until, timeout};

use crate::bookies::{Bookies, Traffic, refusal, unreachable, within};
use crate::outbox::Outlet;

/// A deadline that is missed by as much was slept through: this process stood still.
const STOOD_STILL: Duration = Duration::from_secs(1);

/// What the stream is for.
pub(crate) struct Adds {
    pub(crate) bookie: BookieId,
    pub(crate) open: OpenAdds,
    pub(crate) tenure: Tenure,
    /// The fragment's number in the ledger's metadata.
    pub(crate) fragment: u32,
}

/// What has been sent and is not answered, in ascending order, and when it went out.
#[derive(Default)]
struct Unanswered {
    entries: Mutex<VecDeque<(EntryId, Instant)>>,
    sent: Notify,
}

/// Sends what comes out of the outlet, and tells each acknowledgement, until the outbox is closed:
/// whoever closes it waits for no more answers. Returns why it ended early: the bookie
/// refused, could not be reached, or did not answer within the add deadline.
pub(crate) async fn run(
    bookies: &Bookies,
    adds: Adds,
    mut outlet: Outlet,
    mut on_added: impl FnMut(Added),
) -> Result<(), Refusal> {
    let deadline = bookies.deadlines().add;
    let opened = within(deadline, async {
        let mut stream = bookies.open(adds.bookie, Traffic::Adds).await?;
        let tenure = Bytes::copy_from_slice(&encode_tenure(adds.tenure, adds.fragment));
        let mut frames = Frames::default();
        frames.push(kind::OPEN_ADDS, &adds.open.encode_to_vec().into());
        frames.push(kind::TENURE, &tenure);
        stream.sender.send_encoded(&mut frames.take()).await.map_err(unreachable)?;
        Ok(stream)
    });
    let mut stream = opened.await?;
    let unanswered = Unanswered::default();
    let receive = receive(&mut stream.receiver, &unanswered, deadline, &mut on_added);
    let mut receive = pin!(receive);
    // Both at once: answers must be taken while QUIC makes us wait.
    tokio::select! {
        biased;
        ended = &mut receive => return ended,
        sent = send(&mut stream.sender, &mut outlet, &unanswered, deadline) => if let Err(refusal) = sent {
            // A bookie that refuses stops reading too: its own words are on their way.
            let said = timeout(deadline, receive).await;
            return said.unwrap_or(Err(refusal));
        },
    }
    stream.sender.finish();
    Ok(())
}

async fn send(
    sender: &mut FrameSender,
    outlet: &mut Outlet,
    unanswered: &Unanswered,
    deadline: Duration,
) -> Result<(), Refusal> {
    while let Some(batch) = outlet.next().await {
        unanswered.add(batch.entries());
        let sent = timeout(deadline, sender.send_encoded(&mut batch.frames())).await;
        sent.map_err(|_| late(deadline))?.map_err(unreachable)?;
        // Only here is the batch dropped: its room is taken until QUIC has the bytes.
    }
    Ok(())
}

async fn receive(
    receiver: &mut FrameReceiver,
    unanswered: &Unanswered,
    deadline: Duration,
    on_added: &mut impl FnMut(Added),
) -> Result<(), Refusal> {
    loop {
        let oldest = unanswered.lock().front().map(|(_, sent_at)| *sent_at);
        let due = oldest.map_or_else(Instant::now, |sent_at| sent_at + deadline);
        let frame = tokio::select! {
            biased;
            frame = receiver.next() => frame.map_err(unreachable)?,
            () = sleep_until(due), if oldest.is_some() => {
                if due.elapsed() < STOOD_STILL {
                    return Err(late(deadline));
                }
                // It is we who did not listen: the answer may have come long ago.
                unanswered.begin_anew();
                continue;
            }
            () = unanswered.sent.notified(), if oldest.is_none() => continue,
        };
        let Some(frame) = frame else {
            return Err(Refusal::Unknown("the bookie ended the stream of adds".to_owned()));
        };
        if frame.kind != kind::ADDED {
            return Err(refusal(&frame));
        }
        let added = Added::decode(&frame.body)
            .ok_or_else(|| Refusal::Unknown("the acknowledgement is too short".to_owned()))?;
        unanswered.remove(added.first, added.last);
        on_added(added);
    }
}

impl Unanswered {
    /// Counts entries as sent just now.
    fn add(&self, sent: impl Iterator<Item = EntryId>) {
        let now = Instant::now();
        self.lock().extend(sent.map(|entry| (entry, now)));
        self.sent.notify_one();
    }

    /// Removes a run. Runs mostly come in order, but an entry that was there already is answered
    /// before those in front of it.
    fn remove(&self, first: EntryId, last: EntryId) {
        let mut entries = self.lock();
        let from = entries.partition_point(|(entry, _)| *entry < first);
        let to = entries.partition_point(|(entry, _)| *entry <= last);
        entries.drain(from..to.max(from));
    }

    /// Counts all of them as sent just now.
    fn begin_anew(&self) {
        let now = Instant::now();
        self.lock().iter_mut().for_each(|(_, sent_at)| *sent_at = now);
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<(EntryId, Instant)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn late(deadline: Duration) -> Refusal {
    Refusal::Unknown(format!("an add was not answered within {deadline:?}"))
}
