//! Claims about scans and their pages.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{commit, fresh_prefix};
use crate::{Metastore, Scan, Transaction, VALUE_BYTES_MAX};

/// How far in the past a stale read may be here.
const DEADLINE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// Checks that a scan gives the keys of its prefix in byte order, and no neighbours.
pub async fn a_scan_sees_its_prefix_only(store: &dyn Metastore) {
    let root = fresh_prefix();
    let key = |name: &str| format!("{root}{name}");
    let names = ["a", "a/", "a/1", "a/10", "a/2", "a/\u{e9}", "a0", "b"];
    let all = names.iter().fold(Transaction::new(), |all, name| all.put(key(name), *name));
    let version = commit(store, all).await;

    let page = store.scan(Scan::new(key("a/"))).await.expect("a page");
    let found = page.entries.iter().map(|entry| entry.key.clone()).collect::<Vec<_>>();
    assert_eq!(found, ["a/", "a/1", "a/10", "a/2", "a/\u{e9}"].map(key));
    assert!(!page.more);
    for entry in &page.entries {
        assert_eq!(entry.version, version);
        assert_eq!(entry.key, format!("{root}{}", str::from_utf8(&entry.value).expect("text")));
    }
    let nothing = store.scan(Scan::new(key("a/3"))).await.expect("a page");
    assert_eq!((nothing.entries, nothing.more), (Vec::new(), false));
}

/// Checks that a page begins after the key that is named, whether that is there or not.
pub async fn a_scan_begins_after_a_key(store: &dyn Metastore) {
    let root = fresh_prefix();
    let prefix = format!("{root}m/");
    let all = ["1", "3", "5"]
        .iter()
        .fold(Transaction::new(), |all, name| all.put(format!("{prefix}{name}"), ""));
    commit(store, all.put(format!("{root}a"), "").put(format!("{root}z"), "")).await;
    let after = async |after: String| {
        let scan = Scan { after: Some(after), ..Scan::new(&prefix) };
        let page = store.scan(scan).await.expect("a page");
        let names = page.entries.iter().map(|entry| entry.key[prefix.len()..].to_string());
        names.collect::<Vec<_>>()
    };
    assert_eq!(after(format!("{prefix}1")).await, ["3", "5"]);
    assert_eq!(after(format!("{prefix}2")).await, ["3", "5"]);
    assert_eq!(after(format!("{prefix}5")).await, [""; 0]);
    assert_eq!(after(prefix.clone()).await, ["1", "3", "5"]);
    assert_eq!(after(format!("{prefix}\u{e9}")).await, [""; 0]);
}

/// Checks that pages put together are all keys, each once, and that only the last says so.
pub async fn pages_have_no_gap(store: &dyn Metastore) {
    const KEYS: usize = 25;
    let prefix = fresh_prefix();
    let keys = (0..KEYS).map(|number| format!("{prefix}{number:04}")).collect::<Vec<_>>();
    commit(store, keys.iter().fold(Transaction::new(), |all, key| all.put(key, "x"))).await;
    for limit in [1, 7, KEYS - 1, KEYS, KEYS + 1, usize::MAX] {
        let mut found = Vec::new();
        loop {
            let after = found.last().cloned();
            let scan = Scan { prefix: prefix.clone(), after, limit };
            let page = store.scan(scan).await.expect("a page");
            assert!(page.entries.len() <= limit, "{} entries", page.entries.len());
            found.extend(page.entries.into_iter().map(|entry| entry.key));
            assert_eq!(page.more, found.len() < KEYS, "limit {limit}");
            if !page.more {
                break;
            }
        }
        assert_eq!(found, keys, "limit {limit}");
    }
}

/// Checks that large values come in pages of fewer entries, not less than one.
pub async fn pages_are_bounded_in_bytes(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let large = vec![7; VALUE_BYTES_MAX];
    let keys = ["1", "2", "3"].map(|name| format!("{prefix}{name}"));
    for key in &keys {
        commit(store, Transaction::new().put(key, large.clone())).await;
    }
    let mut after = None;
    for (index, key) in keys.iter().enumerate() {
        let scan = Scan { after: after.clone(), ..Scan::new(&prefix) };
        let page = store.scan(scan).await.expect("a page");
        assert_eq!(page.entries.len(), 1, "two values of 1 MiB do not fit");
        assert_eq!((&page.entries[0].key, &page.entries[0].value[..]), (key, &large[..]));
        assert_eq!(page.more, index < 2);
        after = Some(key.clone());
    }
    let clean = keys.iter().fold(Transaction::new(), |all, key| all.delete(key));
    commit(store, clean).await;
}

/// Checks that stale reads come to what was written, and are those of one moment.
pub async fn stale_reads_come_to_the_present(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let keys = ["1", "2"].map(|name| format!("{prefix}{name}"));
    let both = keys.iter().fold(Transaction::new(), |all, key| all.put(key, "x"));
    let version = commit(store, both).await;
    let late = Instant::now() + DEADLINE;
    while store.get_stale(&keys[1]).await.expect("a stale read").is_none() {
        assert!(Instant::now() < late, "what was written is not seen for {DEADLINE:?}");
        sleep(PAUSE).await;
    }
    loop {
        let page = store.scan_stale(Scan::new(&prefix)).await.expect("a stale page");
        // It may be of another member, which is behind.
        if page.revision >= version {
            let found = page.entries.iter().map(|it| (it.key.clone(), it.version));
            assert_eq!(found.collect::<Vec<_>>(), keys.map(|key| (key, version)));
            return;
        }
        assert!(page.entries.is_empty(), "half a transaction, or the future");
        assert!(Instant::now() < late, "the page is behind for {DEADLINE:?}");
        sleep(PAUSE).await;
    }
}
