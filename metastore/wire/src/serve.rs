//! Answering those who call.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{Endpoint, Error, Peer, Stream, error::CLOSE_REFUSED, handshake};

/// Connections that are served at a time; further callers are refused.
const CONNECTIONS_MAX: usize = 1024;

/// Callers that may be in their handshake at a time; further ones are refused, and may try again.
const HANDSHAKES_MAX: usize = 128;

/// How long a caller may take until it is let in.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(2);

/// Answers callers, a stream at a time.
pub trait Service: Clone + Send + Sync + 'static {
    /// Returns what serves one more connection: by default a clone, which may be given what the
    /// streams of that connection share.
    fn for_connection(&self) -> Self {
        self.clone()
    }

    /// Serves a stream that a caller opened, until either side ends it.
    ///
    /// Each stream is a task of its own. The future is dropped when the connection is lost or
    /// the endpoint closed, wherever it stands: work that must not be cut short belongs in a
    /// task that outlives it.
    fn serve(&self, peer: Arc<Peer>, stream: Stream) -> impl Future<Output = ()> + Send;
}

/// Lets callers in and serves their streams, until the endpoint is closed or the future dropped.
///
/// A caller who sends garbage, or stalls, costs itself its stream or its connection, and nobody
/// else anything. At most 1024 connections are served and 128 handshakes are under way at a
/// time; who comes on top is refused.
pub async fn serve<S: Service>(endpoint: Endpoint, service: S) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { return };
        let permit = handshakes.clone().try_acquire_owned();
        match permit {
            Ok(permit) if connections.len() < CONNECTIONS_MAX => {
                let (endpoint, service) = (endpoint.clone(), service.for_connection());
                connections.spawn(serve_connection(endpoint, incoming, service, permit));
            }
            _ => {
                tracing::info!(
                    address = %incoming.remote_address(),
                    "a caller is refused: too many connections or handshakes"
                );
                incoming.refuse();
            }
        }
    }
}

async fn serve_connection<S: Service>(
    endpoint: Endpoint,
    incoming: quinn::Incoming,
    service: S,
    permit: OwnedSemaphorePermit,
) {
    let address = incoming.remote_address();
    let (quinn, peer) = match let_in(&endpoint, incoming).await {
        Ok(let_in) => let_in,
        Err(error) => {
            tracing::info!(%address, %error, "a caller is not let in");
            return;
        }
    };
    drop(permit);
    tracing::debug!(%address, peer = %peer.name, "a caller is let in");
    let mut streams = JoinSet::new();
    let error = loop {
        tokio::select! {
            stream = quinn.accept_bi() => match stream {
                Ok(stream) => {
                    let (service, peer) = (service.clone(), peer.clone());
                    streams.spawn(async move { service.serve(peer, Stream::new(stream)).await });
                }
                Err(error) => break error,
            },
            Some(_) = streams.join_next() => {}
        }
    };
    tracing::debug!(%address, peer = %peer.name, %error, "a caller is gone");
}

/// TLS and the handshake, under one deadline.
async fn let_in(
    endpoint: &Endpoint,
    incoming: quinn::Incoming,
) -> Result<(quinn::Connection, Arc<Peer>), Error> {
    let late = || Error::TimedOut { what: format!("the handshake, {HANDSHAKE_DEADLINE:?}") };
    let deadline = Instant::now() + HANDSHAKE_DEADLINE;
    let quinn = timeout_at(deadline, incoming)
        .await
        .map_err(|_| late())?
        .map_err(Error::connection_lost)?;
    match timeout_at(deadline, handshake::answer(endpoint, &quinn)).await {
        Ok(peer) => Ok((quinn, peer?)),
        Err(_) => {
            quinn.close(CLOSE_REFUSED, late().to_string().as_bytes());
            Err(late())
        }
    }
}
