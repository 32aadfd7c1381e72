//! What must hold at every moment, told from the disks, the metadata, and what the writer was
//! told.

use inkfast_protocol::recovery;
use inkfast_protocol::writer;
use inkfast_protocol::{EntryId, LedgerMetadata, Places, State};

use crate::messages::{Asked, Message};
use crate::world::{World, index, number};

/// The bookies that have an entry on disk.
type Holders = Places;

impl World {
    /// Checks everything that must hold now.
    pub(crate) fn check(&self) {
        let mut holders = vec![Holders::default(); self.appended.len()];
        for (number, bookie) in self.bookies.iter().enumerate() {
            bookie.check();
            for entry in bookie.entries() {
                assert_eq!(entry, &self.appended[index(entry.id())], "a copy has other bytes");
                holders[index(entry.id())].insert(number);
            }
            let confirmed = bookie.last_add_confirmed();
            assert!(confirmed <= self.confirmed, "bookie {number} knows of {confirmed:?}");
        }
        assert_eq!(self.writer.last_add_confirmed(), self.confirmed, "it was not told all");
        let metastore = &self.metastore;
        match metastore.metadata.state {
            State::Closed { .. } => {
                assert_eq!(metastore.end, Some(metastore.metadata.state), "the end has changed");
            }
            _ => assert_eq!(metastore.end, None, "the ledger was opened again"),
        }
        self.check_metadata(&metastore.metadata, &holders);
        // What may land at any moment must hold then too.
        for message in &self.on_the_way {
            if let Message::Question(ticket) = message
                && let Asked::Writer(writer::Action::Cas { version, metadata })
                | Asked::Recovery(_, recovery::Action::Cas { version, metadata }) =
                    &self.questions[*ticket].asked
                && *version == metastore.version
            {
                self.check_metadata(metadata, &holders);
            }
        }
    }

    /// Checks what is confirmed, and the end, against metadata that is there or may come.
    fn check_metadata(&self, metadata: &LedgerMetadata, holders: &[Holders]) {
        self.check_fragments(metadata);
        check_written(metadata, self.confirmed, holders);
        if let State::Closed { last, length } = metadata.state {
            assert!(self.confirmed <= last, "{:?} was confirmed, beyond {last:?}", self.confirmed);
            check_written(metadata, last, holders);
            assert_eq!(length, self.length_before(EntryId::after(last)), "the length is wrong");
            let begins = metadata.last_fragment().first;
            assert!(begins <= EntryId::after(last), "the end {last:?} is before a fragment");
        }
    }

    fn check_fragments(&self, metadata: &LedgerMetadata) {
        let fragments = &metadata.fragments;
        assert_eq!(fragments[0].first, EntryId::FIRST);
        assert!(fragments.is_sorted_by(|a, b| a.first < b.first), "{fragments:?}");
        for fragment in fragments {
            let bookies: Places = fragment.ensemble.iter().map(number).collect();
            assert_eq!(bookies.iter().count(), self.replication.ensemble(), "a bookie is in twice");
            let length = self.length_before(fragment.first);
            assert_eq!(fragment.length_before, length, "{fragment:?} has another length before");
        }
    }

    /// The payload bytes of all entries before this one.
    fn length_before(&self, entry: EntryId) -> u64 {
        entry.previous().map_or(0, |last| self.appended[index(last)].header().length)
    }
}

/// Checks that all entries up to the last are on the disks of an ack quorum of the bookies that
/// the metadata names for them.
fn check_written(metadata: &LedgerMetadata, last: Option<EntryId>, holders: &[Holders]) {
    for entry in last.into_iter().flat_map(|last| 0..=last.get()) {
        let entry_id = EntryId::new(entry);
        let ensemble = &metadata.fragment_of(entry_id).ensemble;
        let holders = holders[index(entry_id)];
        let has = |place: &usize| holders.contains(number(&ensemble[*place]));
        let copies: Places = (0..ensemble.len()).filter(has).collect();
        assert!(
            metadata.replication.is_written(entry, copies),
            "entry {entry} of 0 to {last:?} is only on the places {copies:?} of {ensemble:?}"
        );
    }
}
