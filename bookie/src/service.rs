//! The service: what a bookie does with a stream that a client opens.
//!
//! The messages are those of [`inkfast_protocol::messages`].

use std::sync::Arc;
use std::time::Duration;

use inkfast_protocol::messages::{Fence, LedgerState, kind};
use inkfast_protocol::{EntryId, LedgerId, Refusal};
use inkfast_wire::{Frame, FrameSender, Frames, Peer, Service, Stream};
use prost::Message;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::stores::{Home, Stores};

mod adds;
mod reads;
mod tail;

/// The bytes of entries that were read for one connection and are not sent yet, at most. Each
/// connection has room of its own, so that a slow client delays itself only.
const UNSENT_BYTES_MAX: usize = 8 << 20;
/// How long an answer may wait until its connection takes it. A stream that its client does not read
/// is given up then: it holds room that others need.
const SEND_DEADLINE: Duration = Duration::from_secs(30);

/// Serves the streams of one connection.
#[derive(Clone)]
pub(crate) struct BookieService {
    stores: Stores,
    /// For entries, from before they are read until they are sent.
    room: Arc<Semaphore>,
}

impl Service for BookieService {
    fn for_connection(&self) -> Self {
        Self::new(self.stores.clone())
    }

    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        let served = match stream.receiver.next().await {
            Ok(Some(frame)) => match frame.kind {
                kind::OPEN_ADDS => self.serve_adds(frame, stream).await,
                kind::READ => self.serve_reads(frame, stream).await,
                kind::FENCE => self.serve_fence(&frame, stream).await,
                kind::TAIL => self.serve_tail(&frame, stream).await,
                other => {
                    refuse(&mut stream.sender, bad(&format!("no request has kind {other}"))).await
                }
            },
            Ok(None) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            // Clients come and go; that is no fault of ours.
            tracing::debug!(peer = %peer.name.name, %error, "a stream has ended");
        }
    }
}

type Served = Result<(), inkfast_wire::Error>;

impl BookieService {
    pub(crate) fn new(stores: Stores) -> Self {
        Self { stores, room: Arc::new(Semaphore::new(UNSENT_BYTES_MAX)) }
    }

    async fn serve_fence(&self, request: &Frame, mut stream: Stream) -> Served {
        match self.fence(request).await {
            Ok(state) => {
                stream.sender.send(&Frame::message(kind::STATE, &state)).await?;
                stream.sender.finish();
                Ok(())
            }
            Err(refusal) => refuse(&mut stream.sender, refusal).await,
        }
    }

    async fn fence(&self, request: &Frame) -> Result<LedgerState, Refusal> {
        let request: Fence = request.decode().map_err(|error| bad(&error.to_string()))?;
        let ledger = request.parse()?;
        let home = self.home(ledger, request.fence).await?;
        let state = home.store().state(ledger).await?;
        let last_add_confirmed = state.last_add_confirmed.map(EntryId::get);
        Ok(LedgerState { last_add_confirmed, fenced: state.fenced })
    }

    /// Returns where a ledger is to be asked for, fenced if that is wanted.
    async fn home(&self, ledger: LedgerId, fence: bool) -> Result<Home, Refusal> {
        if !fence {
            return self.stores.find(ledger).await;
        }
        let home = self.stores.home(ledger).await?;
        home.store().fence(ledger).await?;
        Ok(home)
    }
}

/// Sends frames to a client, which has to read them in time.
async fn send(sender: &mut FrameSender, frames: &mut Frames) -> Served {
    let late = |_| inkfast_wire::Error::TimedOut { what: "the client's reading".to_owned() };
    timeout(SEND_DEADLINE, sender.send_encoded(&mut frames.take())).await.map_err(late)?
}

async fn refuse(sender: &mut FrameSender, refusal: Refusal) -> Served {
    let mut frames = Frames::default();
    frames.push(kind::REFUSED, &refusal.to_message().encode_to_vec().into());
    send(sender, &mut frames).await?;
    sender.finish();
    Ok(())
}

fn bad(why: &str) -> Refusal {
    Refusal::BadRequest(why.to_owned())
}

#[cfg(test)]
mod tests;
