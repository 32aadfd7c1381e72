//! A metastore in memory, for tests: the same answers as the real one, nothing kept.

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::Metastore;
use crate::error::Error;
use crate::leases::Leases;
use crate::limits::{check_key, check_operation, check_scan};
use crate::rows::{Rows, RowsMut, StateError};
use crate::state::{self, Answer, Command, Operation, apply};
use crate::types::{Change, KeyValue, LeaseId, Page, Scan, Transaction, Version};
use crate::watch::{Source, Watch};
use crate::watches::{Watcher, Watches};

/// How often a watch looks whether leases have run out, which nobody else may do.
const EXPIRY_INTERVAL: Duration = Duration::from_millis(100);

/// A metastore of one process, which ends with it. Leases expire by tokio's clock.
#[derive(Debug)]
pub struct MemoryMetastore {
    cluster: Uuid,
    state: State,
}

#[derive(Clone, Debug)]
struct State(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    rows: MemoryRows,
    leases: Leases,
    watches: Watches,
    started: Instant,
}

/// Watches a metastore in memory.
#[derive(Debug)]
pub(crate) struct MemoryWatch {
    watcher: Watcher,
    state: State,
}

/// Rows in a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryRows(BTreeMap<Vec<u8>, Bytes>);

impl MemoryMetastore {
    /// Makes an empty metastore of a new cluster.
    #[expect(clippy::new_without_default, reason = "two of them are not equal: two clusters")]
    pub fn new() -> Self {
        let inner = Inner {
            rows: MemoryRows::default(),
            leases: Leases::default(),
            watches: Watches::new(Version::new(0)),
            started: Instant::now(),
        };
        Self { cluster: Uuid::new_v4(), state: State(Arc::new(Mutex::new(inner))) }
    }

    fn change(&self, operation: Operation) -> Result<Answer, Error> {
        check_operation(&operation)?;
        self.state.lock()?.apply(operation)?
    }
}

impl State {
    /// Locks the state as it is now, without the leases that have run out.
    fn lock(&self) -> Result<MutexGuard<'_, Inner>, Error> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for lease in inner.leases.take_expired(Instant::now()) {
            // The answer is for nobody.
            let _ = inner.apply(Operation::EndLease(lease))?;
        }
        Ok(inner)
    }
}

impl Inner {
    fn apply(&mut self, operation: Operation) -> Result<Result<Answer, Error>, Error> {
        let ended = match &operation {
            Operation::EndLease(lease) => Some(*lease),
            _ => None,
        };
        let time_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let command = Command { request: Uuid::new_v4(), time_ms, operation };
        let mut changes = Vec::new();
        let answer = apply(&mut self.rows, command, &mut changes)?;
        self.watches.publish(changes, state::revision(&self.rows)?);
        let granted = match answer {
            Ok(Answer::Granted(lease)) => Some(lease),
            _ => None,
        };
        if let Some(lease) = ended.or(granted) {
            self.leases.follow(&self.rows, lease, Instant::now())?;
        }
        Ok(answer)
    }
}

#[async_trait]
impl Metastore for MemoryMetastore {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        check_key(key)?;
        Ok(state::get(&self.state.lock()?.rows, key)?)
    }

    async fn scan(&self, scan: Scan) -> Result<Page, Error> {
        check_scan(&scan)?;
        Ok(state::scan(&self.state.lock()?.rows, &scan)?)
    }

    async fn get_stale(&self, key: &str) -> Result<Option<KeyValue>, Error> {
        self.get(key).await
    }

    async fn scan_stale(&self, scan: Scan) -> Result<Page, Error> {
        self.scan(scan).await
    }

    async fn commit(&self, transaction: Transaction) -> Result<Version, Error> {
        self.change(Operation::Commit(transaction))?.committed()
    }

    async fn next_sequence(&self, name: &str, count: u64) -> Result<Range<u64>, Error> {
        self.change(Operation::NextSequence { name: name.into(), count })?.sequence()
    }

    async fn grant_lease(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.change(Operation::GrantLease { ttl })?.granted()
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), Error> {
        if self.state.lock()?.leases.keep_alive(lease, Instant::now()) {
            return Ok(());
        }
        Err(Error::LeaseNotFound)
    }

    async fn end_lease(&self, lease: LeaseId) -> Result<(), Error> {
        self.change(Operation::EndLease(lease))?.done()
    }

    async fn watch(&self, prefix: &str, after: Version) -> Result<Watch, Error> {
        let inner = self.state.lock()?;
        let watcher = inner.watches.watch(prefix, after, state::revision(&inner.rows)?)?;
        Ok(Watch(Source::Memory(MemoryWatch { watcher, state: self.state.clone() })))
    }

    async fn cluster(&self) -> Result<Uuid, Error> {
        Ok(self.cluster)
    }
}

impl MemoryWatch {
    pub(crate) async fn next(&mut self) -> Result<Vec<Change>, Error> {
        loop {
            match timeout(EXPIRY_INTERVAL, self.watcher.next()).await {
                Ok(told) => return Ok(told?.changes),
                Err(_) => drop(self.state.lock()?),
            }
        }
    }
}

impl Rows for MemoryRows {
    fn get(&self, row: &[u8]) -> Result<Option<Bytes>, StateError> {
        Ok(self.0.get(row).cloned())
    }

    fn walk(
        &self,
        from: Bound<Vec<u8>>,
    ) -> Result<impl Iterator<Item = Result<(Vec<u8>, Bytes), StateError>>, StateError> {
        let rows = self.0.range((from, Bound::Unbounded));
        Ok(rows.map(|(row, value)| Ok((row.clone(), value.clone()))))
    }
}

impl RowsMut for MemoryRows {
    fn insert(&mut self, row: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.0.insert(row.to_vec(), Bytes::copy_from_slice(value));
        Ok(())
    }

    fn remove(&mut self, row: &[u8]) -> Result<(), StateError> {
        self.0.remove(row);
        Ok(())
    }
}
