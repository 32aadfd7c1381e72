//! Claims about watches.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use super::{commit, fresh_prefix};
use crate::watches::RECENT_BYTES_MAX;
use crate::{
    Change, Error, KEY_BYTES_MAX, Metastore, Scan, Transaction, VALUE_BYTES_MAX, Version, Watch,
};

/// How long a change may take until it is told.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long it is looked whether something is told that should not be.
const SILENCE: Duration = Duration::from_millis(100);

/// Checks that a watch tells each change of its prefix once, in order, and nothing else.
pub async fn a_watch_tells_all_of_its_prefix(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let key = format!("{prefix}a");
    let mut watch = watch_now(store, &prefix).await;
    let first = commit(store, Transaction::new().put(&key, "1")).await;
    commit(store, Transaction::new().put(&prefix[..prefix.len() - 1], "a neighbour")).await;
    let second = commit(store, Transaction::new().replace(&key, first, "2")).await;
    commit(store, Transaction::new().delete(prefix.clone() + "absent")).await;
    let third = commit(store, Transaction::new().remove(&key, second)).await;
    let refused = store.commit(Transaction::new().replace(&key, first, "3")).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "{refused:?}");
    let fourth = commit(store, Transaction::new().create(prefix.clone() + "b", "4")).await;

    let told = tell(&mut watch, 4).await;
    let told = told.iter().map(|change| {
        let value = change.now.as_ref().map(|now| {
            assert_eq!((&now.key, now.version, now.lease), (&change.key, change.revision, None));
            now.value.to_vec()
        });
        (change.revision, &change.key[prefix.len()..], value)
    });
    let value = |value: &str| Some(value.as_bytes().to_vec());
    let expected = [
        (first, "a", value("1")),
        (second, "a", value("2")),
        (third, "a", None),
        (fourth, "b", value("4")),
    ];
    assert_eq!(told.collect::<Vec<_>>(), expected);
    assert!(timeout(SILENCE, watch.next()).await.is_err(), "there is nothing more to tell");
}

/// Checks that all changes of a transaction are told at once, also where it is a large one.
pub async fn a_watch_tears_no_transaction(store: &dyn Metastore) {
    const KEYS: usize = 500;
    let prefix = fresh_prefix();
    let mut watch = watch_now(store, &prefix).await;
    let mut revisions = Vec::new();
    for round in 0..3 {
        let keys = (0..KEYS).map(|number| format!("{prefix}{number}"));
        let all = keys.fold(Transaction::new(), |all, key| match round {
            2 => all.delete(key),
            _ => all.put(key, vec![7; 2000]),
        });
        revisions.push(commit(store, all.put(fresh_prefix(), "another's")).await);
        commit(store, Transaction::new().put(format!("{prefix}small"), "1")).await;
    }
    let mut told = Vec::new();
    while told.len() < 3 * (KEYS + 1) {
        let changes = next(&mut watch).await;
        if let (Some(last), Some(first)) = (told.last(), changes.first()) {
            let last: &Change = last;
            assert!(last.revision < first.revision, "{} is torn", first.revision);
        }
        told.extend(changes);
    }
    assert!(told.is_sorted_by_key(|change| change.revision));
    for revision in revisions {
        let of_revision = told.iter().filter(|change| change.revision == revision);
        let keys = of_revision.map(|change| &change.key).collect::<BTreeSet<_>>();
        assert_eq!(keys.len(), KEYS, "at {revision}");
    }
}

/// Checks that keys which vanish with their lease are told, all together.
pub async fn a_watch_sees_leases_end(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let mut watch = watch_now(store, &prefix).await;
    for ttl in [Duration::from_secs(60), Duration::from_millis(300)] {
        let lease = store.grant_lease(ttl).await.expect("a lease");
        let keys = Transaction::new().put_leased(format!("{prefix}1"), "", lease).put_leased(
            format!("{prefix}2"),
            "",
            lease,
        );
        let revision = commit(store, keys).await;
        let written = next(&mut watch).await;
        assert_eq!(written.len(), 2);
        let leased =
            |change: &Change| change.now.as_ref().is_some_and(|now| now.lease == Some(lease));
        assert!(written.iter().all(leased), "{written:?}");
        if ttl > DEADLINE {
            assert_eq!(store.end_lease(lease).await, Ok(()));
        }
        let gone = next(&mut watch).await;
        let keys = gone.iter().map(|change| (&change.key[prefix.len()..], &change.now));
        assert_eq!(keys.collect::<Vec<_>>(), [("1", &None), ("2", &None)]);
        assert!(gone[0].revision > revision && gone[0].revision == gone[1].revision);
    }
}

/// Checks that a watch tells what was changed after its revision, whenever that was.
pub async fn a_watch_begins_after_any_recent_revision(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let before = revision(store, &prefix).await;
    let mut revisions = Vec::new();
    for number in 0..10 {
        let put = Transaction::new().put(format!("{prefix}{number}"), "");
        revisions.push(commit(store, put).await);
        commit(store, Transaction::new().put(fresh_prefix(), "another's")).await;
    }
    assert!(before < revisions[0] && revision(store, &prefix).await > revisions[9]);
    let froms = [before].into_iter().chain(revisions.clone());
    for (begin, after) in froms.enumerate() {
        let mut watch = store.watch(&prefix, after).await.expect("a watch");
        let told = tell(&mut watch, revisions.len() - begin).await;
        let told = told.iter().map(|change| change.revision).collect::<Vec<_>>();
        assert_eq!(told, revisions[begin..], "after {after}");
    }
}

/// Checks that nothing is lost or told twice when waiting is broken off again and again.
pub async fn breaking_off_a_watch_loses_nothing(store: &dyn Metastore) {
    const CHANGES: usize = 50;
    let prefix = fresh_prefix();
    let mut watch = watch_now(store, &prefix).await;
    let write = async {
        for number in 0..CHANGES {
            let put = Transaction::new().put(format!("{prefix}{number:04}"), "");
            commit(store, put).await;
        }
    };
    let read = async {
        let mut told = Vec::new();
        while told.len() < CHANGES {
            // Each time a little later, so that it is broken off at many places.
            let patience = Duration::from_micros(told.len() as u64 * 20);
            if let Ok(changes) = timeout(patience, watch.next()).await {
                told.extend(changes.expect("changes"));
            }
            tokio::task::yield_now().await;
        }
        told
    };
    let ((), told) = timeout(DEADLINE, async { tokio::join!(write, read) }).await.expect("in time");
    let told = told.into_iter().map(|change| change.key).collect::<Vec<_>>();
    let expected = (0..CHANGES).map(|number| format!("{prefix}{number:04}")).collect::<Vec<_>>();
    assert_eq!(told, expected);
}

/// Checks that of many watches each is told its own.
pub async fn many_watches_are_told_their_own(store: &dyn Metastore) {
    const WATCHES: usize = 300;
    let root = fresh_prefix();
    let mut watches = Vec::new();
    for number in 0..WATCHES {
        watches.push(watch_now(store, &format!("{root}{number:04}/")).await);
    }
    let mut all = watch_now(store, &root).await;
    for number in 0..WATCHES {
        commit(store, Transaction::new().put(format!("{root}{number:04}/key"), "")).await;
    }
    for (number, watch) in watches.iter_mut().enumerate() {
        let told = next(watch).await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].key, format!("{root}{number:04}/key"));
    }
    let told = tell(&mut all, WATCHES).await;
    assert!(told.is_sorted_by_key(|change| change.revision));
}

/// Checks that a watch from a revision that was not reached, or of no prefix there may be, is
/// refused.
pub async fn bad_watches_are_refused(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let now = commit(store, Transaction::new().put(&prefix, "")).await;
    let future = Version::new(now.get() + 1_000_000);
    let refused = store.watch(&prefix, future).await.expect_err("a watch from the future");
    assert!(matches!(&refused, Error::BadRequest { why } if why.contains("future")), "{refused}");
    let long = "k".repeat(KEY_BYTES_MAX + 1);
    let refused = store.watch(&long, now).await.expect_err("a watch of too long a prefix");
    assert!(matches!(refused, Error::BadRequest { .. }), "{refused}");
}

/// Checks that a watch says so when changes that it would have to tell are forgotten, and that
/// one with nothing to tell is not affected.
pub async fn a_watch_says_what_is_forgotten(store: &dyn Metastore) {
    let prefix = fresh_prefix();
    let before = revision(store, &prefix).await;
    let mut slow = store.watch(&format!("{prefix}slow"), before).await.expect("a watch");
    let mut idle = store.watch(&format!("{prefix}idle"), before).await.expect("a watch");
    commit(store, Transaction::new().put(format!("{prefix}slow"), "1")).await;
    let large = vec![7; VALUE_BYTES_MAX];
    for _ in 0..=RECENT_BYTES_MAX / VALUE_BYTES_MAX {
        commit(store, Transaction::new().put(&prefix, large.clone())).await;
    }
    commit(store, Transaction::new().delete(&prefix)).await;
    let error = store.watch(&prefix, before).await.expect_err("changes are forgotten");
    assert_eq!(error, Error::Compacted);
    let told = timeout(DEADLINE, slow.next()).await.expect("in time");
    assert_eq!(told, Err(Error::Compacted));
    commit(store, Transaction::new().put(format!("{prefix}idle"), "1")).await;
    assert_eq!(next(&mut idle).await.len(), 1);

    let page = store.scan(Scan::new(&prefix)).await.expect("a page");
    assert_eq!(page.entries.len(), 2);
    let mut again = store.watch(&prefix, page.revision).await.expect("a watch from now");
    commit(store, Transaction::new().delete(format!("{prefix}slow"))).await;
    assert_eq!(next(&mut again).await.len(), 1);
}

async fn revision(store: &dyn Metastore, prefix: &str) -> Version {
    store.scan(Scan::new(prefix)).await.expect("a page").revision
}

async fn watch_now(store: &dyn Metastore, prefix: &str) -> Watch {
    let now = revision(store, prefix).await;
    store.watch(prefix, now).await.expect("a watch from now")
}

async fn next(watch: &mut Watch) -> Vec<Change> {
    let changes = timeout(DEADLINE, watch.next()).await.expect("in time").expect("changes");
    assert!(!changes.is_empty(), "nothing was told");
    changes
}

/// Takes so many changes.
async fn tell(watch: &mut Watch, count: usize) -> Vec<Change> {
    let mut told = Vec::new();
    while told.len() < count {
        told.extend(next(watch).await);
    }
    assert_eq!(told.len(), count, "{told:?}");
    told
}
