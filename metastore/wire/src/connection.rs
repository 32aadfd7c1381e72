//! A connection to a peer that both sides have found to be right.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use uuid::Uuid;

use crate::{Error, Frame, PeerName, Stream, error::CLOSE_DONE};

/// Says what the certificate and the handshake told about the other side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is, by its certificate.
    pub name: PeerName,
    /// Which instance of its data it has, by its own word.
    pub instance: Uuid,
    /// The version of the protocol that this connection uses.
    pub version: u32,
}

/// Reaches one peer that was called. Clones are the same connection; it ends when it is closed,
/// is lost, or the last clone and stream are dropped.
#[derive(Clone, Debug)]
pub struct Connection {
    quinn: quinn::Connection,
    peer: Arc<Peer>,
}

impl Connection {
    pub(crate) fn new(quinn: quinn::Connection, peer: Peer) -> Self {
        Self { quinn, peer: Arc::new(peer) }
    }

    /// Gives the peer at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Opens a stream. The peer hears of it with the first frame. Waits while the peer has as
    /// many of our streams open as it takes.
    pub async fn open(&self) -> Result<Stream, Error> {
        self.quinn.open_bi().await.map(Stream::new).map_err(Error::connection_lost)
    }

    /// Sends a frame and receives the one that answers it, on a stream of their own, all before
    /// `deadline` has passed.
    ///
    /// When it fails or is dropped, the stream is given up in both directions; the peer may have
    /// acted on the request.
    pub async fn request(&self, frame: Frame, deadline: Duration) -> Result<Frame, Error> {
        let exchange = async {
            let mut stream = self.open().await?;
            stream.sender.send(&frame).await?;
            stream.sender.end();
            let answer = stream.receiver.next().await?;
            stream.sender.finish();
            answer.ok_or_else(|| Error::malformed("the peer ended a request without an answer"))
        };
        timeout(deadline, exchange).await.map_err(|_| self.timed_out(deadline))?
    }

    /// Closes the connection at once and tells the peer why.
    pub fn close(&self, why: &str) {
        self.quinn.close(CLOSE_DONE, why.as_bytes());
    }

    /// Waits until the connection has ended and says how.
    pub async fn closed(&self) -> Error {
        Error::connection_lost(self.quinn.closed().await)
    }

    /// Says whether the connection is known to have ended.
    pub fn is_closed(&self) -> bool {
        self.quinn.close_reason().is_some()
    }

    fn timed_out(&self, deadline: Duration) -> Error {
        let (name, address) = (&self.peer.name, self.quinn.remote_address());
        Error::TimedOut { what: format!("a request to {name} at {address}, {deadline:?}") }
    }
}
