//! The metastore in memory keeps the contract.

use inkfast_metastore::{MemoryMetastore, conformance};

#[tokio::test(start_paused = true)]
async fn conforms() {
    conformance::run(&MemoryMetastore::new()).await;
}
