//! The state machine: applies what is committed to the state, and tells of it.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, TryStreamExt};
use inkfast_metastore::leases::Leases;
use inkfast_metastore::messages::decode_command;
use inkfast_metastore::rows::StateError;
use inkfast_metastore::state::{self, Answer, Operation};
use inkfast_metastore::watches::Watches;
use inkfast_metastore::{Change, LeaseId, Version};
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use tokio::time::Instant;

use super::Outcome;
use super::types::{
    Data, Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, Types, entry_bytes,
};
use crate::rows::WriteRows;
use crate::snapshot::SnapshotData;
use crate::store::{Amount, Store};

/// The most entries that are applied in one transaction.
const BATCH_ENTRIES_MAX: usize = 1024;
/// How many bytes of entries make a batch; the last entry comes on top.
const BATCH_BYTES_MAX: usize = 4 << 20;

/// Applies to a store what openraft says is committed.
pub(crate) struct Machine {
    store: Store,
    leases: Arc<Mutex<Leases>>,
    watches: Watches,
}

/// Makes snapshots of a store.
pub(crate) struct Builder(Store);

type Waiting = Option<ApplyResponder<Types>>;

/// What a batch of entries has done.
struct Applied {
    outcomes: Vec<Outcome>,
    changes: Vec<Change>,
    revision: Version,
}

impl Machine {
    /// Makes the machine of a store. The deadlines follow the leases that are granted and ended;
    /// the watches are told what was changed.
    pub(crate) fn new(store: Store, leases: Arc<Mutex<Leases>>, watches: Watches) -> Self {
        Self { store, leases, watches }
    }

    /// Applies a batch, and tells of it when readers see it: the watches, then those who asked.
    async fn apply_batch(
        &self,
        entries: Vec<Entry>,
        waiting: Vec<Waiting>,
        bytes: usize,
    ) -> Result<(), StateError> {
        let (leases, now) = (self.leases.clone(), Instant::now());
        let amount = Amount { entries: entries.len(), bytes };
        let applied = self
            .store
            .apply(amount, move |rows, meta| apply_all(rows, meta, entries, &leases, now))
            .await?;
        self.watches.publish(applied.changes, applied.revision);
        for (responder, outcome) in waiting.into_iter().zip(applied.outcomes) {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.store.applied().await.map_err(io::Error::other)?;
        Ok((applied.last_log_id, applied.last_membership))
    }

    async fn apply<Strm>(&mut self, mut stream: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        loop {
            let (mut entries, mut waiting, mut bytes) = (Vec::new(), Vec::new(), 0);
            while entries.len() < BATCH_ENTRIES_MAX
                && bytes < BATCH_BYTES_MAX
                && let Some((entry, responder)) = stream.try_next().await?
            {
                bytes += entry_bytes(&entry);
                entries.push(entry);
                waiting.push(responder);
            }
            if entries.is_empty() {
                return Ok(());
            }
            self.apply_batch(entries, waiting, bytes).await.map_err(io::Error::other)?;
        }
    }

    /// Makes no snapshot while another is being sent, as long as the log may grow: whoever receives
    /// that one needs the log after it, which the next one would let be purged.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        (force || !self.store.keeps_log()).then(|| Builder(self.store.clone()))
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(self.store.clone())
    }

    /// Puts another state in the place of this one. What led to it is not known, so watches that
    /// are behind are told so, and all leases have their whole TTL.
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> io::Result<()> {
        let received = match snapshot {
            SnapshotData::Received(received) => received,
            SnapshotData::View(mut view) => {
                let mut incoming = self.store.receive().await.map_err(io::Error::other)?;
                while let Some(chunk) = view.next().await.map_err(io::Error::other)? {
                    incoming.add(chunk).await.map_err(io::Error::other)?;
                }
                incoming.finish().await.map_err(io::Error::other)?
            }
        };
        let (store, now) = (&self.store, Instant::now());
        store.install(received, meta.clone()).await.map_err(io::Error::other)?;
        let read = store.read(move |rows| Ok((Leases::all(rows, now)?, state::revision(rows)?)));
        let (leases, revision) = read.await.map_err(io::Error::other)?;
        *self.leases.lock().unwrap_or_else(PoisonError::into_inner) = leases;
        self.watches.reset(revision);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let (meta, view) = self.store.view().await.map_err(io::Error::other)?;
        let snapshot = SnapshotData::View(view);
        Ok(meta.last_log_id.is_some().then_some(Snapshot { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotData;

    /// Says how much of the log is in the state on disk: so much may be purged.
    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let (meta, view) = self.0.view().await.map_err(io::Error::other)?;
        self.0.forgets_log();
        Ok(Snapshot { meta, snapshot: SnapshotData::View(view) })
    }
}

/// Applies entries in their order, and lets the deadlines follow the leases of the state.
fn apply_all(
    rows: &mut WriteRows<'_>,
    meta: &mut SnapshotMeta,
    entries: Vec<Entry>,
    leases: &Mutex<Leases>,
    now: Instant,
) -> Result<Applied, StateError> {
    let mut outcomes = Vec::with_capacity(entries.len());
    let (mut changes, mut renewed) = (Vec::new(), Vec::new());
    for entry in entries {
        let (outcome, ended) = apply_entry(rows, meta, entry, &mut changes)?;
        renewed.extend(ended);
        if let Ok(Answer::Granted(lease)) = outcome {
            renewed.push(lease);
        }
        outcomes.push(outcome);
    }
    let mut leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
    for lease in renewed {
        leases.follow(rows, lease, now)?;
    }
    Ok(Applied { outcomes, changes, revision: state::revision(rows)? })
}

/// Applies an entry, and returns its outcome and the lease that it was to end.
pub(crate) fn apply_entry(
    rows: &mut WriteRows<'_>,
    meta: &mut SnapshotMeta,
    entry: Entry,
    changes: &mut Vec<Change>,
) -> Result<(Outcome, Option<LeaseId>), StateError> {
    let log_id = entry.log_id;
    if let Some(last) = meta.last_log_id
        && log_id.index != last.index + 1
    {
        return Err(StateError(format!("the entry {log_id} comes after {last}")));
    }
    meta.last_log_id = Some(log_id);
    match entry.payload {
        EntryPayload::Blank => Ok((Ok(Answer::Done), None)),
        EntryPayload::Membership(membership) => {
            meta.last_membership = StoredMembership::new(Some(log_id), membership);
            Ok((Ok(Answer::Done), None))
        }
        EntryPayload::Normal(Data(data)) => {
            let command = decode_command(data).map_err(|error| {
                StateError(format!("the entry {log_id} has no command: {error}"))
            })?;
            let ended = match command.operation {
                Operation::EndLease(lease) => Some(lease),
                _ => None,
            };
            Ok((state::apply(rows, command, changes)?, ended))
        }
    }
}

#[cfg(test)]
mod tests;
