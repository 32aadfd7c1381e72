//! Answers the calls of other members.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use inkfast_wire::Frame;
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use prost::Message;
use tokio::time::{Instant, sleep};

use super::codec::Coded;
use super::network::{
    KIND_APPEND, KIND_DONE, KIND_PRE_VOTE, KIND_REFUSED, KIND_SNAPSHOT_END, KIND_SNAPSHOT_PIECE,
    KIND_TRANSFER, KIND_VOTE, PieceMessage,
};
use super::types::{Raft, Snapshot, SnapshotMeta, Vote};
use crate::snapshot::{Incoming, SnapshotData};
use crate::store::Store;

/// How long the next piece of a snapshot is waited for.
const IDLE_DEADLINE: Duration = Duration::from_secs(60);
/// How often it is looked whether a snapshot has waited for too long.
const IDLE_INTERVAL: Duration = Duration::from_secs(5);

/// The snapshot that is being received: one at a time, a new one takes the place of an old one.
pub(crate) struct Receiving {
    store: Store,
    current: Mutex<Option<Current>>,
}

struct Current {
    snapshot: Bytes,
    /// The leader that sends it.
    vote: Vote,
    /// The piece that comes next.
    next: u64,
    /// When the last piece came.
    last: Instant,
    incoming: Incoming,
}

impl Receiving {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, current: Mutex::default() }
    }

    /// Gives up snapshots of which no more comes, with their files.
    pub(super) async fn end_idle(self: Arc<Self>) {
        loop {
            sleep(IDLE_INTERVAL).await;
            let idle = self.lock().take_if(|current| current.last.elapsed() >= IDLE_DEADLINE);
            if idle.is_some() {
                tracing::warn!("a snapshot has ended in the middle, and is given up");
            }
        }
    }

    /// Takes the next piece. A piece that comes twice, or after one that is missing, ends the
    /// snapshot: its leader begins another. Nothing is taken from an earlier leader.
    async fn add(&self, piece: PieceMessage) -> Result<(), String> {
        let vote = self.vote_of(&piece)?;
        let mut current = if piece.number == 0 {
            // The one before is given up first, with its file.
            drop(self.take());
            let incoming = self.store.receive().await.map_err(|error| error.to_string())?;
            Current { snapshot: piece.snapshot, vote, next: 0, last: Instant::now(), incoming }
        } else {
            self.expected(&piece)?
        };
        current.incoming.add(piece.data).await.map_err(|error| error.to_string())?;
        current.next += 1;
        current.last = Instant::now();
        *self.lock() = Some(current);
        Ok(())
    }

    /// Returns which leader sends a piece. Refuses one before the leader whose snapshot comes.
    fn vote_of(&self, piece: &PieceMessage) -> Result<Vote, String> {
        let vote = Vote::from_message(piece.vote.clone().unwrap_or_default());
        let vote = vote.map_err(|error| error.to_string())?;
        match &*self.lock() {
            Some(current) if vote < current.vote => Err("a later leader sends a snapshot".into()),
            _ => Ok(vote),
        }
    }

    fn expected(&self, piece: &PieceMessage) -> Result<Current, String> {
        let current = self
            .take()
            .filter(|current| (&current.snapshot, current.next) == (&piece.snapshot, piece.number));
        current.ok_or_else(|| "a piece of a snapshot that is not the next one".to_owned())
    }

    fn take(&self) -> Option<Current> {
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn answer(raft: &Raft, receiving: &Receiving, frame: Frame) -> Frame {
    let Frame { kind, body } = frame;
    let answered = match kind {
        KIND_VOTE => match VoteRequest::decode(body) {
            Ok(request) => words(raft.vote(request).await.map(|answer| answer.encode())),
            Err(error) => Err(error.to_string()),
        },
        KIND_PRE_VOTE => match VoteRequest::decode(body) {
            Ok(request) => words(raft.pre_vote(request).await.map(|answer| answer.encode())),
            Err(error) => Err(error.to_string()),
        },
        KIND_APPEND => match AppendEntriesRequest::decode(body) {
            Ok(request) => words(raft.append_entries(request).await.map(|answer| answer.encode())),
            Err(error) => Err(error.to_string()),
        },
        KIND_TRANSFER => transferred(raft, body).await,
        KIND_SNAPSHOT_PIECE => match PieceMessage::decode(body) {
            Ok(piece) => receiving.add(piece).await.map(|()| Vec::new()),
            Err(error) => Err(error.to_string()),
        },
        KIND_SNAPSHOT_END => installed(raft, receiving, body).await,
        _ => Err(format!("a frame of the unknown kind {kind}")),
    };
    match answered {
        Ok(body) => Frame { kind: KIND_DONE, body: body.into() },
        Err(why) => Frame { kind: KIND_REFUSED, body: why.into() },
    }
}

async fn transferred(raft: &Raft, body: Bytes) -> Result<Vec<u8>, String> {
    let request = TransferLeaderRequest::decode(body).map_err(|error| error.to_string())?;
    match raft.handle_transfer_leader(request).await {
        Ok(Ok(())) => Ok(Vec::new()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn installed(raft: &Raft, receiving: &Receiving, body: Bytes) -> Result<Vec<u8>, String> {
    let end = PieceMessage::decode(body).map_err(|error| error.to_string())?;
    let vote = receiving.vote_of(&end)?;
    let current = receiving.expected(&end)?;
    let meta = SnapshotMeta::from_message(end.meta.unwrap_or_default())
        .map_err(|error| error.to_string())?;
    let received = current.incoming.finish().await.map_err(|error| error.to_string())?;
    let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(received) };
    words(raft.install_full_snapshot(vote, snapshot).await.map(|answer| answer.encode()))
}

fn words<T>(answered: Result<T, impl ToString>) -> Result<T, String> {
    answered.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
