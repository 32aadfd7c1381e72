//! Keeps a store open: one whose index turns out to be damaged is opened anew, which makes the index
//! from the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::checkpoint::Indexing;
use super::owner::{Ended, Owner};
use super::replay::{self, Opened};
use super::{Command, StoreError};
use crate::disk::Disk;
use crate::executor::Executor;
use crate::index::{Index, IndexError};
use crate::log::Reader;

/// Why nothing is certain for a while.
pub(super) const MAKING: &str = "the index was damaged and is made anew from the log";
/// How often a store is opened, at most: a disk that spoils its index again and again is no good.
const OPENED_MAX: usize = if cfg!(test) { 1000 } else { 10 };

pub(super) struct Keeper {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) log: Uuid,
    pub(super) executor: Executor,
    /// The memory that the index takes.
    pub(super) index_bytes: usize,
    pub(super) reader: Reader,
    /// Tells the index to those who read; none while it is made anew.
    pub(super) index: watch::Sender<Option<Index>>,
    /// Tells whether writers are refused.
    pub(super) read_only: watch::Sender<bool>,
    /// Tells whether the log has lost something.
    pub(super) damaged: Arc<AtomicBool>,
}

impl Keeper {
    /// Lets an owner take the commands, and another one if its index is damaged, until all handles
    /// are dropped.
    pub(super) async fn run(self, mut opened: Opened, mut commands: mpsc::Receiver<Command>) {
        for _ in 0..OPENED_MAX {
            if let Ended::Stopped = self.serve(opened, &mut commands).await {
                return;
            }
            tracing::error!("{MAKING}");
            let again = tokio::select! {
                again = self.open_anew() => again,
                () = refuse(&mut commands) => return,
            };
            match again {
                Ok(again) => opened = again,
                Err(error) => {
                    tracing::error!(%error, "the index cannot be made; restart on a sound disk");
                    return refuse(&mut commands).await;
                }
            }
            for damage in &opened.replayed.damages {
                tracing::error!(%damage, "the log is damaged");
            }
        }
        tracing::error!("the index is damaged time and again; replace the disk");
        refuse(&mut commands).await;
    }

    async fn open_anew(&self) -> Result<Opened, StoreError> {
        let (disk, log, bytes) = (Arc::clone(&self.disk), self.log, self.index_bytes);
        let open = move || {
            Index::remove(&*disk).map_err(IndexError::Io)?;
            replay::open(disk, log, bytes)
        };
        self.executor.run(open).await
    }

    async fn serve(&self, opened: Opened, commands: &mut mpsc::Receiver<Command>) -> Ended {
        let Opened { index, ledgers, durable, tail, .. } = opened;
        let (appender, completions) = tail.start(self.executor);
        let damaged = durable.damaged;
        // Before anybody can ask what was lost.
        self.damaged.store(damaged, Ordering::Relaxed);
        let indexing = Indexing::new(index.clone(), durable, self.executor);
        self.read_only.send_replace(damaged);
        self.index.send_replace(Some(index));
        let (reader, read_only) = (self.reader.clone(), self.read_only.clone());
        let owner = Owner::new((ledgers, damaged), appender, reader, indexing, read_only);
        let ended = owner.run(commands, completions).await;
        self.index.send_replace(None);
        ended
    }
}

/// Refuses whatever is asked until all handles are dropped.
async fn refuse(commands: &mut mpsc::Receiver<Command>) {
    while let Some(command) = commands.recv().await {
        command.refuse();
    }
}
