//! Keeps a store open: one whose index turns out to be damaged is opened anew, which makes the index
//! from the log.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::Command;
use super::checkpoint::Indexing;
use super::owner::{Ended, Owner};
use super::replay::{self, Opened};
use crate::disk::Disk;
use crate::executor::Executor;
use crate::index::{Index, IndexError};
use crate::log::Reader;

/// Why nothing is certain for a while.
pub(super) const MAKING: &str = "the index was damaged and is made anew from the log";

pub(super) struct Keeper {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) log: Uuid,
    pub(super) executor: Executor,
    pub(super) reader: Reader,
    /// Tells the index to those who read; none while it is made anew.
    pub(super) index: watch::Sender<Option<Index>>,
    /// Tells whether writers are refused.
    pub(super) read_only: watch::Sender<bool>,
}

impl Keeper {
    /// Lets an owner take the commands, and another one if its index is damaged, until all handles
    /// are dropped.
    pub(super) async fn run(self, mut opened: Opened, mut commands: mpsc::Receiver<Command>) {
        while let Ended::IndexDamaged = self.serve(opened, &mut commands).await {
            tracing::error!("{MAKING}");
            let (disk, log) = (Arc::clone(&self.disk), self.log);
            let open = move || {
                Index::remove(&*disk).map_err(IndexError::Io)?;
                replay::open(disk, log)
            };
            match self.executor.run(open).await {
                Ok(again) => opened = again,
                Err(error) => {
                    tracing::error!(%error, "the index cannot be made anew; restart the bookie on a sound disk");
                    // Whoever asks is told by the end of their channels that nothing is certain.
                    while commands.recv().await.is_some() {}
                    return;
                }
            }
        }
    }

    async fn serve(&self, opened: Opened, commands: &mut mpsc::Receiver<Command>) -> Ended {
        let Opened { index, ledgers, durable, tail, .. } = opened;
        let (appender, completions) = tail.start(self.executor);
        let damaged = durable.damaged;
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
