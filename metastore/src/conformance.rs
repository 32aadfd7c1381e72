//! One suite for every metastore: a function for each claim.
//!
//! Each claim uses keys of its own, so the suite runs against a store that is not empty and as
//! often as one likes. A claim that does not hold panics.

mod leases;
mod limits;
mod scans;
mod transactions;
mod watches;

use crate::{Metastore, Transaction, Version};

pub use leases::{
    a_lease_expires, a_lease_kept_alive_lives_on, a_rewritten_key_leaves_its_lease,
    keys_vanish_with_their_lease, unknown_leases_are_refused,
};
pub use limits::{
    bad_keys_and_values_are_refused, bad_leases_and_sequences_are_refused, bad_scans_are_refused,
    bad_transactions_are_refused, the_largest_of_everything_is_taken,
};
pub use scans::{
    a_scan_begins_after_a_key, a_scan_sees_its_prefix_only, pages_are_bounded_in_bytes,
    pages_have_no_gap, stale_reads_come_to_the_present,
};
pub use transactions::{
    a_transaction_happens_whole_or_not, create_happens_once, delete_needs_no_version,
    increments_are_not_lost, put_is_unconditional, remove_and_replace_need_the_version,
    sequences_never_repeat, the_cluster_stays_the_same, versions_are_never_used_twice,
};
pub use watches::{
    a_watch_begins_after_any_recent_revision, a_watch_says_what_is_forgotten,
    a_watch_sees_leases_end, a_watch_tears_no_transaction, a_watch_tells_all_of_its_prefix,
    bad_watches_are_refused, breaking_off_a_watch_loses_nothing, many_watches_are_told_their_own,
};

/// Checks all claims.
pub async fn run(store: &dyn Metastore) {
    put_is_unconditional(store).await;
    create_happens_once(store).await;
    remove_and_replace_need_the_version(store).await;
    delete_needs_no_version(store).await;
    versions_are_never_used_twice(store).await;
    a_transaction_happens_whole_or_not(store).await;
    increments_are_not_lost(store).await;
    sequences_never_repeat(store).await;
    the_cluster_stays_the_same(store).await;

    a_scan_sees_its_prefix_only(store).await;
    a_scan_begins_after_a_key(store).await;
    pages_have_no_gap(store).await;
    pages_are_bounded_in_bytes(store).await;
    stale_reads_come_to_the_present(store).await;

    keys_vanish_with_their_lease(store).await;
    a_rewritten_key_leaves_its_lease(store).await;
    unknown_leases_are_refused(store).await;
    tokio::join!(a_lease_expires(store), a_lease_kept_alive_lives_on(store));

    a_watch_tells_all_of_its_prefix(store).await;
    a_watch_tears_no_transaction(store).await;
    a_watch_sees_leases_end(store).await;
    a_watch_begins_after_any_recent_revision(store).await;
    breaking_off_a_watch_loses_nothing(store).await;
    many_watches_are_told_their_own(store).await;
    bad_watches_are_refused(store).await;
    a_watch_says_what_is_forgotten(store).await;

    bad_keys_and_values_are_refused(store).await;
    bad_transactions_are_refused(store).await;
    bad_scans_are_refused(store).await;
    bad_leases_and_sequences_are_refused(store).await;
    the_largest_of_everything_is_taken(store).await;
}

/// Makes a prefix that no key has yet.
fn fresh_prefix() -> String {
    format!("conformance/{}/", uuid::Uuid::new_v4())
}

async fn commit(store: &dyn Metastore, transaction: Transaction) -> Version {
    store.commit(transaction).await.expect("the transaction is committed")
}

async fn value(store: &dyn Metastore, key: &str) -> Option<Vec<u8>> {
    let entry = store.get(key).await.expect("the key can be read");
    entry.map(|entry| entry.value.to_vec())
}
