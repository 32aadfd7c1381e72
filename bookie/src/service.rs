//! The service: what a bookie does with a stream that a client opens.
//!
//! The messages are those of [`inkfast_protocol::messages`].

use std::sync::Arc;

use inkfast_protocol::messages::{Fence, LedgerState, kind};
use inkfast_protocol::{EntryId, Refusal};
use inkfast_wire::{Frame, FrameSender, Peer, Service, Stream};

use crate::store::Store;

mod adds;
mod reads;
mod tail;

/// Serves the streams of all clients.
#[derive(Clone)]
pub(crate) struct BookieService {
    pub(crate) store: Store,
}

impl Service for BookieService {
    async fn serve(&self, peer: Arc<Peer>, mut stream: Stream) {
        let served = match stream.receiver.next().await {
            Ok(Some(frame)) => match frame.kind {
                kind::OPEN_ADDS => self.serve_adds(&frame, stream).await,
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
        if request.fence {
            self.store.fence(ledger).await?;
        }
        let state = self.store.state(ledger).await?;
        let last_add_confirmed = state.last_add_confirmed.map(EntryId::get);
        Ok(LedgerState { last_add_confirmed, fenced: state.fenced })
    }
}

async fn refuse(sender: &mut FrameSender, refusal: Refusal) -> Served {
    sender.send(&Frame::message(kind::REFUSED, &refusal.to_message())).await?;
    sender.finish();
    Ok(())
}

fn bad(why: &str) -> Refusal {
    Refusal::BadRequest(why.to_owned())
}
