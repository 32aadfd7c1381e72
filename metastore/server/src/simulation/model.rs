//! What the entries that members applied make of an empty store, in memory and all at once.

use std::collections::BTreeMap;

use inkfast_metastore::memory::MemoryRows;
use inkfast_metastore::messages::decode_command;
use inkfast_metastore::state::{apply, revision};
use inkfast_metastore::{Change, KeyValue, Version};
use openraft::EntryPayload;

use crate::consensus::types::{Data, Entry};
use crate::test_commands::{AllRows, walk};

pub(super) struct Model {
    rows: MemoryRows,
    /// In the order of their revisions.
    changes: Vec<Change>,
}

impl Model {
    /// Applies all entries, of which none but the first may be missing: it names the first member.
    pub(super) fn of(entries: Vec<Entry>) -> Result<Self, String> {
        let (mut rows, mut changes) = (MemoryRows::default(), Vec::new());
        for (entry, index) in entries.into_iter().zip(1..) {
            if entry.log_id.index != index {
                return Err(format!("the entry {index} was not seen when it was applied"));
            }
            if let EntryPayload::Normal(Data(data)) = entry.payload {
                let command = decode_command(data).map_err(|error| error.to_string())?;
                // What it was answered is checked with the history.
                let _ = apply(&mut rows, command, &mut changes).map_err(|error| error.0)?;
            }
        }
        Ok(Self { rows, changes })
    }

    pub(super) fn rows(&self) -> AllRows {
        walk(&self.rows)
    }

    pub(super) fn revision(&self) -> Result<Version, String> {
        revision(&self.rows).map_err(|error| error.0)
    }

    /// Returns all changes after a revision, and up to another one.
    pub(super) fn changes(&self, after: Version, upto: Version) -> &[Change] {
        let start = self.changes.partition_point(|change| change.revision <= after);
        let end = self.changes.partition_point(|change| change.revision <= upto);
        self.changes.get(start..end).unwrap_or_default()
    }

    /// Returns the keys with a prefix as they were at a revision.
    pub(super) fn entries(&self, prefix: &str, at: Version) -> Vec<KeyValue> {
        let mut entries = BTreeMap::new();
        for change in self.changes(Version::new(0), at) {
            if change.key.starts_with(prefix) {
                entries.insert(&change.key, &change.now);
            }
        }
        entries.into_values().flatten().cloned().collect()
    }
}
