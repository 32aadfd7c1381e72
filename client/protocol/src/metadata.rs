//! A ledger's metadata: who writes it, who holds which of its entries, and whether it has ended.
//!
//! The metastore keeps it as protobuf; [`LedgerMetadata::encode`] and
//! [`decode`](LedgerMetadata::decode) are the only way in and out, and what they let through
//! keeps every rule stated here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;

use crate::{BookieId, EntryId, LedgerId, Replication, WriterId};

mod stored;

/// The most bytes that the keys and values of a ledger's custom metadata may have together.
pub const CUSTOM_METADATA_BYTES_MAX: usize = 64 << 10;
/// The most fragments that a ledger may have.
pub const FRAGMENTS_MAX: usize = 10_000;
/// The most bytes that the metadata may have when encoded: what the metastore takes.
pub const METADATA_BYTES_MAX: usize = 1 << 20;
/// The most bytes that the name of a namespace or an owner may have.
pub const NAME_BYTES_MAX: usize = 255;

/// What the metastore knows of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LedgerMetadata {
    /// The ledger's id.
    pub ledger: LedgerId,
    /// The namespace that it is listed under.
    pub namespace: String,
    /// The certificate name of the client that created it.
    pub owner: String,
    /// The only writer that may append, change ensembles, or close as writer.
    pub writer: WriterId,
    /// How its entries are spread.
    pub replication: Replication,
    /// Whether it is written, recovered or closed.
    pub state: State,
    /// Who holds which entries: ordered by first entry, the first of them begins at 0.
    pub fragments: Vec<Fragment>,
    /// When it was created, in milliseconds since 1970, by the creator's clock.
    pub created_at_ms: u64,
    /// The request that created it, if the creator named one: a retry of it creates no other.
    pub request: Option<Uuid>,
    /// What the creator wants to be kept with it.
    pub custom: BTreeMap<String, Bytes>,
    /// The oldest version of this format whose programs may change this metadata.
    pub modifiable_from: u32,
}

/// The state of a ledger. It only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Its writer may append.
    Open,
    /// Some client is finding its end; its writer can no longer end it.
    InRecovery,
    /// It has an end, which never changes.
    Closed {
        /// The last entry; none when the ledger is empty.
        last: Option<EntryId>,
        /// The payload bytes of all entries.
        length: u64,
    },
}

/// A run of entries with one ensemble. It ends where the next fragment begins.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fragment {
    /// Its first entry.
    pub first: EntryId,
    /// The ledger's length in payload bytes before its first entry.
    pub length_before: u64,
    /// The bookies, by place.
    pub ensemble: Vec<BookieId>,
}

/// Why stored bytes are no metadata that this program can use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetadataError {
    /// They were never metadata, or were damaged.
    #[error("the ledger's metadata is not valid: {0}")]
    Invalid(String),
    /// They are of a newer version.
    #[error(
        "the ledger's metadata is of version {found}, and this program knows {FORMAT_VERSION}; upgrade it"
    )]
    TooNew {
        /// The oldest version that may read, or change, what was found.
        found: u32,
    },
}

/// The version of the stored form that this program writes.
pub const FORMAT_VERSION: u32 = 1;

impl LedgerMetadata {
    /// Returns the fragment that new entries go to.
    ///
    /// # Panics
    /// If there is none: every ledger is created with one.
    pub fn last_fragment(&self) -> &Fragment {
        self.fragments.last().expect("a ledger has a fragment")
    }

    /// Returns the fragment that an entry is in.
    pub fn fragment_of(&self, entry: EntryId) -> &Fragment {
        let after = self.fragments.partition_point(|fragment| fragment.first <= entry);
        // The first fragment begins at 0, so some fragment begins at or before every entry.
        &self.fragments[after.saturating_sub(1)]
    }

    /// Gives new entries another ensemble from `first` on, before which the ledger has
    /// `length_before` bytes. A last fragment that begins there has no entries yet that count,
    /// and is replaced.
    pub fn change_ensemble(&mut self, first: EntryId, length_before: u64, ensemble: Vec<BookieId>) {
        if self.last_fragment().first == first {
            self.fragments.pop();
        }
        self.fragments.push(Fragment { first, length_before, ensemble });
    }

    /// Returns every bookie that some fragment names.
    pub fn bookies(&self) -> BTreeSet<BookieId> {
        self.fragments.iter().flat_map(|fragment| fragment.ensemble.iter().copied()).collect()
    }

    /// Encodes the metadata for the metastore.
    ///
    /// Fails if it breaks a limit or a rule, or if a newer program wrote it in a form that this
    /// one may read but must not change.
    pub fn encode(&self) -> Result<Bytes, MetadataError> {
        if self.modifiable_from > FORMAT_VERSION {
            return Err(MetadataError::TooNew { found: self.modifiable_from });
        }
        self.check().map_err(MetadataError::Invalid)?;
        let bytes = stored::encode(self);
        if bytes.len() > METADATA_BYTES_MAX {
            let why =
                format!("it has {} bytes, and the limit is {METADATA_BYTES_MAX}", bytes.len());
            return Err(MetadataError::Invalid(why));
        }
        Ok(bytes)
    }

    /// Decodes what [`encode`](Self::encode) made, by this version or another.
    pub fn decode(bytes: &[u8]) -> Result<Self, MetadataError> {
        let metadata = stored::decode(bytes)?;
        metadata.check().map_err(MetadataError::Invalid)?;
        Ok(metadata)
    }

    /// Says which rule is broken, if one is.
    fn check(&self) -> Result<(), String> {
        let custom: usize = self.custom.iter().map(|(key, value)| key.len() + value.len()).sum();
        if custom > CUSTOM_METADATA_BYTES_MAX {
            return Err(format!(
                "its custom metadata has {custom} bytes, and the limit is \
                 {CUSTOM_METADATA_BYTES_MAX}"
            ));
        }
        check_name("namespace", &self.namespace)?;
        check_name("owner", &self.owner)?;
        if self.fragments.len() > FRAGMENTS_MAX {
            return Err(format!("it has more than {FRAGMENTS_MAX} fragments"));
        }
        if self.fragments.first().is_none_or(|fragment| fragment.first != EntryId::FIRST) {
            return Err("its first fragment does not begin at entry 0".to_owned());
        }
        if !self.fragments.is_sorted_by(|a, b| a.first < b.first) {
            return Err("its fragments are out of order".to_owned());
        }
        self.fragments.iter().try_for_each(|fragment| self.check_ensemble(fragment))
    }

    fn check_ensemble(&self, fragment: &Fragment) -> Result<(), String> {
        let distinct: BTreeSet<_> = fragment.ensemble.iter().collect();
        if fragment.ensemble.len() != self.replication.ensemble()
            || distinct.len() != fragment.ensemble.len()
        {
            return Err(format!(
                "the ensemble from entry {} on is not {} different bookies",
                fragment.first,
                self.replication.ensemble()
            ));
        }
        Ok(())
    }
}

/// Says whether a name can be part of a key.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(['/', '\0']) {
        return Err(format!(
            "the {what} {name:?} must have 1 to {NAME_BYTES_MAX} bytes and no slash"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata() -> LedgerMetadata {
        LedgerMetadata {
            ledger: LedgerId::new(9).unwrap(),
            namespace: "default".to_owned(),
            owner: "client".to_owned(),
            writer: WriterId(Uuid::from_u128(1)),
            replication: Replication::new(3, 2, 2).unwrap(),
            state: State::Closed { last: Some(EntryId::new(11)), length: 70 },
            fragments: vec![fragment(0, [1, 2, 3]), fragment(10, [1, 4, 3])],
            created_at_ms: 1_700_000_000_000,
            request: Some(Uuid::from_u128(5)),
            custom: BTreeMap::from([("purpose".to_owned(), Bytes::from_static(b"a test"))]),
            modifiable_from: FORMAT_VERSION,
        }
    }

    fn fragment(first: u64, ensemble: [u128; 3]) -> Fragment {
        let ensemble = ensemble.map(|bookie| BookieId(Uuid::from_u128(bookie))).to_vec();
        Fragment { first: EntryId::new(first), length_before: first * 6, ensemble }
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        let states = [
            State::Open,
            State::InRecovery,
            State::Closed { last: None, length: 0 },
            State::Closed { last: Some(EntryId::FIRST), length: 0 },
        ];
        for state in states {
            let metadata = LedgerMetadata { state, ..metadata() };
            assert_eq!(LedgerMetadata::decode(&metadata.encode().unwrap()), Ok(metadata));
        }
    }

    #[test]
    fn an_entry_is_in_the_last_fragment_that_begins_at_or_before_it() {
        let metadata = metadata();
        for (entry, first) in [(0, 0), (9, 0), (10, 10), (1000, 10)] {
            assert_eq!(metadata.fragment_of(EntryId::new(entry)).first, EntryId::new(first));
        }
    }

    #[test]
    fn what_breaks_a_rule_is_neither_written_nor_read() {
        type Break = fn(&mut LedgerMetadata);
        let break_it: [(&str, Break); 6] = [
            ("out of order", |m| m.fragments[1].first = EntryId::FIRST),
            ("entry 0", |m| drop(m.fragments.remove(0))),
            ("different bookies", |m| m.fragments[0].ensemble[1] = m.fragments[0].ensemble[0]),
            ("different bookies", |m| m.replication = Replication::new(2, 2, 2).unwrap()),
            ("no slash", |m| m.namespace = "a/b".to_owned()),
            ("limit is 65536", |m| {
                m.custom.insert("big".to_owned(), vec![0; CUSTOM_METADATA_BYTES_MAX].into());
            }),
        ];
        for (words, break_it) in break_it {
            let mut broken = metadata();
            break_it(&mut broken);
            let written = broken.encode().unwrap_err().to_string();
            let read = LedgerMetadata::decode(&stored::encode(&broken)).unwrap_err().to_string();
            assert!(written.contains(words), "{written}");
            assert_eq!(written, read);
        }
    }

    #[test]
    fn a_newer_form_is_read_but_not_changed() {
        let newer = LedgerMetadata { modifiable_from: 2, ..metadata() };
        let read = LedgerMetadata::decode(&stored::encode(&newer)).unwrap();
        assert_eq!(read.encode(), Err(MetadataError::TooNew { found: 2 }));
    }
}
