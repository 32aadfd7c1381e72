//! Claims about writes and sequences.

use super::{commit, fresh_prefix, value};
use crate::{Error, KeyValue, Metastore, Transaction};

/// Checks that a put writes whatever was there, and that its version is the commit's.
pub async fn put_is_unconditional(store: &dyn Metastore) {
    let key = fresh_prefix() + "register";
    assert_eq!(value(store, &key).await, None);
    let first = commit(store, Transaction::new().put(&key, "one")).await;
    let second = commit(store, Transaction::new().put(&key, "two")).await;
    assert!(first < second, "{first} < {second}");
    let expected = KeyValue { key: key.clone(), value: "two".into(), version: second, lease: None };
    assert_eq!(store.get(&key).await, Ok(Some(expected)));
}

/// Checks that of many creates of a key one wins, and the others are told its version.
pub async fn create_happens_once(store: &dyn Metastore) {
    let key = fresh_prefix() + "once";
    let create =
        async |value: &'static str| store.commit(Transaction::new().create(&key, value)).await;
    let outcomes: [_; 4] = tokio::join!(create("a"), create("b"), create("c"), create("d")).into();
    let entry = store.get(&key).await.expect("a read").expect("one create won");
    let winners = outcomes.iter().filter(|outcome| **outcome == Ok(entry.version)).count();
    let conflict = Err(Error::Conflict { key: key.clone(), found: Some(entry.version) });
    let losers = outcomes.iter().filter(|outcome| **outcome == conflict).count();
    assert_eq!((winners, losers), (1, 3), "{outcomes:?}");
}

/// Checks compare-and-set, and compare-and-delete.
pub async fn remove_and_replace_need_the_version(store: &dyn Metastore) {
    let key = fresh_prefix() + "guarded";
    let first = commit(store, Transaction::new().create(&key, "one")).await;
    let second = commit(store, Transaction::new().replace(&key, first, "two")).await;
    let conflict = Err(Error::Conflict { key: key.clone(), found: Some(second) });
    assert_eq!(store.commit(Transaction::new().replace(&key, first, "three")).await, conflict);
    assert_eq!(store.commit(Transaction::new().remove(&key, first)).await, conflict);
    assert_eq!(value(store, &key).await.as_deref(), Some(&b"two"[..]));

    commit(store, Transaction::new().remove(&key, second)).await;
    assert_eq!(value(store, &key).await, None);
    let absent = Err(Error::Conflict { key: key.clone(), found: None });
    assert_eq!(store.commit(Transaction::new().remove(&key, second)).await, absent);
    assert_eq!(store.commit(Transaction::new().replace(&key, second, "four")).await, absent);
}

/// Checks that an unconditional delete succeeds, whether the key is there or not.
pub async fn delete_needs_no_version(store: &dyn Metastore) {
    let key = fresh_prefix() + "gone";
    commit(store, Transaction::new().put(&key, "here")).await;
    commit(store, Transaction::new().delete(&key)).await;
    assert_eq!(value(store, &key).await, None);
    commit(store, Transaction::new().delete(&key)).await;
}

/// Checks that a key which was deleted and made again with the same bytes has another version.
pub async fn versions_are_never_used_twice(store: &dyn Metastore) {
    let key = fresh_prefix() + "again";
    let before = commit(store, Transaction::new().create(&key, "same")).await;
    let deleted = commit(store, Transaction::new().delete(&key)).await;
    let after = commit(store, Transaction::new().create(&key, "same")).await;
    assert!(before < deleted && deleted < after, "{before}, {deleted}, {after}");
    let conflict = Err(Error::Conflict { key: key.clone(), found: Some(after) });
    assert_eq!(store.commit(Transaction::new().remove(&key, before)).await, conflict);
}

/// Checks that one condition which does not hold stops all writes, and that conditions see what
/// was there before.
pub async fn a_transaction_happens_whole_or_not(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let key = |name: &str| format!("{prefix}{name}");
    let first = commit(store, Transaction::new().create(key("a"), "1").create(key("b"), "1")).await;
    let entry = async |name: &str| store.get(&key(name)).await.expect("a read");
    assert_eq!(entry("a").await.map(|entry| entry.version), Some(first));
    assert_eq!(entry("b").await.map(|entry| entry.version), Some(first));

    let half = Transaction::new().put(key("c"), "2").delete(key("a")).create(key("b"), "2");
    let conflict = Error::Conflict { key: key("b"), found: Some(first) };
    assert_eq!(store.commit(half).await, Err(conflict));
    assert_eq!(value(store, &key("a")).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(value(store, &key("b")).await.as_deref(), Some(&b"1"[..]));
    assert_eq!(value(store, &key("c")).await, None);

    let whole = Transaction::new()
        .remove(key("a"), first)
        .replace(key("b"), first, "3")
        .create(key("c"), "3");
    let second = commit(store, whole).await;
    assert_eq!(value(store, &key("a")).await, None);
    assert_eq!(entry("b").await.map(|entry| entry.version), Some(second));
    assert_eq!(entry("c").await.map(|entry| entry.version), Some(second));
}

/// Checks that counters which are raised by compare-and-set at the same time lose nothing.
pub async fn increments_are_not_lost(store: &dyn Metastore) {
    const INCREMENTS: usize = 10;
    let key = fresh_prefix() + "counter";
    commit(store, Transaction::new().create(&key, "0")).await;
    let count = async || {
        let mut done = 0;
        while done < INCREMENTS {
            let entry = store.get(&key).await.expect("a read").expect("the counter");
            let text = str::from_utf8(&entry.value).expect("a number");
            let next = text.parse::<usize>().expect("a number") + 1;
            let raise = Transaction::new().replace(&key, entry.version, next.to_string());
            match store.commit(raise).await {
                Ok(_) => done += 1,
                Err(Error::Conflict { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::join!(count(), count(), count());
    let total = (3 * INCREMENTS).to_string();
    assert_eq!(value(store, &key).await, Some(total.into_bytes()));
}

/// Checks that sequences begin with 0, go on without a gap, and know nothing of each other.
pub async fn sequences_never_repeat(store: &dyn Metastore) {
    let (one, other) = (fresh_prefix(), fresh_prefix());
    assert_eq!(store.next_sequence(&one, 1).await, Ok(0..1));
    assert_eq!(store.next_sequence(&one, 10).await, Ok(1..11));
    assert_eq!(store.next_sequence(&other, 2).await, Ok(0..2));
    let blocks: [_; 3] = tokio::join!(
        store.next_sequence(&one, 5),
        store.next_sequence(&one, 5),
        store.next_sequence(&one, 5)
    )
    .into();
    let mut blocks = blocks.map(|block| block.expect("a block"));
    blocks.sort_by_key(|block| block.start);
    assert_eq!(blocks, [11..16, 16..21, 21..26]);
}

/// Checks that the cluster's id does not change.
pub async fn the_cluster_stays_the_same(store: &dyn Metastore) {
    let cluster = store.cluster().await.expect("the cluster's id");
    assert!(!cluster.is_nil());
    assert_eq!(store.cluster().await, Ok(cluster));
}
