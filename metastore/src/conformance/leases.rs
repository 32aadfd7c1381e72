//! Claims about leases.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::{commit, fresh_prefix, value};
use crate::{Error, LeaseId, Metastore, Transaction};

/// Long enough for what is done with a lease before it ends by itself.
const LONG: Duration = Duration::from_secs(60);
/// Short enough to wait for.
const SHORT: Duration = Duration::from_millis(300);
/// How long a lease may outlive its TTL here.
const EXPIRY_DEADLINE: Duration = Duration::from_secs(20);

/// Checks that ending a lease removes its keys and no others, at a revision of its own.
pub async fn keys_vanish_with_their_lease(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let key = |name: &str| format!("{prefix}{name}");
    let lease = grant(store, LONG).await;
    let other = grant(store, LONG).await;
    assert_ne!(lease, other);
    let keys = Transaction::new()
        .create_leased(key("mine"), "1", lease)
        .put_leased(key("mine too"), "1", lease)
        .put_leased(key("another's"), "1", other)
        .put(key("nobody's"), "1");
    let before = commit(store, keys).await;
    let entry = store.get(&key("mine")).await.expect("a read").expect("the key");
    assert_eq!(entry.lease, Some(lease));

    assert_eq!(store.end_lease(lease).await, Ok(()));
    assert_eq!(value(store, &key("mine")).await, None);
    assert_eq!(value(store, &key("mine too")).await, None);
    assert!(value(store, &key("another's")).await.is_some());
    assert!(value(store, &key("nobody's")).await.is_some());
    let after = commit(store, Transaction::new().create(key("mine"), "2")).await;
    assert!(after.get() >= before.get() + 2, "the end of a lease has a revision");
    assert_eq!(store.end_lease(other).await, Ok(()));
}

/// Checks that a key ends with the lease of its last write only.
pub async fn a_rewritten_key_leaves_its_lease(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let key = |name: &str| format!("{prefix}{name}");
    let (old, new) = (grant(store, LONG).await, grant(store, LONG).await);
    let names = ["freed", "moved", "deleted", "kept"];
    let leased = |all: Transaction, name: &&str| all.put_leased(key(name), "1", old);
    commit(store, names.iter().fold(Transaction::new(), leased)).await;
    let rewrite = Transaction::new()
        .put(key("freed"), "2")
        .put_leased(key("moved"), "2", new)
        .delete(key("deleted"))
        .put_leased(key("kept"), "2", old);
    commit(store, rewrite).await;
    commit(store, Transaction::new().create(key("deleted"), "3")).await;

    assert_eq!(store.end_lease(old).await, Ok(()));
    assert!(value(store, &key("freed")).await.is_some());
    assert!(value(store, &key("moved")).await.is_some());
    assert!(value(store, &key("deleted")).await.is_some());
    assert_eq!(value(store, &key("kept")).await, None);
    assert_eq!(store.end_lease(new).await, Ok(()));
    assert_eq!(value(store, &key("moved")).await, None);
    assert!(value(store, &key("freed")).await.is_some());
}

/// Checks that nothing can be done with a lease that has ended.
pub async fn unknown_leases_are_refused(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let ended = grant(store, LONG).await;
    assert_eq!(store.end_lease(ended).await, Ok(()));
    assert_eq!(store.end_lease(ended).await, Err(Error::LeaseNotFound));
    assert_eq!(store.keep_alive(ended).await, Err(Error::LeaseNotFound));
    let write = Transaction::new().put(prefix.clone() + "plain", "1").put_leased(
        prefix.clone() + "leased",
        "1",
        ended,
    );
    assert_eq!(store.commit(write).await, Err(Error::LeaseNotFound));
    assert_eq!(value(store, &(prefix.clone() + "plain")).await, None);
    assert_eq!(value(store, &(prefix + "leased")).await, None);
}

/// Checks that a lease ends by itself when nobody keeps it alive, not before its TTL.
pub async fn a_lease_expires(store: &dyn Metastore) {
    let key = fresh_prefix() + "expires";
    let granted = Instant::now();
    let lease = grant(store, SHORT).await;
    commit(store, Transaction::new().create_leased(&key, "1", lease)).await;
    let vanished = async {
        while value(store, &key).await.is_some() {
            sleep(SHORT / 10).await;
        }
    };
    timeout(EXPIRY_DEADLINE, vanished).await.expect("the key vanishes");
    assert!(granted.elapsed() >= SHORT, "after {:?}", granted.elapsed());
    assert_eq!(store.keep_alive(lease).await, Err(Error::LeaseNotFound));
    assert_eq!(store.end_lease(lease).await, Err(Error::LeaseNotFound));
}

/// Checks that a lease which is kept alive outlives its TTL.
pub async fn a_lease_kept_alive_lives_on(store: &dyn Metastore) {
    let ttl = SHORT * 5;
    let key = fresh_prefix() + "lives";
    let lease = grant(store, ttl).await;
    commit(store, Transaction::new().create_leased(&key, "1", lease)).await;
    let granted = Instant::now();
    while granted.elapsed() < ttl * 2 {
        assert_eq!(store.keep_alive(lease).await, Ok(()));
        sleep(ttl / 10).await;
    }
    assert!(value(store, &key).await.is_some());
    assert_eq!(store.end_lease(lease).await, Ok(()));
}

async fn grant(store: &dyn Metastore, ttl: Duration) -> LeaseId {
    store.grant_lease(ttl).await.expect("a lease")
}
