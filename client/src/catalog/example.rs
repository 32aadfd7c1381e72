//! A ledger for the tests of those who use the catalog.

use std::collections::BTreeMap;

use inkfast_protocol::{
    BookieId, EntryId, Fragment, LedgerMetadata, Replication, State, WriterId, metadata,
};
use uuid::Uuid;

use super::{Catalog, Versioned};

/// Creates a ledger that is open, on one bookie.
pub(crate) async fn create_ledger(catalog: &Catalog) -> Versioned {
    let ensemble = vec![BookieId(Uuid::from_u128(1))];
    let metadata = LedgerMetadata {
        ledger: catalog.next_ledger_id().await.unwrap(),
        namespace: "default".to_owned(),
        owner: "client".to_owned(),
        writer: WriterId(Uuid::from_u128(2)),
        replication: Replication::new(1, 1, 1).unwrap(),
        state: State::Open,
        fragments: vec![Fragment { first: EntryId::FIRST, length_before: 0, ensemble }],
        created_at_ms: 0,
        request: None,
        custom: BTreeMap::new(),
        modifiable_from: metadata::FORMAT_VERSION,
    };
    (catalog.create(&metadata).await.unwrap().unwrap(), metadata)
}
