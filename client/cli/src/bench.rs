//! `inkfast bench`: loads a cluster and measures.
//!
//! Without a rate the loop is closed: as many operations as the window allows are under way, and
//! each that ends makes room for the next. With a rate the loop is open: an operation is due at
//! its time whether or not the cluster keeps up, and its latency counts from then. Above 1000 a
//! second they begin a millisecond's worth at a time, when the last of them is due.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use futures::stream::{StreamExt, TryStreamExt, iter};
use hdrhistogram::Histogram;
use inkfast::{Client, LedgerWriter, PAYLOAD_BYTES_MAX};
use serde::Serialize;

use crate::cluster::{BOOKIES_DEFAULT, Cluster, METASTORES_DEFAULT};
use crate::commands::Spread;
use crate::output::Output;
use crate::{Failure, config};

use baseline::Baseline;

mod append;
mod baseline;
mod metastore;
mod pace;
mod read;
mod tail;

/// The longest latency that is told from longer ones.
const LATENCY_US_MAX: u64 = 60_000_000;
const LEDGERS_MAX: usize = 10_000;
const WINDOW_MAX: usize = 1_000_000;
/// How many ledgers are created, begun, closed or deleted at a time.
const AT_ONCE: usize = 64;

#[derive(clap::Subcommand)]
pub(crate) enum Bench {
    #[command(flatten)]
    Entries(Entries),
    /// Replaces, creates and reads keys of the metastore
    Metastore(metastore::Load),
    /// Measures what this machine's disk and loopback allow, without a cluster
    Baseline(baseline::Arguments),
}

#[derive(clap::Subcommand)]
pub(crate) enum Entries {
    /// Appends entries; the latency is that of the confirmation
    Append(Load),
    /// Reads entries of ledgers that it writes first, or that are there; the latency is that of a run
    Read(read::Arguments),
    /// Appends entries and follows the ledgers; the latency is from the confirmation to the delivery
    Tail(Load),
}

/// What to load the cluster with.
#[derive(Clone, clap::Args)]
pub(crate) struct Load {
    /// How large each entry is
    #[arg(long, value_name = "N", default_value_t = 1024)]
    entry_bytes: usize,
    /// How many operations may be under way, over all ledgers together
    #[arg(long, value_name = "N", default_value_t = 1000)]
    window: usize,
    /// How many operations are due each second; without it, as many as the window allows, and
    /// for `tail` 1000
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Over how many ledgers, which are deleted at the end
    #[arg(long, value_name = "N", default_value_t = 1)]
    ledgers: usize,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Where to measure the disk for the baseline of `append` and `read` [default: that of temporary
    /// files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Leaves out what the machine allows, which `append` and `read` measure first, in a second
    #[arg(long)]
    no_baseline: bool,
    #[command(flatten)]
    spread: Spread,
    #[command(flatten)]
    output: Output,
}

impl Bench {
    pub(crate) async fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        match self {
            Self::Entries(entries) => entries.run(file).await,
            Self::Metastore(load) => load.run(file).await,
            Self::Baseline(arguments) => arguments.run().await,
        }
    }
}

impl Entries {
    async fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        let load = self.load();
        load.check()?;
        let baseline = match &self {
            Self::Append(load) | Self::Read(read::Arguments { load, .. }) if !load.no_baseline => {
                Some(Baseline::briefly(load.dir.as_deref(), load.entry_bytes).await?)
            }
            _ => None,
        };
        let (measured, amount) = match config::client(file)? {
            Some(config) => self.measure(&Client::connect(config).await?).await?,
            None => {
                let bookies = load.spread.replication()?.ensemble().max(BOOKIES_DEFAULT);
                let cluster = Cluster::temporary(bookies, METASTORES_DEFAULT).await?;
                let measured = self.measure(&cluster.client().await?).await;
                cluster.stop().await;
                measured?
            }
        };
        let mut report = Report::new(&measured, amount);
        if let Some(baseline) = baseline {
            report.ratio = match &self {
                // At a rate it says nothing.
                _ if load.rate.is_some() => None,
                Self::Read(_) => {
                    Some(report.megabytes_per_second / baseline.stream_megabytes_per_second)
                }
                _ => Some(report.entries_per_second / baseline.echo_frames_per_second),
            };
            report.baseline = Some(baseline);
        }
        Ok(load.output.print(&report)?)
    }

    const fn load(&self) -> &Load {
        match self {
            Self::Append(load) | Self::Read(read::Arguments { load, .. }) | Self::Tail(load) => {
                load
            }
        }
    }

    /// Loads the cluster over new ledgers, which are deleted again, or reads those that were named.
    async fn measure(&self, client: &Client) -> Result<(Measured, Amount), Failure> {
        if let Self::Read(read) = self
            && !read.ledger.is_empty()
        {
            return read.measure_named(client).await;
        }
        let load = self.load();
        let options = load.spread.options()?;
        let create = |_| client.create_ledger(options.clone());
        let created = iter(0..load.ledgers).map(create).buffer_unordered(AT_ONCE);
        let writers: Vec<_> = created.try_collect().await?;
        let ledgers: Vec<_> = writers.iter().map(LedgerWriter::id).collect();
        let measured = match self {
            Self::Append(load) => append::measure(load, writers).await.map(|it| load.amount(it)),
            Self::Read(read) => read.measure_new(client, writers).await,
            Self::Tail(load) => {
                tail::measure(load, client, writers).await.map(|it| load.amount(it))
            }
        };
        let deleting = iter(ledgers).map(|ledger| client.delete_ledger(ledger));
        deleting.buffer_unordered(AT_ONCE).try_for_each(async |()| Ok(())).await?;
        measured
    }
}

impl Load {
    fn check(&self) -> Result<(), Failure> {
        self.spread.replication()?;
        check("entry-bytes", self.entry_bytes, 0..=PAYLOAD_BYTES_MAX)?;
        check("window", self.window, 1..=WINDOW_MAX)?;
        check("ledgers", self.ledgers, 1..=LEDGERS_MAX)
    }

    /// Adds how much was done where each operation is one entry.
    fn amount(&self, measured: Measured) -> (Measured, Amount) {
        let entries = measured.latencies_us.len();
        (measured, Amount { entries, bytes: entries * self.entry_bytes as u64 })
    }

    fn seconds(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

fn check(name: &str, value: usize, limits: RangeInclusive<usize>) -> Result<(), Failure> {
    if limits.contains(&value) {
        return Ok(());
    }
    let (min, max) = limits.into_inner();
    Err(Failure::Usage(format!("--{name} {value}: it may be {min} to {max}")))
}

/// How much was done.
#[derive(Default)]
struct Amount {
    entries: u64,
    /// Of payloads.
    bytes: u64,
}

/// What was measured, from the first operation to the end of the last.
struct Measured {
    latencies_us: Histogram<u64>,
    elapsed: Duration,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64()
    }

    fn latency(&self) -> Latency {
        latency(&self.latencies_us)
    }
}

fn latency(latencies_us: &Histogram<u64>) -> Latency {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|it| latencies_us.value_at_quantile(it));
    Latency { p50, p99, p999 }
}

/// Makes an empty histogram of latencies.
fn histogram() -> Histogram<u64> {
    // Three digits are kept of each latency.
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are in order")
}

/// Notes an operation that was due, or begun, at `since` and has just ended.
fn note(latencies_us: &mut Histogram<u64>, since: Instant) {
    record(latencies_us, since.elapsed());
}

fn record(latencies_us: &mut Histogram<u64>, latency: Duration) {
    let latency_us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
    latencies_us.saturating_record(latency_us);
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    entries_per_second: f64,
    megabytes_per_second: f64,
    latency_us: Latency,
    /// Appends to the baseline's echo, in entries and frames; reads to its stream, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    baseline: Option<Baseline>,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    p999: u64,
}

impl Report {
    fn new(measured: &Measured, Amount { entries, bytes }: Amount) -> Self {
        let seconds = measured.elapsed.as_secs_f64();
        Self {
            entries_per_second: entries as f64 / seconds,
            megabytes_per_second: bytes as f64 / seconds / 1e6,
            latency_us: measured.latency(),
            ratio: None,
            baseline: None,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency { p50, p99, p999 } = self.latency_us;
        writeln!(f, "entries/s  {:>12.0}", self.entries_per_second)?;
        writeln!(f, "MB/s       {:>12.1}", self.megabytes_per_second)?;
        writeln!(f, "p50        {p50:>12} us")?;
        writeln!(f, "p99        {p99:>12} us")?;
        write!(f, "p999       {p999:>12} us")?;
        if let Some(ratio) = self.ratio {
            write!(f, "\nratio      {ratio:>12.2} of the baseline's echo or stream")?;
        }
        if let Some(baseline) = &self.baseline {
            write!(f, "\n\nbaseline: what this machine allows\n{baseline}")?;
        }
        Ok(())
    }
}
