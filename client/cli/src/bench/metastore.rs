//! Measuring the metastore.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use hdrhistogram::Histogram;
use inkfast_metastore::{Metastore, RemoteMetastore, Scan, Transaction, VALUE_BYTES_MAX, Version};
use inkfast_wire::Endpoint;
use serde::Serialize;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::pace::Pace;
use super::{Latency, Measured, check, histogram, note};
use crate::cluster::{Cluster, METASTORES_DEFAULT};
use crate::output::Output;
use crate::{Failure, config};

const CLIENTS_MAX: usize = 1024;
/// How many metastores a cluster may have here: an even number survives no more than the odd one
/// below it.
const METASTORES: [usize; 3] = [1, 3, 5];

/// What to load the metastore with.
#[derive(clap::Args)]
pub(crate) struct Load {
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Choice::All)]
    operation: Choice,
    /// How many clients there are, each with one operation under way; all share a connection
    #[arg(long, value_name = "N", default_value_t = 64)]
    clients: usize,
    /// How large each value is
    #[arg(long, value_name = "N", default_value_t = 256)]
    value_bytes: usize,
    /// How long to measure each operation
    #[arg(long, value_name = "N", default_value_t = 10,
        value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// How many metastores the cluster has where none is configured: 1, 3 or 5 [default: 1]
    #[arg(long, value_name = "N")]
    metastores: Option<usize>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Choice {
    /// Replace the value of a key of one's own, if it has the version that is known
    Cas,
    /// Create new keys
    Create,
    /// Read a key
    Get,
    /// All of them, one after the other
    All,
}

#[derive(Clone, Copy)]
enum Operation {
    Cas,
    Create,
    Get,
}

impl Load {
    pub(crate) async fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        self.check()?;
        let report = match config::client(file)? {
            Some(_) if self.metastores.is_some() => {
                let words = "a cluster is configured, with the metastores that it has: leave \
                             --metastores out, or --config and INKFAST_CONFIG";
                return Err(Failure::Usage(words.to_owned()));
            }
            Some(config) => self.measure(config).await?,
            None => {
                let metastores = self.metastores.unwrap_or(METASTORES_DEFAULT);
                let cluster = Cluster::temporary(1, metastores).await?;
                let report = self.measure(cluster.client_config()?).await;
                cluster.stop().await;
                report?
            }
        };
        Ok(self.output.print(&report)?)
    }

    fn check(&self) -> Result<(), Failure> {
        check("clients", self.clients, 1..=CLIENTS_MAX)?;
        check("value-bytes", self.value_bytes, 0..=VALUE_BYTES_MAX)?;
        match self.metastores {
            Some(metastores) if !METASTORES.contains(&metastores) => {
                let words = format!("--metastores {metastores}: it may be 1, 3 or 5");
                Err(Failure::Usage(words))
            }
            _ => Ok(()),
        }
    }

    async fn measure(&self, config: inkfast::Config) -> Result<Report, Failure> {
        let endpoint = Endpoint::client(&config.net, &config.identity, Uuid::new_v4(), None)
            .map_err(inkfast::Error::from)?;
        let timeout = config.deadlines.metastore;
        let store = Arc::new(RemoteMetastore::new(&endpoint, config.metastore, timeout));
        let value = Bytes::from(vec![b'x'; self.value_bytes]);
        let lasts = Duration::from_secs(self.seconds.into());
        let mut report = BTreeMap::new();
        for &operation in self.operation.operations() {
            let measured = measure(operation, &store, self.clients, &value, lasts).await?;
            report.insert(operation.name(), Figures::new(&measured));
        }
        Ok(Report(report))
    }
}

impl Choice {
    const fn operations(self) -> &'static [Operation] {
        match self {
            Self::Cas => &[Operation::Cas],
            Self::Create => &[Operation::Create],
            Self::Get => &[Operation::Get],
            Self::All => &[Operation::Cas, Operation::Create, Operation::Get],
        }
    }
}

impl Operation {
    const fn name(self) -> &'static str {
        match self {
            Self::Cas => "cas",
            Self::Create => "create",
            Self::Get => "get",
        }
    }
}

/// Makes a key for each client, lets all do the operation until the time is over, and removes what
/// they wrote, whether or not one has failed.
async fn measure<M: Metastore + 'static>(
    operation: Operation,
    store: &Arc<M>,
    clients: usize,
    value: &Bytes,
    lasts: Duration,
) -> Result<Measured, inkfast::Error> {
    let prefix = format!("bench/{}/", Uuid::new_v4());
    let measured = load(operation, store, own_keys(&prefix, clients), value, lasts).await;
    let removed = remove(store.as_ref(), &prefix).await;
    let measured = measured?;
    removed.map(|()| measured)
}

fn own_keys(prefix: &str, clients: usize) -> Vec<String> {
    (0..clients).map(|client| format!("{prefix}{client}")).collect()
}

async fn load<M: Metastore + 'static>(
    operation: Operation,
    store: &Arc<M>,
    keys: Vec<String>,
    value: &Bytes,
    lasts: Duration,
) -> Result<Measured, inkfast::Error> {
    let creates =
        keys.iter().map(|key| store.commit(Transaction::new().create(key.clone(), value.clone())));
    let versions: Vec<_> = join_all(creates).await.into_iter().collect::<Result<_, _>>()?;
    let begun = Instant::now();
    let pace = Arc::new(Pace::start(lasts, None));
    let mut clients = JoinSet::new();
    for (key, version) in keys.into_iter().zip(versions) {
        let client = Client { store: Arc::clone(store), key, version, value: value.clone() };
        clients.spawn(client.run(operation, Arc::clone(&pace)));
    }
    let mut latencies_us = histogram();
    // All have ended before an error is told, so that none writes when the keys are removed.
    for of_client in clients.join_all().await {
        latencies_us += of_client?;
    }
    Ok(Measured { latencies_us, elapsed: begun.elapsed() })
}

/// A client with a key of its own.
struct Client<M> {
    store: Arc<M>,
    key: String,
    version: Version,
    value: Bytes,
}

impl<M: Metastore> Client<M> {
    /// Does one operation after the other until the time is over.
    async fn run(
        mut self,
        operation: Operation,
        pace: Arc<Pace>,
    ) -> Result<Histogram<u64>, inkfast::Error> {
        let mut latencies_us = histogram();
        let mut created = 0_u64;
        while let Some(since) = pace.next().await {
            let change = Transaction::new();
            match operation {
                Operation::Cas => {
                    let change = change.replace(&self.key, self.version, self.value.clone());
                    self.version = self.store.commit(change).await?;
                }
                Operation::Create => {
                    let key = format!("{}/{created}", self.key);
                    self.store.commit(change.create(key, self.value.clone())).await?;
                    created += 1;
                }
                Operation::Get => {
                    if self.store.get(&self.key).await?.is_none() {
                        let words = format!("somebody has removed the key {}", self.key);
                        return Err(inkfast::Error::Invalid(words));
                    }
                }
            }
            note(&mut latencies_us, since);
        }
        Ok(latencies_us)
    }
}

/// Removes all keys that begin with the prefix.
async fn remove(store: &impl Metastore, prefix: &str) -> Result<(), inkfast::Error> {
    loop {
        let page = store.scan(Scan::new(prefix)).await?;
        let keys = page.entries.into_iter().map(|entry| entry.key);
        // As many as a page has fit into one transaction.
        store.commit(keys.fold(Transaction::new(), Transaction::delete)).await?;
        if !page.more {
            return Ok(());
        }
    }
}

/// What is printed: the figures of each operation.
#[derive(Serialize)]
#[serde(transparent)]
struct Report(BTreeMap<&'static str, Figures>);

#[derive(Serialize)]
struct Figures {
    operations_per_second: f64,
    latency_us: Latency,
}

impl Figures {
    fn new(measured: &Measured) -> Self {
        Self { operations_per_second: measured.per_second(), latency_us: measured.latency() }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "        {:>12} {:>12} {:>12} {:>12}", "per second", "p50", "p99", "p999")?;
        for (operation, Figures { operations_per_second, latency_us }) in &self.0 {
            let Latency { p50, p99, p999 } = latency_us;
            write!(f, "\n{operation:<8}{operations_per_second:>12.0}")?;
            write!(f, " {p50:>9} us {p99:>9} us {p999:>9} us")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use inkfast_metastore::MemoryMetastore;

    use super::*;

    const LASTS: Duration = Duration::from_millis(200);

    async fn measure_three(
        operation: Operation,
        store: &Arc<MemoryMetastore>,
    ) -> Result<Measured, inkfast::Error> {
        measure(operation, store, 3, &Bytes::from_static(b"value"), LASTS).await
    }

    async fn keys(store: &MemoryMetastore) -> Vec<String> {
        let page = store.scan(Scan::new("")).await.unwrap();
        page.entries.into_iter().map(|entry| entry.key).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_operation_is_measured_and_leaves_nothing_behind() {
        let store = Arc::new(MemoryMetastore::new());
        for &operation in Choice::All.operations() {
            let measured = measure_three(operation, &store).await.unwrap();
            assert!(measured.latencies_us.len() > 3, "{}", operation.name());
            assert!(measured.elapsed >= LASTS, "{}", operation.name());
            assert_eq!(keys(&store).await, [""; 0], "{}", operation.name());
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_client_that_fails_leaves_nothing_behind() {
        let store = Arc::new(MemoryMetastore::new());
        for operation in [Operation::Cas, Operation::Get] {
            let thief = async {
                loop {
                    if let [key, _, _] = &keys(&store).await[..] {
                        return store.commit(Transaction::new().delete(key)).await.unwrap();
                    }
                }
            };
            let (measured, _) = tokio::join!(measure_three(operation, &store), thief);
            assert!(measured.is_err(), "{}", operation.name());
            assert_eq!(keys(&store).await, [""; 0], "{}", operation.name());
        }
    }
}
