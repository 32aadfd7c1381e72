//! Streams of reads.

use bytes::Bytes;
use inkfast_protocol::messages::{Read, kind};
use inkfast_protocol::{EntryId, Refusal};
use inkfast_wire::{Frame, FrameSender, Frames, Stream};
use prost::Message;
use tokio::sync::SemaphorePermit;

use super::{BookieService, Served, UNSENT_BYTES_MAX, bad, refuse, send};
use crate::log::{Place, ReadError};
use crate::store::Store;
use crate::stores::Home;

/// Entries that were located: where each is, or why it cannot be said.
type Places = Vec<Result<Place, Refusal>>;

/// The bytes of entries that one read takes from the disk before it sends them.
pub(super) const READ_BYTES_MAX: usize = 1 << 20;

impl BookieService {
    /// Answers read after read, each entry by itself and in order.
    pub(super) async fn serve_reads(&self, first: Frame, stream: Stream) -> Served {
        let Stream { mut sender, mut receiver } = stream;
        let mut request = Some(first);
        // The next read is most likely of the same ledger.
        let mut last = None;
        while let Some(frame) = request {
            if frame.kind != kind::READ {
                return refuse(&mut sender, bad("only reads go on a stream of reads")).await;
            }
            match self.locate(&frame).await {
                Ok((home, places)) => {
                    let home = last.insert(home);
                    self.send_entries(home.store(), places, &mut sender).await?;
                }
                Err(refusal) => return refuse(&mut sender, refusal).await,
            }
            request = receiver.next().await?;
        }
        sender.finish();
        Ok(())
    }

    async fn locate(&self, request: &Frame) -> Result<(Home, Places), Refusal> {
        let request: Read = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        let home = self.home(ledger, request.fence).await?;
        let entries = request.entries.into_iter().map(EntryId::new).collect();
        let places = home.store().locate(ledger, entries).await?;
        Ok((home, places))
    }

    async fn send_entries(
        &self,
        store: &Store,
        places: Places,
        sender: &mut FrameSender,
    ) -> Served {
        let mut places = places.into_iter().peekable();
        while places.peek().is_some() {
            let mut bytes = 0;
            let mut run = Places::new();
            while bytes < READ_BYTES_MAX
                && let Some(place) = places.next()
            {
                bytes += place.as_ref().map_or(0, |place| place.payload_bytes as usize);
                run.push(place);
            }
            let mut frames = Frames::default();
            let (entries, _room) = self.read_run(store, run).await;
            for entry in entries {
                match entry {
                    Ok(entry) => frames.push(kind::ENTRY, &entry),
                    Err(refusal) => {
                        frames.push(kind::REFUSED, &refusal.to_message().encode_to_vec().into());
                    }
                }
            }
            send(sender, &mut frames).await?;
        }
        Ok(())
    }

    /// Reads what was located, as soon as there is room for it, and says of each entry what came
    /// of it. The room is to be held until that is sent. The caller limits how much it asks for.
    pub(super) async fn read_run(
        &self,
        store: &Store,
        run: Places,
    ) -> (Vec<Result<Bytes, Refusal>>, Option<SemaphorePermit<'_>>) {
        let found: Vec<_> = run.iter().filter_map(|place| place.as_ref().ok().copied()).collect();
        let bytes: usize = found.iter().map(|place| place.payload_bytes as usize).sum();
        let bytes = u32::try_from(bytes.min(UNSENT_BYTES_MAX)).unwrap_or(u32::MAX);
        // Nobody closes the semaphore, so there will be room.
        let room = self.room.acquire_many(bytes).await.ok();
        let mut read = store.reader().read_many(found).await.into_iter();
        let entry = |place: Result<Place, Refusal>| match place {
            Ok(_) => read.next().map_or_else(|| Err(unread()), |read| read.map_err(said)),
            Err(refusal) => Err(refusal),
        };
        (run.into_iter().map(entry).collect(), room)
    }
}

/// A copy that is there and cannot be read is not absent.
fn said(error: ReadError) -> Refusal {
    match error {
        ReadError::Corrupt { .. } => Refusal::Corrupt(error.to_string()),
        ReadError::Log(_) => Refusal::Unknown(error.to_string()),
    }
}

fn unread() -> Refusal {
    Refusal::Unknown("the copy was not read".to_owned())
}
