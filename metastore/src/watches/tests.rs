use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use uuid::Uuid;

use super::*;
use crate::memory::MemoryRows;
use crate::state::{Command, Operation, apply, revision, scan};
use crate::types::{KeyValue, LeaseId, Scan, Transaction};

#[test]
fn an_idle_watch_keeps_up_with_what_is_forgotten() {
    let watches = Watches::new(version(0));
    let mut idle = watches.watch("idle", version(0), version(0)).unwrap();
    let mut slow = watches.watch("busy", version(0), version(0)).unwrap();
    let last = RECENT_MAX as u64 + 1;
    for number in 1..=last {
        watches.publish(vec![change(number, "busy")], version(number));
    }
    assert_eq!(poll(&mut idle), Poll::Pending);
    assert_eq!(idle.seen(), version(last));
    assert!(watches.watch("idle", idle.seen(), version(last)).is_ok());
    for _ in 0..2 {
        assert_eq!(poll(&mut slow), Poll::Ready(Err(Error::Compacted)));
    }
    assert_eq!(slow.seen(), version(0), "what it was not told is not seen");
    let mut oldest = watches.watch("busy", version(1), version(last)).unwrap();
    assert_eq!(ready(&mut oldest).changes[0].revision, version(2), "the first one is forgotten");
    assert!(matches!(watches.watch("busy", version(0), version(last)), Err(Error::Compacted)));
    watches.publish(vec![change(last + 1, "idle")], version(last + 1));
    assert_eq!(ready(&mut idle).changes.len(), 1);
}

#[test]
fn who_is_behind_another_state_is_told_so() {
    let watches = Watches::new(version(0));
    let mut told = watches.watch("a", version(0), version(0)).unwrap();
    let mut behind = watches.watch("a", version(0), version(0)).unwrap();
    watches.publish(vec![change(1, "a")], version(1));
    assert_eq!(ready(&mut told).changes.len(), 1);
    let mut ahead = watches.watch("a", version(5), version(5)).unwrap();
    watches.reset(version(5));
    assert_eq!(told.seen(), version(1), "what it was not told is not seen");
    for watcher in [&mut told, &mut behind] {
        for _ in 0..2 {
            assert_eq!(poll(watcher), Poll::Ready(Err(Error::Compacted)));
        }
    }
    assert!(matches!(watches.watch("a", version(4), version(5)), Err(Error::Compacted)));
    assert_eq!(poll(&mut ahead), Poll::Pending);
    assert_eq!(ahead.seen(), version(5));
    watches.publish(vec![change(6, "a")], version(6));
    assert_eq!(ready(&mut ahead).changes[0].revision, version(6));
}

#[test]
fn only_those_whom_a_change_concerns_are_woken() {
    let watches = Watches::new(version(0));
    let prefixes = ["", "a", "a/", "a/1", "a/1/2", "b", "\u{e9}"];
    let begin = |prefix| watches.watch(prefix, version(0), version(0)).unwrap();
    let mut watchers = prefixes.map(begin);
    for watcher in &mut watchers {
        assert_eq!(poll(watcher), Poll::Pending);
    }
    watches.publish(vec![change(1, "a/1")], version(1));
    let woken = |id: WatcherId| watches.lock().pending(id).is_some();
    let woken = watchers.iter().map(|watcher| woken(watcher.id)).collect::<Vec<_>>();
    assert_eq!(woken, [true, true, true, true, false, false, false]);
    // A prefix that ends within a letter of the key is none of it.
    watches.publish(vec![change(2, "\u{e8}")], version(2));
    assert!(watches.lock().pending(watchers[6].id).is_none());
    drop(watchers);
    let state = watches.lock();
    assert!(state.watchers.is_empty() && state.by_prefix.is_empty(), "{state:?}");
}

#[test]
fn a_watch_from_what_is_not_published_yet_tells_only_what_comes_after() {
    let watches = Watches::new(version(5));
    let mut watcher = watches.watch("", version(7), version(7)).unwrap();
    assert_eq!(watcher.seen(), version(7));
    watches.publish(vec![change(6, "a"), change(7, "b")], version(7));
    assert_eq!(poll(&mut watcher), Poll::Pending);
    watches.publish(vec![change(8, "c")], version(8));
    assert_eq!(ready(&mut watcher).changes, [change(8, "c")]);
}

#[test]
fn what_is_remembered_is_bounded_in_bytes_and_what_is_told_too() {
    let watches = Watches::new(version(0));
    let mut watcher = watches.watch("", version(0), version(0)).unwrap();
    let large = |number| Change {
        now: Some(KeyValue {
            key: "key".into(),
            value: Bytes::from(vec![7; TOLD_BYTES_MAX / 3]),
            version: version(number),
            lease: None,
        }),
        ..change(number, "key")
    };
    for number in 1..=10 {
        watches.publish(vec![large(number)], version(number));
    }
    let told = ready(&mut watcher);
    assert_eq!((told.changes.len(), told.seen), (2, version(2)));
    let many = (RECENT_BYTES_MAX / TOLD_BYTES_MAX * 3) as u64;
    for number in 11..=10 + 2 * many {
        watches.publish(vec![large(number)], version(number));
    }
    let state = watches.lock();
    assert!(state.recent_bytes <= RECENT_BYTES_MAX, "{}", state.recent_bytes);
    let bytes = state.recent.iter().flat_map(|revision| &revision.changes).map(change_bytes);
    assert_eq!(bytes.sum::<usize>(), state.recent_bytes);
}

proptest::proptest! {
    /// Whoever begins with the keys of some moment, and follows a watch that breaks off now and
    /// then, has in the end the keys that there are, and has seen all between.
    #[test]
    fn changes_lead_from_any_revision_to_the_keys_there_are(
        batches in vec((vec(operation(), 0..4), any::<u8>()), 1..40),
        joins in vec((0..40usize, proptest::sample::select(vec!["", "a", "a/", "b", "c"])), 1..6),
    ) {
        let mut rows = MemoryRows::default();
        let watches = Watches::new(version(0));
        let mut followers = Vec::<Follower>::new();
        let mut request = 0;
        for (number, (operations, dice)) in batches.into_iter().enumerate() {
            for (_, prefix) in joins.iter().filter(|(join, _)| *join == number) {
                followers.push(Follower::join(&watches, &rows, prefix));
            }
            let mut changes = Vec::new();
            for operation in operations {
                request += 1;
                let command = Command { request: Uuid::from_u128(request), time_ms: 0, operation };
                let _ = apply(&mut rows, command, &mut changes).unwrap();
            }
            watches.publish(changes, revision(&rows).unwrap());
            for (turn, follower) in followers.iter_mut().enumerate() {
                match (usize::from(dice) >> turn) % 4 {
                    0 => follower.follow(),
                    1 => follower.resume(&watches, &rows),
                    _ => {}
                }
            }
        }
        for mut follower in followers {
            follower.follow();
            assert_eq!(follower.keys, keys(&rows, &follower.prefix));
            assert_eq!(follower.watcher.seen(), revision(&rows).unwrap());
        }
    }
}

/// Has a copy of the keys of a prefix, as the watch tells.
struct Follower {
    prefix: String,
    keys: BTreeMap<String, KeyValue>,
    seen: Version,
    watcher: Watcher,
}

impl Follower {
    fn join(watches: &Watches, rows: &MemoryRows, prefix: &str) -> Self {
        let seen = revision(rows).unwrap();
        let watcher = watches.watch(prefix, seen, seen).unwrap();
        Self { prefix: prefix.into(), keys: keys(rows, prefix), seen, watcher }
    }

    fn resume(&mut self, watches: &Watches, rows: &MemoryRows) {
        self.watcher = watches.watch(&self.prefix, self.seen, revision(rows).unwrap()).unwrap();
    }

    fn follow(&mut self) {
        while let Poll::Ready(told) = poll(&mut self.watcher) {
            let told = told.unwrap();
            for Change { revision, key, now } in told.changes {
                assert!(revision > self.seen, "{revision} was told before");
                assert!(key.starts_with(&self.prefix));
                let before = match now {
                    Some(now) => self.keys.insert(key, now),
                    None => Some(self.keys.remove(&key).expect("what is removed was there")),
                };
                assert!(before.is_none_or(|before| before.version < revision));
            }
            self.seen = told.seen;
        }
    }
}

fn keys(rows: &MemoryRows, prefix: &str) -> BTreeMap<String, KeyValue> {
    let page = scan(rows, &Scan::new(prefix)).unwrap();
    page.entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect()
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = || proptest::sample::select(vec!["a", "a/1", "a/2", "b", "b/1"]);
    let lease = || (1..4u64).prop_map(LeaseId::new);
    let write = (key(), proptest::option::of(proptest::option::of(lease())));
    let commit = vec(write, 0..3).prop_map(|writes| {
        // Of two writes of a key, the last.
        let writes = writes.into_iter().collect::<BTreeMap<_, _>>();
        let transaction = writes.into_iter().fold(Transaction::new(), |all, write| match write {
            (key, None) => all.delete(key),
            (key, Some(None)) => all.put(key, "plain"),
            (key, Some(Some(lease))) => all.put_leased(key, "leased", lease),
        });
        Operation::Commit(transaction)
    });
    prop_oneof![
        5 => commit,
        1 => Just(Operation::GrantLease { ttl: Duration::from_secs(1) }),
        1 => lease().prop_map(Operation::EndLease),
        1 => Just(Operation::NextSequence { name: "a".into(), count: 1 }),
    ]
}

fn poll(watcher: &mut Watcher) -> Poll<Result<Told, Error>> {
    pin!(watcher.next()).poll(&mut Context::from_waker(Waker::noop()))
}

fn ready(watcher: &mut Watcher) -> Told {
    let Poll::Ready(told) = poll(watcher) else { panic!("nothing is told") };
    told.unwrap()
}

fn change(revision: u64, key: &str) -> Change {
    Change { revision: version(revision), key: key.into(), now: None }
}

fn version(number: u64) -> Version {
    Version::new(number)
}
