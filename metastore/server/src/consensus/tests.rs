//! Members in one process, whose network and disks are as slow as a test wants them.

use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use inkfast_metastore::messages::encode_command;
use inkfast_metastore::state::{Command, Operation};
use inkfast_metastore::watches::Watches;
use inkfast_metastore::{Transaction, VALUE_BYTES_MAX, Version};
use prost::Message;

use super::network::{KIND_APPEND, KIND_SNAPSHOT_PIECE, PieceMessage};
use super::types::Runtime;
use super::*;
use crate::directory::LOG;
use crate::storage::Beginning;
use crate::store::Executor;
use crate::test_commands::{block_on, while_it_hangs};
use crate::test_disk::TestFiles;

/// Calls members directly.
#[derive(Clone, Default)]
struct Lan(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    members: BTreeMap<Uuid, Consensus>,
    /// Who takes entries slowly.
    slow: Option<Uuid>,
    /// How many more snapshots are so slow that much is written meanwhile.
    overtaken: usize,
    /// How many snapshots were begun.
    snapshots: usize,
}

impl Lan {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    async fn start(&self, files: TestFiles, executor: Executor, beginning: Beginning) -> Storage {
        let storage = Storage::open(files, executor, beginning).unwrap();
        let watches = Watches::new(Version::new(0));
        let machine = Machine::new(storage.store.clone(), Arc::default(), watches);
        let consensus = Consensus::start(&storage, machine, Arc::new(self.clone()), "here:1");
        let consensus = consensus.await.unwrap();
        self.state().members.insert(storage.member.id, consensus);
        storage
    }

    /// Starts a member that founds a cluster, and returns when it leads.
    async fn found(&self, files: TestFiles, executor: Executor) -> (Storage, Consensus) {
        let storage = self.start(files, executor, Beginning::Found).await;
        let leader = self.member(storage.member.id);
        while leader.leading_term().is_none() {
            sleep(Duration::from_millis(10)).await;
        }
        (storage, leader)
    }

    /// Starts a member that joins the cluster of another.
    async fn join(&self, leader: &Storage) -> Uuid {
        let beginning = Beginning::Join { cluster: leader.member.cluster };
        self.start(TestFiles::default(), Executor::Inline, beginning).await.member.id
    }

    fn member(&self, id: Uuid) -> Consensus {
        self.state().members[&id].clone()
    }

    fn leader(&self) -> Consensus {
        let state = self.state();
        let leader = state.members.values().find(|member| member.leading_term().is_some());
        leader.unwrap().clone()
    }

    /// Does to a call what is to be done to it before it arrives.
    async fn delay(&self, id: Uuid, frame: &Frame) {
        let slow = self.state().slow == Some(id);
        if slow && frame.kind == KIND_APPEND && frame.body.len() > 1024 {
            sleep(Duration::from_millis(1500)).await;
        }
        if frame.kind == KIND_SNAPSHOT_PIECE {
            let number = PieceMessage::decode(frame.body.clone()).unwrap().number;
            let overtaken = {
                let mut state = self.state();
                state.snapshots += usize::from(number == 0);
                let overtaken = number == 1 && state.overtaken > 0;
                state.overtaken -= usize::from(overtaken);
                overtaken
            };
            if overtaken {
                for _ in 0..2 * SNAPSHOT_ENTRIES {
                    self.leader().propose(put("key", 1)).await.unwrap();
                }
            }
        }
    }
}

#[async_trait]
impl Peers for Lan {
    async fn call(
        &self,
        id: Uuid,
        _: &str,
        frame: Frame,
        deadline: Duration,
    ) -> Result<Frame, String> {
        let answer = async {
            self.delay(id, &frame).await;
            self.member(id).answer(frame).await
        };
        tokio::time::timeout(deadline, answer).await.map_err(|_| "too late".into())
    }

    async fn who(&self, _: &str) -> Result<Uuid, String> {
        Err("nobody asks".into())
    }
}

#[test]
fn a_leader_whose_disk_hangs_fails() {
    block_on(Runtime::scope(1, async {
        let (lan, files) = (Lan::default(), TestFiles::default());
        let (_, leader) = lan.found(files.clone(), Executor::Threads).await;
        leader.propose(put("key", 1)).await.unwrap();
        let hanging = files.hang(LOG);
        let proposing = leader.clone();
        let proposed = while_it_hangs(async move { proposing.propose(put("key", 1)).await }).await;
        assert!(matches!(proposed, Err(Error::TimedOut { .. })), "{proposed:?}");
        let failed = while_it_hangs(async move { leader.failed().await }).await;
        assert!(failed.0.contains("has not answered"), "{failed}");
        drop(hanging);
    }));
}

#[test]
fn the_log_after_a_snapshot_is_there_when_it_has_arrived() {
    block_on(Runtime::scope(1, async {
        let lan = Lan::default();
        let (storage, leader) = lan.found(TestFiles::default(), Executor::Inline).await;
        for key in ["one", "two", "three"] {
            leader.propose(put(key, VALUE_BYTES_MAX / 2)).await.unwrap();
        }
        for _ in 0..3 * SNAPSHOT_ENTRIES {
            leader.propose(put("key", 1)).await.unwrap();
        }
        lan.state().overtaken = 5;
        let joining = lan.join(&storage).await;
        leader.add_member(joining, "there:1").await.unwrap();
        assert_eq!(lan.state().overtaken, 4);
        assert_eq!(lan.state().snapshots, 1);
    }));
}

#[test]
fn a_follower_that_is_slow_does_not_let_the_log_grow_for_ever() {
    block_on(Runtime::scope(1, async {
        const BYTES: usize = 256 << 10;
        let lan = Lan::default();
        let (storage, leader) = lan.found(TestFiles::default(), Executor::Inline).await;
        let (other, slow) = (lan.join(&storage).await, lan.join(&storage).await);
        for joining in [other, slow] {
            leader.add_member(joining, "there:1").await.unwrap();
        }
        assert_eq!(lan.state().snapshots, 0);
        lan.state().slow = Some(slow);
        let mut most = 0;
        for _ in 0..20 {
            for _ in 0..8 {
                leader.propose(put("key", BYTES)).await.unwrap();
            }
            sleep(Duration::from_secs(1)).await;
            most = most.max(storage.log.grown_bytes());
        }
        assert!(lan.state().snapshots > 0);
        // What is written between two looks at it comes on top.
        assert!(most < LOG_BYTES_MAX + 40 * BYTES, "{most} bytes");
        lan.state().slow = None;
        let caught_up = || lan.member(slow).standing().applied >= leader.standing().applied;
        while !caught_up() {
            sleep(Duration::from_millis(100)).await;
        }
    }));
}

fn put(key: &str, bytes: usize) -> Bytes {
    let transaction = Transaction::new().put(key, vec![7; bytes]);
    let operation = Operation::Commit(transaction);
    encode_command(Command { request: Uuid::new_v4(), time_ms: 0, operation })
}
