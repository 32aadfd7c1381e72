//! Claims about what is taken and what is refused.

use std::fmt::Debug;
use std::time::Duration;

use super::{commit, fresh_prefix, value};
use crate::limits::{
    LEASE_KEYS_MAX, LEASE_TTL_MAX, OPERATION_BYTES, SEQUENCE_BLOCK_MAX, TRANSACTION_BYTES_MAX,
    TRANSACTION_OPERATIONS_MAX,
};
use crate::{Error, KEY_BYTES_MAX, Metastore, Scan, Transaction, VALUE_BYTES_MAX, Version};

/// Checks that keys and values have bounds, in every request.
pub async fn bad_keys_and_values_are_refused(store: &dyn Metastore) {
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    for key in ["", &long] {
        refused(store.get(key).await);
        refused(store.next_sequence(key, 1).await);
        refused(store.commit(Transaction::new().put(key, "")).await);
        refused(store.commit(Transaction::new().delete(key)).await);
        refused(store.commit(Transaction::new().create(key, "")).await);
        refused(store.commit(Transaction::new().remove(key, Version::new(1))).await);
    }
    let key = fresh_prefix() + "large";
    refused(store.commit(Transaction::new().put(&key, vec![0; VALUE_BYTES_MAX + 1])).await);
    assert_eq!(value(store, &key).await, None);
}

/// Checks that a transaction writes no key twice and has bounds; nothing of a bad one is written.
pub async fn bad_transactions_are_refused(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let key = |number: usize| format!("{prefix}{number}");
    refused(store.commit(Transaction::new().put(key(0), "1").put(key(0), "2")).await);
    refused(store.commit(Transaction::new().put(key(0), "1").delete(key(0))).await);
    let puts = |count| (0..count).fold(Transaction::new(), |all, number| all.put(key(number), "x"));
    refused(store.commit(puts(TRANSACTION_OPERATIONS_MAX + 1)).await);
    let large = Transaction::new()
        .put(key(0), vec![0; VALUE_BYTES_MAX])
        .put(key(1), vec![0; VALUE_BYTES_MAX]);
    refused(store.commit(large).await);
    assert_eq!(value(store, &key(0)).await, None);
}

/// Checks that a scan asks for something, and goes on within its prefix.
pub async fn bad_scans_are_refused(store: &dyn Metastore) {
    refused(store.scan(Scan { limit: 0, ..Scan::new("a") }).await);
    refused(store.scan(Scan::new("p".repeat(KEY_BYTES_MAX + 1))).await);
    for after in ["a".repeat(KEY_BYTES_MAX + 1), "".into(), "A".into(), "b".into()] {
        refused(store.scan(Scan { after: Some(after), ..Scan::new("a") }).await);
    }
}

/// Checks that TTLs and blocks have bounds, and that a sequence ends rather than repeats.
pub async fn bad_leases_and_sequences_are_refused(store: &dyn Metastore) {
    refused(store.grant_lease(Duration::ZERO).await);
    refused(store.grant_lease(Duration::from_micros(1)).await);
    refused(store.grant_lease(LEASE_TTL_MAX + Duration::from_millis(1)).await);
    refused(store.grant_lease(Duration::MAX).await);
    let name = fresh_prefix();
    refused(store.next_sequence(&name, 0).await);
    refused(store.next_sequence(&name, SEQUENCE_BLOCK_MAX + 1).await);
    refused(store.next_sequence(&name, u64::MAX).await);
    assert_eq!(store.next_sequence(&name, SEQUENCE_BLOCK_MAX).await, Ok(0..SEQUENCE_BLOCK_MAX));

    let lease = store.grant_lease(LEASE_TTL_MAX).await.expect("a lease");
    let leased = |range: std::ops::Range<usize>| {
        range.fold(Transaction::new(), |all, number| {
            all.put_leased(format!("{name}{number}"), "", lease)
        })
    };
    commit(store, leased(0..LEASE_KEYS_MAX)).await;
    refused(store.commit(leased(LEASE_KEYS_MAX..LEASE_KEYS_MAX + 1)).await);
    commit(store, leased(0..1)).await;
    assert_eq!(store.end_lease(lease).await, Ok(()));
    assert_eq!(store.scan(Scan::new(&name)).await.map(|page| page.entries.len()), Ok(0));
}

/// Checks that what is just within the limits is written and read back.
pub async fn the_largest_of_everything_is_taken(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let longest = format!("{prefix:k<KEY_BYTES_MAX$}");
    let rest = TRANSACTION_BYTES_MAX - VALUE_BYTES_MAX - KEY_BYTES_MAX - 2 * OPERATION_BYTES;
    let other = format!("{prefix:o<KEY_BYTES_MAX$}");
    let largest = Transaction::new()
        .put(&longest, vec![1; VALUE_BYTES_MAX])
        .put(&other, vec![2; rest - KEY_BYTES_MAX]);
    commit(store, largest).await;
    assert_eq!(value(store, &longest).await, Some(vec![1; VALUE_BYTES_MAX]));
    assert_eq!(value(store, &other).await, Some(vec![2; rest - KEY_BYTES_MAX]));
    let page = store.scan(Scan::new(&prefix)).await.expect("a page");
    assert_eq!((page.entries.len(), page.more), (2, false), "a full page");

    let many = (0..TRANSACTION_OPERATIONS_MAX)
        .fold(Transaction::new(), |all, number| all.put(format!("{prefix}many/{number}"), "x"));
    commit(store, many).await;
    let clean = Transaction::new().delete(&longest).delete(&other);
    commit(store, clean).await;
}

#[track_caller]
fn refused<T: Debug>(outcome: Result<T, Error>) {
    match outcome {
        Err(Error::BadRequest { why }) => assert!(!why.is_empty()),
        other => panic!("a bad request is refused, not {other:?}"),
    }
}
