//! Ledgers and bookies as typed keys of the metastore.
//!
//! | key | value |
//! |---|---|
//! | `ledgers/<id>` | the ledger's metadata |
//! | `namespaces/<namespace>/<id>` | empty: lists the ledgers of a namespace |
//! | `holdings/<bookie>/<id>` | empty: lists the ledgers that a bookie holds entries of |
//! | `requests/<request>` | the id of the ledger that this request created |
//! | `deleted/<id>` | the metadata of a deleted ledger; bookies collect on this proof alone |
//! | `bookies/<bookie>` | the [`Cookie`] of every bookie there ever was |
//! | `registrations/<bookie>` | the [`Registration`] of a bookie that runs, under its lease |
//!
//! Ids have 16 digits, so that keys sort as numbers do. What belongs together changes in one
//! transaction.

use std::sync::Arc;

use inkfast_metastore::{
    Error as StoreError, KeyValue, LeaseId, Metastore, Scan, Transaction, Version,
};
use inkfast_protocol::{BookieId, LedgerId, LedgerMetadata, MetadataVersion};
use prost::Message;
use uuid::Uuid;

use crate::Error;

#[cfg(test)]
pub(crate) mod example;
pub mod follow;

const LEDGERS: &str = "ledgers/";
const REGISTRATIONS: &str = "registrations/";
const DELETED: &str = "deleted/";
/// How often a deletion begins again because the metadata changed under it.
const DELETE_TRIES_MAX: usize = 16;

/// Keeps ledgers and bookies in the metastore.
#[derive(Clone)]
pub struct Catalog {
    store: Arc<dyn Metastore>,
}

/// A ledger's metadata with the version that a change of it must name.
pub type Versioned = (MetadataVersion, LedgerMetadata);

/// Says that a bookie exists: written once, when its disk is formatted.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Cookie {
    /// The certificate name of the bookie that wrote it.
    #[prost(string, tag = "1")]
    pub name: String,
    /// When it was formatted, in milliseconds since 1970.
    #[prost(uint64, tag = "2")]
    pub formatted_at_ms: u64,
}

/// Says where a running bookie is, and what placement wants to know of it.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Registration {
    /// Its addresses, each `host:port`, to be tried in turn.
    #[prost(string, repeated, tag = "1")]
    pub addresses: Vec<String>,
    /// The rack that it stands in.
    #[prost(string, optional, tag = "2")]
    pub rack: Option<String>,
    /// The size of its disk in bytes.
    #[prost(uint64, tag = "3")]
    pub capacity_bytes: u64,
    /// How much of it is free.
    #[prost(uint64, tag = "4")]
    pub free_bytes: u64,
    /// Whether it takes no new entries.
    #[prost(bool, tag = "5")]
    pub read_only: bool,
}

/// How a compare-and-set of a ledger's metadata ended. An error leaves it unknown.
pub enum Replaced {
    /// It took effect.
    Won(MetadataVersion),
    /// Another version stood there, or none.
    Lost,
}

impl Catalog {
    /// Makes a catalog of a metastore.
    pub fn new(store: Arc<dyn Metastore>) -> Self {
        Self { store }
    }

    /// Returns an id that no ledger had before.
    pub async fn next_ledger_id(&self) -> Result<LedgerId, Error> {
        let block = self.store.next_sequence("ledgers", 1).await?;
        LedgerId::new(block.start)
            .ok_or_else(|| Error::Invalid("the cluster has no more ledger ids".to_owned()))
    }

    /// Creates a ledger. Returns none, and creates nothing, if its request has created one.
    pub async fn create(
        &self,
        metadata: &LedgerMetadata,
    ) -> Result<Option<MetadataVersion>, Error> {
        let id = metadata.ledger;
        let mut transaction = Transaction::new()
            .create(ledger_key(id), metadata.encode()?)
            .put(namespace_key(metadata), Vec::new());
        for bookie in metadata.bookies() {
            transaction = transaction.put(holding_key(bookie, id), Vec::new());
        }
        if let Some(request) = metadata.request {
            transaction = transaction.create(request_key(request), id.get().to_le_bytes().to_vec());
        }
        match self.store.commit(transaction).await {
            Ok(version) => Ok(Some(metadata_version(version))),
            Err(StoreError::Conflict { key, .. }) if !key.starts_with(LEDGERS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns the ledger that a request has created.
    pub async fn created_by(&self, request: Uuid) -> Result<Option<LedgerId>, Error> {
        let Some(found) = self.store.get(&request_key(request)).await? else { return Ok(None) };
        let id = found.value.as_ref().try_into().ok().map(u64::from_le_bytes);
        id.and_then(LedgerId::new)
            .map(Some)
            .ok_or_else(|| Error::Invalid(format!("the key {} is damaged", found.key)))
    }

    /// Returns a ledger's metadata.
    pub async fn ledger(&self, id: LedgerId) -> Result<Versioned, Error> {
        match self.store.get(&ledger_key(id)).await? {
            Some(found) => decode(&found),
            None => Err(self.missing(id).await?),
        }
    }

    /// Says why a ledger is not there.
    async fn missing(&self, id: LedgerId) -> Result<Error, Error> {
        let was_there = self.store.get(&deleted_key(id)).await?.is_some();
        Ok(if was_there { Error::LedgerDeleted(id) } else { Error::LedgerNotFound(id) })
    }

    /// Replaces a ledger's metadata if its version is still the one named.
    pub async fn replace(
        &self,
        was: &Versioned,
        metadata: &LedgerMetadata,
    ) -> Result<Replaced, Error> {
        let id = metadata.ledger;
        let (before, after) = (was.1.bookies(), metadata.bookies());
        let version = Version::new(was.0.0);
        let mut transaction =
            Transaction::new().replace(ledger_key(id), version, metadata.encode()?);
        for bookie in after.difference(&before) {
            transaction = transaction.put(holding_key(*bookie, id), Vec::new());
        }
        for bookie in before.difference(&after) {
            transaction = transaction.delete(holding_key(*bookie, id));
        }
        match self.store.commit(transaction).await {
            Ok(version) => Ok(Replaced::Won(metadata_version(version))),
            Err(StoreError::Conflict { .. }) => Ok(Replaced::Lost),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a ledger: its keys go, and the proof that it was deleted comes.
    pub async fn delete(&self, id: LedgerId) -> Result<(), Error> {
        for _ in 0..DELETE_TRIES_MAX {
            let (version, metadata) = self.ledger(id).await?;
            let mut transaction = Transaction::new()
                .remove(ledger_key(id), Version::new(version.0))
                .delete(namespace_key(&metadata))
                .put(deleted_key(id), metadata.encode()?);
            for bookie in metadata.bookies() {
                transaction = transaction.delete(holding_key(bookie, id));
            }
            if let Some(request) = metadata.request {
                transaction = transaction.delete(request_key(request));
            }
            match self.store.commit(transaction).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::Invalid(format!("ledger {id} changes all the time; try to delete it again")))
    }

    /// Returns a page of ledgers behind `after`, in the order of their ids, of one namespace or of
    /// all. An empty page is the end.
    pub async fn ledgers(
        &self,
        namespace: Option<&str>,
        after: Option<LedgerId>,
    ) -> Result<Vec<LedgerMetadata>, Error> {
        let prefix = namespace.map_or_else(|| LEDGERS.to_owned(), namespace_prefix);
        let after = after.map(|id| format!("{prefix}{:016}", id.get()));
        let mut ledgers = Vec::new();
        // A page of a namespace may be empty because its ledgers went meanwhile.
        let mut scan = Scan { after, ..Scan::new(prefix.clone()) };
        while ledgers.is_empty() {
            let page = self.store.scan(scan.clone()).await?;
            for found in &page.entries {
                if namespace.is_none() {
                    ledgers.push(decode(found)?.1);
                    continue;
                }
                match self.ledger(id_in(&found.key)?).await {
                    Ok((_, metadata)) => ledgers.push(metadata),
                    Err(Error::LedgerNotFound(_) | Error::LedgerDeleted(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if !page.more {
                break;
            }
            scan.after = page.entries.last().map(|found| found.key.clone());
        }
        Ok(ledgers)
    }

    /// Writes the cookie of a bookie that was just formatted.
    pub async fn introduce(&self, bookie: BookieId, cookie: &Cookie) -> Result<(), Error> {
        let transaction = Transaction::new().put(cookie_key(bookie), cookie.encode_to_vec());
        self.store.commit(transaction).await?;
        Ok(())
    }

    /// Returns the cookie of a bookie; none if it was never introduced.
    pub async fn cookie(&self, bookie: BookieId) -> Result<Option<Cookie>, Error> {
        let Some(found) = self.store.get(&cookie_key(bookie)).await? else { return Ok(None) };
        Cookie::decode(found.value).map(Some).map_err(|error| damaged(&found.key, &error))
    }

    /// Registers a running bookie until its lease ends.
    pub async fn register(
        &self,
        bookie: BookieId,
        registration: &Registration,
        lease: LeaseId,
    ) -> Result<(), Error> {
        let key = registration_key(bookie);
        let transaction = Transaction::new().put_leased(key, registration.encode_to_vec(), lease);
        self.store.commit(transaction).await?;
        Ok(())
    }

    /// Returns where a bookie is; none if it does not run.
    pub async fn registration(&self, bookie: BookieId) -> Result<Option<Registration>, Error> {
        let Some(found) = self.store.get(&registration_key(bookie)).await? else {
            return Ok(None);
        };
        Registration::decode(found.value).map(Some).map_err(|error| damaged(&found.key, &error))
    }

    /// Returns all bookies that run.
    pub async fn registrations(&self) -> Result<Vec<(BookieId, Registration)>, Error> {
        Ok(self.registrations_at().await?.0)
    }

    /// Returns all bookies that run, and the revision from which on changes may be missing.
    async fn registrations_at(&self) -> Result<(Vec<(BookieId, Registration)>, Version), Error> {
        let mut registrations = Vec::new();
        let mut read_at = None;
        let mut scan = Scan::new(REGISTRATIONS);
        loop {
            let page = self.store.scan(scan.clone()).await?;
            let read_at = *read_at.get_or_insert(page.revision);
            for KeyValue { key, value, .. } in &page.entries {
                let registration = Registration::decode(value.clone());
                let registration = registration.map_err(|error| damaged(key, &error))?;
                registrations.push((bookie_in(key)?, registration));
            }
            if !page.more {
                return Ok((registrations, read_at));
            }
            scan.after = page.entries.last().map(|found| found.key.clone());
        }
    }
}

fn ledger_key(id: LedgerId) -> String {
    format!("{LEDGERS}{:016}", id.get())
}

fn namespace_prefix(namespace: &str) -> String {
    format!("namespaces/{namespace}/")
}

fn namespace_key(metadata: &LedgerMetadata) -> String {
    format!("{}{:016}", namespace_prefix(&metadata.namespace), metadata.ledger.get())
}

fn holding_key(bookie: BookieId, id: LedgerId) -> String {
    format!("holdings/{bookie}/{:016}", id.get())
}

fn request_key(request: Uuid) -> String {
    format!("requests/{request}")
}

fn deleted_key(id: LedgerId) -> String {
    format!("{DELETED}{:016}", id.get())
}

fn cookie_key(bookie: BookieId) -> String {
    format!("bookies/{bookie}")
}

fn registration_key(bookie: BookieId) -> String {
    format!("{REGISTRATIONS}{bookie}")
}

fn bookie_in(key: &str) -> Result<BookieId, Error> {
    let id = key.rsplit('/').next().and_then(|id| Uuid::parse_str(id).ok());
    id.map(BookieId).ok_or_else(|| Error::Invalid(format!("the key {key} is damaged")))
}

fn id_in(key: &str) -> Result<LedgerId, Error> {
    let id = key.rsplit('/').next().and_then(|id| id.parse().ok());
    id.ok_or_else(|| Error::Invalid(format!("the key {key} is damaged")))
}

fn decode(found: &KeyValue) -> Result<Versioned, Error> {
    Ok((metadata_version(found.version), LedgerMetadata::decode(&found.value)?))
}

const fn metadata_version(version: Version) -> MetadataVersion {
    MetadataVersion(version.get())
}

fn damaged(key: &str, error: &prost::DecodeError) -> Error {
    Error::Invalid(format!("the key {key} is damaged: {error}"))
}
