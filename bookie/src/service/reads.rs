//! Streams of reads.

use bytes::BytesMut;
use inkfast_protocol::messages::{Read, kind};
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use inkfast_wire::{Frame, FrameReceiver, FrameSender, Frames, Stream};
use prost::Message;
use tokio::sync::{SemaphorePermit, mpsc};

use super::{BookieService, Served, UNSENT_BYTES_MAX, bad, refuse, send};
use crate::store::{Store, Wanted};
use crate::stores::Home;

/// The bytes of entries that one read takes from the disk before it sends them.
pub(super) const READ_BYTES_MAX: usize = 1 << 20;
/// How many runs of entries are read while the one before them is sent.
const RUNS_AHEAD_MAX: usize = 1;

/// Frames to be sent, and the room that their entries take until then.
pub(super) struct Unsent<'a> {
    pub(super) frames: Frames,
    pub(super) room: Option<SemaphorePermit<'a>>,
}

impl Unsent<'_> {
    pub(super) async fn send(self, sender: &mut FrameSender) -> Served {
        let Self { mut frames, room: _room } = self;
        send(sender, &mut frames).await
    }
}

impl BookieService {
    /// Answers read after read, each entry by itself and in order.
    pub(super) async fn serve_reads(&self, first: Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let (ahead, mut runs) = mpsc::channel::<Unsent<'_>>(RUNS_AHEAD_MAX);
        let reading = self.read_ahead(first, &mut receiver, ahead);
        let sending = async {
            while let Some(run) = runs.recv().await {
                run.send(&mut sender).await?;
            }
            Ok(())
        };
        match tokio::try_join!(reading, sending)?.0 {
            Ok(()) => {
                sender.finish();
                Ok(())
            }
            Err(refusal) => refuse(&mut sender, refusal).await,
        }
    }

    /// Reads what is asked for while what was read before it is sent, until the client asks for no
    /// more, or for what cannot be had.
    async fn read_ahead<'a>(
        &'a self,
        first: Frame,
        receiver: &mut FrameReceiver,
        ahead: mpsc::Sender<Unsent<'a>>,
    ) -> Result<Result<(), Refusal>, inkfast_wire::Error> {
        let mut request = Some(first);
        // The next read is most likely of the same ledger.
        let mut last = None;
        while let Some(frame) = request {
            let (home, ledger, wanted) = match self.locate(&frame).await {
                Ok(located) => located,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let home = last.insert(home);
            let mut wanted = wanted.into_iter().peekable();
            while wanted.peek().is_some() {
                // The other end goes only with an error, which ends this too.
                let Ok(place) = ahead.reserve().await else { return Ok(Ok(())) };
                let run = next_run(&mut wanted);
                let (entries, room) = self.read_run(home.store(), ledger, run).await;
                place.send(Unsent { frames: answers(entries), room });
            }
            request = receiver.next().await?;
        }
        Ok(Ok(()))
    }

    async fn locate(&self, request: &Frame) -> Result<(Home, LedgerId, Vec<Wanted>), Refusal> {
        if request.kind != kind::READ {
            return Err(bad("only reads go on a stream of reads"));
        }
        let request: Read = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        let home = self.home(ledger, request.fence).await?;
        let ids: Vec<_> = request.entries.into_iter().map(EntryId::new).collect();
        let places = home.store().locate(ledger, ids.clone()).await?;
        Ok((home, ledger, ids.into_iter().zip(places).collect()))
    }

    /// Reads what was located, as soon as there is room for it, and says of each entry what came
    /// of it, as [`Store::read`]. The room is to be held until that is sent. The caller limits how
    /// much it asks for.
    pub(super) async fn read_run(
        &self,
        store: &Store,
        ledger: LedgerId,
        run: Vec<Wanted>,
    ) -> (Vec<Result<BytesMut, Refusal>>, Option<SemaphorePermit<'_>>) {
        let bytes: usize = run.iter().map(bytes).sum();
        let bytes = u32::try_from(bytes.min(UNSENT_BYTES_MAX)).unwrap_or(u32::MAX);
        // Nobody closes the semaphore, so there will be room.
        let room = self.room.acquire_many(bytes).await.ok();
        (store.read(ledger, run).await, room)
    }
}

/// Takes as many entries as are read at once, at least one.
fn next_run(wanted: &mut impl Iterator<Item = Wanted>) -> Vec<Wanted> {
    let (mut run, mut run_bytes) = (Vec::new(), 0);
    while run_bytes < READ_BYTES_MAX
        && let Some(next) = wanted.next()
    {
        run_bytes += bytes(&next);
        run.push(next);
    }
    run
}

fn bytes((_, place): &Wanted) -> usize {
    place.as_ref().map_or(0, |place| place.payload_bytes as usize)
}

fn answers(entries: Vec<Result<BytesMut, Refusal>>) -> Frames {
    let mut frames = Frames::default();
    for entry in entries {
        match entry {
            Ok(entry) => frames.push_in_place(kind::ENTRY, entry),
            Err(refusal) => {
                frames.push(kind::REFUSED, &refusal.to_message().encode_to_vec().into());
            }
        }
    }
    frames
}
