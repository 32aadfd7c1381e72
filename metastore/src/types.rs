//! What goes in and comes out: keys with their versions, transactions, scans.

use std::fmt::{self, Display, Formatter};

use bytes::Bytes;

use crate::limits::PAGE_ENTRIES_MAX;

/// The store's revision at which a key was last written.
///
/// The revision is one number for the whole store and only grows, so a version is never used
/// twice: a key that is deleted and created again has another version than before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// Makes a version from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the version's number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Display for Version {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a lease. A number is never given to a second lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(u64);

impl LeaseId {
    /// Makes a lease's id from its number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the id's number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Display for LeaseId {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A key and what the store has under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// Its value.
    pub value: Bytes,
    /// When it was last written.
    pub version: Version,
    /// The lease that it ends with, if it has one.
    pub lease: Option<LeaseId>,
}

/// Conditions and writes: all conditions hold and all writes happen, at one revision, or nothing
/// happens.
///
/// The conditions look at the store as it was before the writes. No key is written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// What must hold.
    pub conditions: Vec<Condition>,
    /// What is then written.
    pub writes: Vec<Write>,
}

/// What a transaction asks of the store before it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// There is no such key.
    Absent {
        /// The key.
        key: String,
    },
    /// The key is there and was last written at this version.
    At {
        /// The key.
        key: String,
        /// The version that it must have.
        version: Version,
    },
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets the key's value, and its lease or that it has none.
    Put {
        /// The key.
        key: String,
        /// The new value.
        value: Bytes,
        /// The lease that the key is to end with.
        lease: Option<LeaseId>,
    },
    /// Removes the key, if it is there.
    Delete {
        /// The key.
        key: String,
    },
}

impl Transaction {
    /// Makes a transaction without conditions and writes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the key, whatever was there.
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Put { key: key.into(), value: value.into(), lease: None })
    }

    /// Writes the key under a lease, whatever was there.
    pub fn put_leased(
        self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        self.write(Write::Put { key: key.into(), value: value.into(), lease: Some(lease) })
    }

    /// Writes the key if it is absent.
    pub fn create(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        let key = key.into();
        self.condition(Condition::Absent { key: key.clone() }).put(key, value)
    }

    /// Writes the key under a lease if it is absent.
    pub fn create_leased(
        self,
        key: impl Into<String>,
        value: impl Into<Bytes>,
        lease: LeaseId,
    ) -> Self {
        let key = key.into();
        self.condition(Condition::Absent { key: key.clone() }).put_leased(key, value, lease)
    }

    /// Writes the key if it still has this version. It has no lease from then on.
    pub fn replace(
        self,
        key: impl Into<String>,
        version: Version,
        value: impl Into<Bytes>,
    ) -> Self {
        let key = key.into();
        self.condition(Condition::At { key: key.clone(), version }).put(key, value)
    }

    /// Removes the key, whether it is there or not.
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.write(Write::Delete { key: key.into() })
    }

    /// Removes the key if it still has this version.
    pub fn remove(self, key: impl Into<String>, version: Version) -> Self {
        let key = key.into();
        self.condition(Condition::At { key: key.clone(), version }).delete(key)
    }

    fn condition(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    fn write(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }
}

impl Condition {
    /// Returns the key that is looked at.
    pub fn key(&self) -> &str {
        match self {
            Self::Absent { key } | Self::At { key, .. } => key,
        }
    }
}

impl Write {
    /// Returns the key that is written.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

/// Asks for the keys that begin with a prefix, in byte order, a page at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// What the keys begin with; all keys begin with the empty prefix.
    pub prefix: String,
    /// The key after which the page begins: the last one of the page before.
    pub after: Option<String>,
    /// The most entries wanted; no page has more than [`PAGE_ENTRIES_MAX`].
    pub limit: usize,
}

impl Scan {
    /// Asks for the first page of a prefix, as large as a page can be.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), after: None, limit: PAGE_ENTRIES_MAX }
    }
}

/// A run of keys, all seen at one moment.
///
/// Two pages are of two moments: what was written between them may or may not be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries in the order of their keys.
    pub entries: Vec<KeyValue>,
    /// Whether there is more after the last entry; it may be so though the limit was not reached.
    pub more: bool,
    /// The store's revision at that moment, to watch from; 0 in an empty store.
    pub revision: Version,
}

/// What became of a key, as a watch tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The revision at which it happened.
    pub revision: Version,
    /// The key.
    pub key: String,
    /// What is under the key since then; none if it was removed, also by the end of its lease.
    pub now: Option<KeyValue>,
}
