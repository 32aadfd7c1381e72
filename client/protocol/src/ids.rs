//! The names of things: ledgers, entries, bookies, writers.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// Numbers a ledger within its cluster. Ids are never reused and are below 2^53, so that every
/// language can hold them exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LedgerId(u64);

impl LedgerId {
    /// The highest id there can be.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// Makes an id of a number, if it is not too large.
    pub const fn new(id: u64) -> Option<Self> {
        if id <= Self::MAX.0 { Some(Self(id)) } else { None }
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for LedgerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for LedgerId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let id = text.parse().map_err(|_| format!("'{text}' is not a decimal ledger id"))?;
        Self::new(id).ok_or_else(|| format!("{id} is above the highest ledger id, {}", Self::MAX))
    }
}

/// Numbers an entry within its ledger. The first entry is 0, and there are no gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryId(u64);

impl EntryId {
    /// The first entry of every ledger.
    pub const FIRST: Self = Self(0);
    /// The highest id that is taken from anybody: far from where counting on would overflow.
    pub const MAX: Self = Self(1 << 62);

    /// Makes an id of a number.
    pub const fn new(id: u64) -> Self {
        Self(id)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the entry after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Returns the entry before this one; none is before the first.
    pub const fn previous(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// Returns the entry that follows `last`, where "none yet" is followed by the first.
    pub const fn after(last: Option<Self>) -> Self {
        match last {
            Some(last) => last.next(),
            None => Self::FIRST,
        }
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names a bookie: made once, when its disk is formatted. Its address is something else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BookieId(pub Uuid);

impl fmt::Display for BookieId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Names the one writer of a ledger: made anew for each ledger, and never given to two writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WriterId(pub Uuid);

impl fmt::Display for WriterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Counts the bookies that one place of an ensemble has had. An acknowledgement counts only in
/// the tenure in which its add was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenure(pub u64);

/// Numbers the versions of one ledger's metadata, as the metastore does: a later version is
/// higher, and none is used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetadataVersion(pub u64);
