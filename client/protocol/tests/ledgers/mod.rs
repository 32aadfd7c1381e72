//! A ledger, its entries, and bookies with short names.

use std::collections::BTreeMap;

use inkfast_protocol::metadata::FORMAT_VERSION;
use inkfast_protocol::{
    BookieId, Entry, EntryHeader, EntryId, Fragment, LedgerId, LedgerMetadata, Replication, State,
    WriterId,
};
use uuid::Uuid;

/// The id of the only ledger there is.
pub(crate) fn ledger_id() -> LedgerId {
    LedgerId::new(7).expect("a small id")
}

/// Makes the bookie of a number.
pub(crate) fn bookie(number: usize) -> BookieId {
    BookieId(Uuid::from_u128(number as u128))
}

/// Makes the writer of a number.
pub(crate) fn writer(number: u128) -> WriterId {
    WriterId(Uuid::from_u128(number))
}

/// Makes the metadata of a ledger that was just created on the bookies 0 to E - 1.
pub(crate) fn ledger(replication: Replication) -> LedgerMetadata {
    let ensemble = (0..replication.ensemble()).map(bookie).collect();
    LedgerMetadata {
        ledger: ledger_id(),
        namespace: "default".to_owned(),
        owner: "client".to_owned(),
        writer: writer(1),
        replication,
        state: State::Open,
        fragments: vec![Fragment { first: EntryId::FIRST, length_before: 0, ensemble }],
        created_at_ms: 0,
        request: None,
        custom: BTreeMap::new(),
        modifiable_from: FORMAT_VERSION,
    }
}

/// Makes an entry, with the length that the ledger has with it.
pub(crate) fn entry(id: u64, confirmed: Option<u64>, length: u64, payload: &[u8]) -> Entry {
    let header = EntryHeader {
        ledger: ledger_id(),
        entry: EntryId::new(id),
        last_add_confirmed: confirmed.map(EntryId::new),
        length,
        written_at_ms: 0,
    };
    Entry::encode(header, payload)
}
