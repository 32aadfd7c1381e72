//! A client that does random things.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use tokio::time::sleep;

use super::{Client, History};
use crate::Metastore;
use crate::error::Error;
use crate::types::{Scan, Transaction, Version};

/// How many keys there are: few, so that clients get in each other's way.
const KEYS: usize = 5;
const SEQUENCES: usize = 2;
const SEQUENCE_BLOCK_MAX: u64 = 10;
/// How long a client waits after a refusal that is no conflict.
const PAUSE: Duration = Duration::from_millis(20);

/// Performs random operations under a prefix, one after the other, as a new client of the history,
/// until `stop` says so, which is asked before each.
///
/// All clients with the same prefix use the same few keys and sequences. The operations are drawn
/// from the seed (and from what the store answers: a condition wants a version that was seen
/// lately). To drop the future stops it too; what is under way then has no answer.
pub async fn drive(
    store: &dyn Metastore,
    history: &History,
    prefix: &str,
    seed: u64,
    mut stop: impl FnMut() -> bool,
) {
    let client = history.client();
    let random = Rng::with_seed(seed);
    let mut driver = Driver { store, client, prefix, random, seen: BTreeMap::new() };
    while !stop() {
        if let Err(Error::Unavailable { .. }) = driver.act().await {
            sleep(PAUSE).await;
        }
    }
}

struct Driver<'a> {
    store: &'a dyn Metastore,
    client: Client,
    prefix: &'a str,
    random: Rng,
    /// The version that each key had when it was seen last.
    seen: BTreeMap<String, Option<Version>>,
}

impl Driver<'_> {
    async fn act(&mut self) -> Result<(), Error> {
        let key = self.key();
        match self.random.u8(..100) {
            0..30 => {
                let entry = self.client.get(self.store, &key).await?;
                self.seen.insert(key, entry.map(|entry| entry.version));
                Ok(())
            }
            30..36 => self.scan().await,
            36..42 => {
                let name = format!("{}sequence{}", self.prefix, self.random.usize(..SEQUENCES));
                let count = self.random.u64(1..=SEQUENCE_BLOCK_MAX);
                self.client.next_sequence(self.store, &name, count).await.map(drop)
            }
            42..88 => self.commit(&[key]).await,
            _ => {
                let other = self.key();
                let keys = if other == key { vec![key] } else { vec![key, other] };
                self.commit(&keys).await
            }
        }
    }

    async fn scan(&mut self) -> Result<(), Error> {
        let page = self.client.scan(self.store, Scan::new(format!("{}key", self.prefix))).await?;
        self.seen.values_mut().for_each(|version| *version = None);
        self.seen.extend(page.entries.into_iter().map(|entry| (entry.key, Some(entry.version))));
        Ok(())
    }

    /// Does something to each of the keys, in one transaction.
    async fn commit(&mut self, keys: &[String]) -> Result<(), Error> {
        let Self { store, client, random, seen, .. } = self;
        let make = |value: Bytes| {
            keys.iter().fold(Transaction::new(), |transaction, key| {
                let value = value.clone();
                match (random.u8(..100), seen.get(key).copied().flatten()) {
                    (0..20, _) => transaction.put(key, value),
                    (20..30, _) => transaction.delete(key),
                    (30..80, Some(version)) => transaction.replace(key, version, value),
                    (80..90, Some(version)) => transaction.remove(key, version),
                    _ => transaction.create(key, value),
                }
            })
        };
        match client.commit(*store, make).await {
            Err(Error::Conflict { key, found }) => drop(seen.insert(key, found)),
            Err(error) => return Err(error),
            // Half of the time the next condition on these keys wants a version that is gone, or
            // one that a delete has used up: that must be refused.
            Ok(version) if random.bool() => {
                seen.extend(keys.iter().map(|key| (key.clone(), Some(version))));
            }
            Ok(_) => {}
        }
        Ok(())
    }

    fn key(&mut self) -> String {
        format!("{}key{}", self.prefix, self.random.usize(..KEYS))
    }
}
