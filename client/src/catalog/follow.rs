//! Following what changes in the catalog: the bookies that run, one ledger's metadata, and which
//! ledgers were deleted.

use std::collections::BTreeSet;

use inkfast_metastore::{Change, KeyValue, Scan, Version, Watch};
use inkfast_protocol::{BookieId, LedgerId};
use prost::Message;

use super::{
    Catalog, DELETED, REGISTRATIONS, Registration, Versioned, bookie_in, damaged, decode,
    deleted_key, ledger_key,
};
use crate::Error;

/// The changes of the registrations since they were read.
pub struct Registrations(Watch);

/// The changes of a ledger's metadata since a version of it.
pub struct Ledger {
    id: LedgerId,
    changes: Watch,
}

/// A ledger that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The ledger.
    pub ledger: LedgerId,
    /// The bookies that its entries were to be on when it was deleted; others may have some too.
    pub bookies: BTreeSet<BookieId>,
}

/// The ledgers that were deleted since those before were read.
pub struct Deletions(Watch);

impl Catalog {
    /// Returns all bookies that run, and what changes from then on.
    pub async fn follow_registrations(
        &self,
    ) -> Result<(Vec<(BookieId, Registration)>, Registrations), Error> {
        let (registrations, read_at) = self.registrations_at().await?;
        let changes = self.store.watch(REGISTRATIONS, read_at).await?;
        Ok((registrations, Registrations(changes)))
    }

    /// Returns a ledger's metadata, and the revision from which on it may be followed.
    pub async fn ledger_at(&self, id: LedgerId) -> Result<(Versioned, Version), Error> {
        // No key of a ledger begins with another's. A key's own version would not do: watches
        // forget revisions, and to them those of before a restart are forgotten.
        let page = self.store.scan(Scan { limit: 1, ..Scan::new(ledger_key(id)) }).await?;
        match page.entries.first() {
            Some(found) => Ok((decode(found)?, page.revision)),
            None => Err(self.missing(id).await?),
        }
    }

    /// Returns a page of deleted ledgers behind `after`, in the order of their ids, and the revision
    /// from which on others may be missing. An empty page is the end.
    pub async fn deleted(&self, after: Option<LedgerId>) -> Result<(Vec<Deleted>, Version), Error> {
        let scan = Scan { after: after.map(deleted_key), ..Scan::new(DELETED) };
        let page = self.store.scan(scan).await?;
        let deleted = page.entries.iter().map(Deleted::parse);
        Ok((deleted.collect::<Result<_, _>>()?, page.revision))
    }

    /// Tells which ledgers are deleted after others were read.
    pub async fn follow_deletions(&self, read_at: Version) -> Result<Deletions, Error> {
        Ok(Deletions(self.store.watch(DELETED, read_at).await?))
    }

    /// Tells what changes in a ledger's metadata after it was read.
    pub async fn follow_ledger(&self, id: LedgerId, read_at: Version) -> Result<Ledger, Error> {
        let changes = self.store.watch(&ledger_key(id), read_at).await?;
        Ok(Ledger { id, changes })
    }
}

impl Registrations {
    /// Waits for the next changes: bookies with their registrations, or none if they do not run
    /// any more. May be called again after an error that says that the metastore is away; after
    /// any other the registrations have to be read anew.
    pub async fn next(&mut self) -> Result<Vec<(BookieId, Option<Registration>)>, Error> {
        let changes = self.0.next().await?.into_iter();
        let bookie = |Change { key, now, .. }: Change| {
            let registration = now.map(|now| Registration::decode(now.value)).transpose();
            Ok((bookie_in(&key)?, registration.map_err(|error| damaged(&key, &error))?))
        };
        changes.map(bookie).collect()
    }
}

impl Deletions {
    /// Waits until ledgers are deleted, and returns them. May be called again after an error that
    /// says that the metastore is away; after any other they have to be read anew.
    pub async fn next(&mut self) -> Result<Vec<Deleted>, Error> {
        let changes = self.0.next().await?.into_iter();
        changes.filter_map(|change| change.now).map(|now| Deleted::parse(&now)).collect()
    }
}

impl Deleted {
    fn parse(found: &KeyValue) -> Result<Self, Error> {
        let (_, metadata) = decode(found)?;
        Ok(Self { ledger: metadata.ledger, bookies: metadata.bookies() })
    }
}

impl Ledger {
    /// Waits until the metadata changes, and returns it as it is then;
    /// [`Error::LedgerDeleted`] when the ledger is deleted. May be called again after an error
    /// that says that the metastore is away; after any other the metadata has to be read anew.
    pub async fn next(&mut self) -> Result<Versioned, Error> {
        loop {
            let newest = self.changes.next().await?.pop();
            match newest {
                Some(Change { now: Some(now), .. }) => return decode(&now),
                Some(Change { now: None, .. }) => return Err(Error::LedgerDeleted(self.id)),
                None => {}
            }
        }
    }
}
