use std::time::Duration;

use inkfast_metastore::Transaction;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use uuid::Uuid;

use super::*;
use crate::directory::STATE;
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_disk::TestFiles;

#[tokio::test]
async fn what_queues_together_shares_a_sync() {
    const COMMANDS: usize = 200;
    let (disk, commits, _, _) = start();
    let before = disk.syncs(STATE);
    run(&commits, put(0)).await.unwrap();
    let syncs_alone = disk.syncs(STATE) - before;

    let before = disk.syncs(STATE);
    let mut running = JoinSet::new();
    for number in 1..=COMMANDS {
        let commits = commits.clone();
        running.spawn(async move { run(&commits, put(number)).await });
    }
    for outcome in running.join_all().await {
        outcome.unwrap();
    }
    let syncs = disk.syncs(STATE) - before;
    assert!((1..=2 * syncs_alone).contains(&syncs), "{syncs} syncs, alone {syncs_alone}");
}

#[tokio::test]
async fn nothing_is_written_after_the_disk_failed() {
    let (disk, commits, mut failure, _) = start();
    run(&commits, put(1)).await.unwrap();
    assert!(failure.borrow().is_none());

    disk.break_down(STATE);
    let refused = run(&commits, put(2)).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { why } if why.contains("broken")), "{refused}");
    assert!(failure.wait_for(Option::is_some).await.is_ok());
    let refused = run(&commits, put(3)).await.unwrap_err();
    assert!(matches!(&refused, Error::Unavailable { why } if why.contains("broken")), "{refused}");
}

#[tokio::test]
async fn what_was_queued_is_committed_before_the_end() {
    let (_, commits, _, committing) = start();
    let answer = commits.queue(put(1), 10).await.unwrap();
    drop(commits);
    timeout(Duration::from_secs(10), committing).await.unwrap().unwrap();
    assert!(answer.await.unwrap().is_ok());
}

type Started = (TestFiles, Commits, watch::Receiver<Option<StateError>>, JoinHandle<()>);

fn start() -> Started {
    let disk = TestFiles::default();
    let store = Storage::open(disk.clone(), Executor::Inline, Beginning::Found).unwrap().store;
    let (failed, failure) = watch::channel(None);
    let (commits, committing) =
        Commits::start(store, Arc::default(), Watches::new(Version::new(0)), failed);
    (disk, commits, failure, committing)
}

async fn run(commits: &Commits, command: Command) -> Outcome {
    commits.queue(command, 100).await.unwrap().await.unwrap()
}

fn put(number: usize) -> Command {
    let transaction = Transaction::new().put(format!("key/{number}"), "value");
    let request = Uuid::new_v4();
    Command { request, time_ms: 0, operation: Operation::Commit(transaction) }
}
