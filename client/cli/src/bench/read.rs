//! Measuring reads.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use inkfast::{Client, EntryId, Error, LedgerId, LedgerReader, LedgerWriter};
use rustix::fs::{Advice, fadvise};
use tokio::task::JoinSet;

use super::pace::Pace;
use super::{Amount, Load, Measured, histogram, note};
use crate::Failure;

/// How much is written to be read, over all ledgers together, unless one says otherwise.
const WRITTEN_MIB: u64 = 64;
const WRITTEN_ENTRIES_MAX: u64 = 65_536;

/// What to read, and how.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(super) load: Load,
    /// How many entries each operation reads, in order; no more than the ledger has
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..))]
    run: u64,
    /// Reads this ledger, which is kept; may be given several times [default: new ones]
    #[arg(long, value_name = "ID", conflicts_with_all = ["ledgers", "fill"])]
    pub(super) ledger: Vec<LedgerId>,
    /// How many MiB to write to new ledgers first, over all together [default: 64, or what 65536
    /// entries take]
    #[arg(long, value_name = "MIB")]
    fill: Option<u64>,
    /// Asks the kernel before it reads to forget what it has cached of the files in this directory
    /// of a bookie, which goes on serving its last 32 MiB from memory; may be given several times
    #[arg(long, value_name = "DIR")]
    drop_caches: Vec<PathBuf>,
}

/// What all tasks share that read.
struct Shared {
    ledgers: Vec<(LedgerReader, u64)>,
    /// How many entries an operation reads.
    run: u64,
    pace: Pace,
    next: AtomicU64,
}

impl Arguments {
    /// Fills new ledgers and closes them, and then reads them.
    pub(super) async fn measure_new(
        &self,
        client: &Client,
        writers: Vec<LedgerWriter>,
    ) -> Result<(Measured, Amount), Failure> {
        let entry_bytes = self.load.entry_bytes.max(1) as u64;
        let entries = (self.fill.unwrap_or(WRITTEN_MIB) << 20) / entry_bytes;
        let most = if self.fill.is_some() { u64::MAX } else { WRITTEN_ENTRIES_MAX };
        let entries = (entries.min(most) / writers.len() as u64).max(1);
        let payload = Bytes::from(vec![b'x'; self.load.entry_bytes]);
        let filling = writers.into_iter().map(|writer| fill(client, writer, entries, &payload));
        let readers = try_join_all(filling).await?.into_iter();
        self.measure(readers.map(|reader| (reader, entries)).collect()).await
    }

    /// Reads the ledgers that were named.
    pub(super) async fn measure_named(
        &self,
        client: &Client,
    ) -> Result<(Measured, Amount), Failure> {
        let mut ledgers = Vec::new();
        for id in &self.ledger {
            let reader = client.open_ledger(*id).await?;
            let Some(last) = reader.last_add_confirmed().await? else {
                return Err(Failure::Failed(format!("ledger {id} has no entry; name another")));
            };
            ledgers.push((reader, last.get() + 1));
        }
        self.measure(ledgers).await
    }

    /// Reads runs of entries of the ledgers in turn, again and again, for as long as the load says.
    async fn measure(
        &self,
        ledgers: Vec<(LedgerReader, u64)>,
    ) -> Result<(Measured, Amount), Failure> {
        self.drop_caches.iter().try_for_each(|dir| drop_caches(dir))?;
        let begun = Instant::now();
        let pace = Pace::start(self.load.seconds(), self.load.rate);
        let shared = Arc::new(Shared { ledgers, run: self.run, pace, next: AtomicU64::new(0) });
        let mut reading = JoinSet::new();
        for _ in 0..self.load.window {
            reading.spawn(read(Arc::clone(&shared)));
        }
        let (mut latencies_us, mut amount) = (histogram(), Amount::default());
        while let Some(read) = reading.join_next().await {
            let (of_reader, read) = read.map_err(|error| Failure::Failed(error.to_string()))??;
            latencies_us += of_reader;
            amount.entries += read.entries;
            amount.bytes += read.bytes;
        }
        Ok((Measured { latencies_us, elapsed: begun.elapsed() }, amount))
    }
}

/// Fills a ledger, closes it, and opens it for reading.
async fn fill(
    client: &Client,
    writer: LedgerWriter,
    entries: u64,
    payload: &Bytes,
) -> Result<LedgerReader, Error> {
    for _ in 0..entries {
        drop(writer.append(payload.clone()).await?);
    }
    writer.flush().await?;
    let ledger = writer.id();
    writer.close().await?;
    client.open_ledger(ledger).await
}

/// Reads one run after another until the time is over.
async fn read(shared: Arc<Shared>) -> Result<(Histogram<u64>, Amount), Error> {
    let (mut latencies_us, mut amount) = (histogram(), Amount::default());
    while let Some(since) = shared.pace.next().await {
        let turn = shared.next.fetch_add(1, Ordering::Relaxed);
        let count = shared.ledgers.len() as u64;
        let (reader, entries) = &shared.ledgers[usize::try_from(turn % count).unwrap_or(0)];
        let run = shared.run.min(*entries);
        let first = turn / count % (entries / run) * run;
        let mut stream = Box::pin(reader.read(EntryId::new(first)..=EntryId::new(first + run - 1)));
        while let Some(entry) = stream.try_next().await? {
            amount.entries += 1;
            amount.bytes += entry.payload().len() as u64;
        }
        note(&mut latencies_us, since);
    }
    Ok((latencies_us, amount))
}

/// Asks the kernel to forget the files of a directory, and says so.
fn drop_caches(dir: &Path) -> Result<(), Failure> {
    let forget = || {
        let (mut files, mut bytes) = (0, 0);
        for entry in dir.read_dir()? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_file() {
                fadvise(File::open(entry.path())?, 0, None, Advice::DontNeed)?;
                (files, bytes) = (files + 1, bytes + metadata.len());
            }
        }
        Ok((files, bytes))
    };
    let (files, bytes): (u64, u64) = forget().map_err(|error: std::io::Error| {
        Failure::Failed(format!("cannot look through {}: {error}", dir.display()))
    })?;
    let dir = dir.display();
    eprintln!("the kernel was asked to forget {files} files of {dir}, {} MB", bytes / 1_000_000);
    Ok(())
}
