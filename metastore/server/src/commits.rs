//! Group commit: one task writes, and what queues while a commit runs is the next one.

use std::sync::{Arc, Mutex, PoisonError};

use inkfast_metastore::leases::Leases;
use inkfast_metastore::rows::StateError;
use inkfast_metastore::state::{Answer, Command, Operation, apply, revision};
use inkfast_metastore::watches::Watches;
use inkfast_metastore::{Change, Error, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::rows::WriteRows;
use crate::store::{Amount, Store};

/// The most commands that wait for a commit; more wait for room. One commit takes them all.
const QUEUED_MAX: usize = 1024;
/// The most bytes of commands that wait or are being committed; more wait for room.
const QUEUED_BYTES_MAX: usize = 64 << 20;

/// What a command is answered with.
pub(crate) type Outcome = Result<Answer, Error>;

/// The way to the one that commits. Clones lead to the same one.
#[derive(Clone)]
pub(crate) struct Commits {
    queue: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

struct Queued {
    command: Command,
    answer: oneshot::Sender<Outcome>,
    _room: OwnedSemaphorePermit,
}

impl Commits {
    /// Starts the task that commits. It ends when all ways to it are gone and what was queued is
    /// committed; after an error of the disk it tells `failure` and refuses all that comes.
    pub(crate) fn start(
        store: Store,
        leases: Arc<Mutex<Leases>>,
        watches: Watches,
        failure: watch::Sender<Option<StateError>>,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, queued) = mpsc::channel(QUEUED_MAX);
        let task = tokio::spawn(commit_all(Target { store, leases, watches }, queued, failure));
        (Self { queue, room: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)) }, task)
    }

    /// Queues a command of so many bytes, when there is room. It is committed also if nobody
    /// waits for the answer, which comes once it is on disk.
    pub(crate) async fn queue(
        &self,
        command: Command,
        bytes: usize,
    ) -> Result<oneshot::Receiver<Outcome>, Error> {
        let stopping = || Error::unavailable("it is stopping");
        let bytes = u32::try_from(bytes.min(QUEUED_BYTES_MAX)).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| stopping())?;
        let (answer, receiver) = oneshot::channel();
        let queued = Queued { command, answer, _room: room };
        self.queue.send(queued).await.map_err(|_| stopping())?;
        Ok(receiver)
    }
}

/// Where commands take effect.
struct Target {
    store: Store,
    leases: Arc<Mutex<Leases>>,
    watches: Watches,
}

/// What a batch of commands has done.
struct Applied {
    outcomes: Vec<Outcome>,
    changes: Vec<Change>,
    revision: Version,
}

async fn commit_all(
    target: Target,
    mut queue: mpsc::Receiver<Queued>,
    failure: watch::Sender<Option<StateError>>,
) {
    let mut batch = Vec::new();
    while queue.recv_many(&mut batch, QUEUED_MAX).await > 0 {
        if let Err(error) = commit(&target, std::mem::take(&mut batch)).await {
            tracing::error!(%error, "nothing more is written");
            failure.send_replace(Some(error));
            break;
        }
    }
    let failed = failure.borrow().clone();
    while let (Some(error), Some(queued)) = (&failed, queue.recv().await) {
        // Whoever asked may be gone.
        let _ = queued.answer.send(Err(error.clone().into()));
    }
}

/// Commits a batch, and tells of it after that: the watches, then those who asked.
async fn commit(target: &Target, batch: Vec<Queued>) -> Result<(), StateError> {
    let mut commands = Vec::with_capacity(batch.len());
    let mut waiting = Vec::with_capacity(batch.len());
    for Queued { command, answer, _room } in batch {
        commands.push(command);
        waiting.push((answer, _room));
    }
    let (leases, now) = (target.leases.clone(), Instant::now());
    let applied = target
        .store
        .apply(Amount { entries: 1 << 20, bytes: 0 }, move |rows, _| {
            apply_all(rows, commands, &leases, now)
        })
        .await;
    match applied {
        Ok(Applied { outcomes, changes, revision }) => {
            target.watches.publish(changes, revision);
            for ((answer, _), outcome) in waiting.into_iter().zip(outcomes) {
                // Whoever asked may be gone.
                let _ = answer.send(outcome);
            }
            Ok(())
        }
        Err(error) => {
            for (answer, _) in waiting {
                let _ = answer.send(Err(error.clone().into()));
            }
            Err(error)
        }
    }
}

/// Applies commands in their order, and lets the deadlines follow the leases of the state.
fn apply_all(
    rows: &mut WriteRows<'_>,
    commands: Vec<Command>,
    leases: &Mutex<Leases>,
    now: Instant,
) -> Result<Applied, StateError> {
    let mut changes = Vec::new();
    let mut outcomes = Vec::with_capacity(commands.len());
    let mut renewed = Vec::new();
    for command in commands {
        if let Operation::EndLease(lease) = command.operation {
            renewed.push(lease);
        }
        let outcome = apply(rows, command, &mut changes)?;
        if let Ok(Answer::Granted(lease)) = outcome {
            renewed.push(lease);
        }
        outcomes.push(outcome);
    }
    let mut leases = leases.lock().unwrap_or_else(PoisonError::into_inner);
    for lease in renewed {
        leases.follow(rows, lease, now)?;
    }
    Ok(Applied { outcomes, changes, revision: revision(rows)? })
}

#[cfg(test)]
mod tests;
