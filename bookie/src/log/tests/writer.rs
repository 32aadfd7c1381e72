//! The queue and the task that writes.

use std::time::Duration;

use futures::FutureExt;

use super::*;

#[tokio::test]
async fn what_is_queued_during_a_sync_shares_the_next() {
    let (disk, tail) = new_log();
    let before = disk.data_syncs();
    let (appender, mut completions) = tail.start(Executor::Late);
    appender.push(append(b"first", 0));
    // Lets the writer take it and begin; then nothing is awaited until all are queued.
    tokio::task::yield_now().await;
    (1..=1000).for_each(|token| appender.push(append(b"later", token)));
    let first = completions.next().await.unwrap().unwrap().appends;
    assert_eq!(first.iter().map(|durable| durable.token).collect::<Vec<_>>(), [0]);
    // It was written in the same turn.
    let second = completions.next().now_or_never().unwrap().unwrap().unwrap().appends;
    let tokens: Vec<_> = second.iter().map(|durable| durable.token).collect();
    assert_eq!(tokens, (1..=1000).collect::<Vec<_>>());
    assert_eq!(disk.data_syncs() - before, 2);
    drop(appender);
    assert_eq!(completions.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_full_queue_waits_and_batches_are_bounded() {
    let (_, tail) = new_log();
    let (appender, mut completions) = tail.start(Executor::Inline);
    let payload = vec![7; PAYLOAD_BYTES_MAX];
    (0..5).for_each(|token| appender.push(append(&payload, token)));
    tokio::select! {
        biased;
        _ = appender.ready() => panic!("there is no room"),
        () = std::future::ready(()) => {}
    }
    let mut given = 0;
    while given < 5 {
        let batch = completions.next().await.unwrap().unwrap().appends;
        assert!(batch.len() <= 2);
        given += batch.len();
    }
    appender.ready().await.unwrap();
}

#[tokio::test]
async fn batches_that_nobody_takes_yet_come_in_order() {
    let (disk, tail) = new_log();
    let before = disk.data_syncs();
    let (appender, mut completions) = tail.start(Executor::Inline);
    let payload = vec![7; PAYLOAD_BYTES_MAX];
    (0..30).for_each(|token| appender.push(append(&payload, token)));
    // The writer goes on until it has one more than may wait.
    tokio::task::yield_now().await;
    assert_eq!(disk.data_syncs() - before, 9);
    drop(appender);
    let mut tokens = Vec::new();
    while let Some(batch) = completions.next().await.unwrap() {
        tokens.extend(batch.appends.iter().map(|durable| durable.token));
    }
    assert_eq!(tokens, (0..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_failed_sync_is_final() {
    for full in [false, true] {
        let (disk, tail) = new_log();
        let (appender, mut completions) = tail.start(Executor::Inline);
        appender.push(append(b"durable", 1));
        let durable = completions.next().await.unwrap().unwrap().appends.remove(0);
        if full {
            disk.set_capacity_bytes(Some((START + BLOCK) as usize + 110))
        } else {
            disk.fail_next_sync()
        }
        appender.push(append(b"lost", 2));
        for _ in 0..2 {
            let Failed(why) = completions.next().await.unwrap_err();
            assert!(why.to_string().contains("cannot write to log-0000"), "{why}");
            let LogError::Io { source, .. } = &*why else { panic!("{why}") };
            assert_eq!(source.kind() == io::ErrorKind::StorageFull, full);
            disk.set_capacity_bytes(None);
            appender.ready().await.unwrap_err();
            appender.push(append(b"dropped", 3));
        }
        disk.crash(Unsynced::Lost);
        let (mut tail, shown, replayed) = reopen(&disk);
        assert_eq!(shown, [(durable.places[0], b"durable".to_vec())]);
        assert_eq!(replayed.damages, []);
        commit(&mut tail, &payloads(&["goes on"])).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_makes_writes_wait() {
    // In the segment that grows, and where the next is to be made.
    for segment_bytes_max in [SEGMENT_BYTES_MAX, SMALL] {
        let disk = MemoryDisk::new();
        create(&disk, LOG).unwrap();
        let (mut tail, ..) = try_open(&disk, segment_bytes_max).unwrap();
        let mut all = commit(&mut tail, &payloads(&["before"])).unwrap();
        let (appender, mut completions) = tail.start(Executor::Inline);
        let used = disk.list().unwrap().iter().map(|name| read(&disk, name).len()).sum::<usize>();
        disk.set_capacity_bytes(Some(used + 1000));
        let long = vec![7; 40_000];
        appender.push(append(&long, long.clone()));
        appender.push(append(b"after", b"after".to_vec()));
        let waits = tokio::time::timeout(Duration::from_secs(60), completions.next());
        waits.await.expect_err("there is no room");
        disk.set_capacity_bytes(None);
        let batch = completions.next().await.unwrap().unwrap();
        let durable = batch.appends.into_iter();
        all.extend(durable.map(|durable| (durable.places[0], durable.token)));
        drop(appender);
        assert_eq!(completions.next().await.unwrap(), None);
        disk.crash(Unsynced::Lost);
        let (_, shown, replayed) = reopen(&disk);
        assert_eq!((shown, replayed), (all, Replayed::default()));
    }
}

#[tokio::test]
async fn a_log_that_is_closed_waits_for_no_room() {
    let (disk, tail) = new_log();
    disk.set_capacity_bytes(Some(START as usize));
    let (appender, mut completions) = tail.start(Executor::Inline);
    appender.push(append(b"no room", ()));
    drop(appender);
    let Failed(why) = completions.next().await.unwrap_err();
    assert!(why.is_full(), "{why}");
}

#[test]
fn what_a_replay_showed_survives_also_after_a_failed_sync() {
    let (disk, mut tail) = new_log();
    commit(&mut tail, &payloads(&["durable"])).unwrap();
    disk.fail_next_sync();
    commit(&mut tail, &payloads(&["in the cache alone"])).unwrap_err();
    // Only the process ends.
    let (_, shown, _) = reopen(&disk);
    assert_eq!(shown.len(), 2);
    disk.crash(Unsynced::Lost);
    assert_eq!(reopen(&disk).1, shown);
}

#[tokio::test]
async fn a_writer_that_dies_counts_as_failed() {
    let (_, mut tail) = new_log();
    (tail.segment, tail.next) = (None, SegmentNumber(u32::MAX));
    let (appender, mut completions) = tail.start(Executor::Inline);
    appender.push(append(b"in the last segment of all", ()));
    let Failed(why) = completions.next().await.unwrap_err();
    assert!(matches!(*why, LogError::Stopped));
    appender.ready().await.unwrap_err();
}
