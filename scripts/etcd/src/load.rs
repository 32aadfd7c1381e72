//! Loading etcd, step for step as `inkfast bench metastore` does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use crate::Error;
use crate::etcd::Etcd;

/// The longest latency that is told from longer ones.
const LATENCY_US_MAX: u64 = 60_000_000;

#[derive(clap::Args)]
pub(crate) struct Load {
    /// The members' addresses, with commas between
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    endpoints: Vec<String>,
    /// What the clients do
    #[arg(long, value_enum)]
    operation: Operation,
    /// How many clients there are, each with one operation under way; all share a connection
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// How large each value is
    #[arg(long, default_value_t = 256)]
    value_bytes: usize,
    /// How long to measure
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Operation {
    /// Replace the value of a key of one's own, if it has the revision that is known
    Cas,
    /// Create new keys
    Create,
    /// Read a key
    Get,
}

/// The figures of each operation, as both benches print them.
pub(crate) type Report = BTreeMap<String, Figures>;

#[derive(Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) operations_per_second: f64,
    pub(crate) latency_us: Latency,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50: u64,
    pub(crate) p99: u64,
    pub(crate) p999: u64,
}

/// Loads etcd and prints the figures.
pub(crate) fn run(load: Load) -> Result<(), Error> {
    let figures = tokio::runtime::Runtime::new()?.block_on(load.measure())?;
    let operation = match load.operation {
        Operation::Cas => "cas",
        Operation::Create => "create",
        Operation::Get => "get",
    };
    let report = Report::from([(operation.to_owned(), figures)]);
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

impl Load {
    async fn measure(&self) -> Result<Figures, Error> {
        let etcd = self.connect().await?;
        let run = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
        let prefix = format!("bench-{run}/");
        let measured = self.load(&etcd, &prefix).await;
        etcd.remove(&prefix).await?;
        measured
    }

    /// Connects to the leader. To ask the others too, or over more connections, was not faster.
    async fn connect(&self) -> Result<Etcd, Error> {
        for address in &self.endpoints {
            let etcd = Etcd::connect(address).await?;
            if etcd.is_leader().await? {
                return Ok(etcd);
            }
        }
        Err("none of the members leads".into())
    }

    async fn load(&self, etcd: &Etcd, prefix: &str) -> Result<Figures, Error> {
        let value: Arc<[u8]> = vec![b'x'; self.value_bytes].into();
        let mut clients = Vec::new();
        for number in 0..self.clients {
            let key = format!("{prefix}{number}");
            let revision = etcd.replace(&key, 0, &value).await?;
            clients.push(Client { etcd: etcd.clone(), key, revision, value: Arc::clone(&value) });
        }
        let begun = Instant::now();
        let until = begun + Duration::from_secs(self.seconds);
        let mut running = JoinSet::new();
        for client in clients {
            running.spawn(client.run(self.operation, until));
        }
        let mut latencies_us = histogram()?;
        for of_client in running.join_all().await {
            latencies_us += of_client?;
        }
        let latency = |quantile| latencies_us.value_at_quantile(quantile);
        Ok(Figures {
            operations_per_second: latencies_us.len() as f64 / begun.elapsed().as_secs_f64(),
            latency_us: Latency { p50: latency(0.5), p99: latency(0.99), p999: latency(0.999) },
        })
    }
}

/// A client with a key of its own.
struct Client {
    etcd: Etcd,
    key: String,
    revision: i64,
    value: Arc<[u8]>,
}

impl Client {
    async fn run(mut self, operation: Operation, until: Instant) -> Result<Histogram<u64>, Error> {
        let mut latencies_us = histogram()?;
        let mut created = 0_u64;
        loop {
            let since = Instant::now();
            if since >= until {
                return Ok(latencies_us);
            }
            match operation {
                Operation::Cas => {
                    let replaced = self.etcd.replace(&self.key, self.revision, &self.value);
                    self.revision = replaced.await?;
                }
                Operation::Create => {
                    let key = format!("{}/{created}", self.key);
                    self.etcd.replace(&key, 0, &self.value).await?;
                    created += 1;
                }
                Operation::Get => {
                    self.etcd.get(&self.key).await?.ok_or("a key has vanished")?;
                }
            }
            let latency_us = u64::try_from(since.elapsed().as_micros())?;
            latencies_us.saturating_record(latency_us);
        }
    }
}

fn histogram() -> Result<Histogram<u64>, Error> {
    Ok(Histogram::new_with_bounds(1, LATENCY_US_MAX, 3)?)
}
