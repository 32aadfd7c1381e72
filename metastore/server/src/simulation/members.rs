//! The members of the simulation: their disks, their lives and deaths.

use std::collections::BTreeMap;
use std::sync::Arc;

use fastrand::Rng;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::net::{Place, Port, Running, SimNet};
use super::record::Record;
use crate::consensus::log::file::LogFile;
use crate::consensus::types::Runtime;
use crate::directory::LOG;
use crate::member::{Member, StoredMember};
use crate::service::{Front, Me};
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_disk::TestFiles;

/// All members that there are, running or not.
pub(super) struct Members {
    net: SimNet,
    record: Record,
    random: Rng,
    pub(super) nodes: BTreeMap<usize, Node>,
    /// How many there ever were.
    made: usize,
    cluster: Uuid,
}

/// A member.
pub(super) struct Node {
    disk: TestFiles,
    pub(super) id: Uuid,
    /// None while its power is off.
    pub(super) life: Option<Life>,
}

/// A member that runs.
pub(super) struct Life {
    pub(super) storage: Storage,
    pub(super) running: Running,
    /// Up to where what it applied was looked at.
    looked: u64,
    expiry: JoinHandle<()>,
}

impl Members {
    pub(super) fn new(net: &SimNet, record: &Record, mut random: Rng) -> Self {
        let cluster = Uuid::from_u128(random.u128(..));
        let (net, record) = (net.clone(), record.clone());
        Self { net, record, random, nodes: BTreeMap::new(), made: 0, cluster }
    }

    /// Makes a member with an empty disk; the first one founds the cluster.
    pub(super) async fn make(&mut self) -> usize {
        let number = self.made;
        self.made += 1;
        let id = Uuid::from_u128(self.random.u128(..));
        let member = Member { cluster: self.cluster, id, reset_key: [0; 64] };
        let disk = TestFiles::default();
        drop(LogFile::make(&disk, LOG, &StoredMember::new(&member, number == 0), &[]).unwrap());
        self.nodes.insert(number, Node { disk, id, life: None });
        self.start(number).await;
        number
    }

    /// Starts a member from what its disk has.
    pub(super) async fn start(&mut self, number: usize) {
        let (place, node) = (Place::Member(number), self.nodes.get_mut(&number).unwrap());
        self.record.note(|| format!("{place} starts"));
        let storage = Storage::open(node.disk.clone(), Executor::Late, Beginning::Found);
        let storage = match storage {
            Ok(storage) => storage,
            Err(error) => return self.record.violation(format!("{place} does not open: {error}")),
        };
        let (id, life) = (node.id, self.net.new_life());
        let me = Me { member: storage.member.clone(), address: place.address() };
        let peers = Arc::new(Port { net: self.net.clone(), place, life, id });
        let started = Runtime::scope(self.random.u64(..), Front::start(me, &storage, peers)).await;
        let (front, consensus) = match started {
            Ok(started) => started,
            Err(error) => return self.record.violation(format!("{place} does not start: {error}")),
        };
        let expiry =
            tokio::spawn(Runtime::scope(self.random.u64(..), front.clone().expire_leases()));
        let running = Running { life, id, front, consensus };
        self.net.connect(place, running.clone());
        node.life = Some(Life { storage, running, looked: 0, expiry });
    }

    /// Lets the disk of a member fail after so many more writes.
    pub(super) fn cut_power_after(&self, number: usize, writes: usize) {
        self.nodes[&number].disk.cut_power_after(writes);
    }

    /// Lets nothing more of a member's log get to its disk.
    pub(super) fn break_log(&self, number: usize) {
        self.nodes[&number].disk.break_down(LOG);
    }

    /// Cuts the power of a member. What it has not synced is lost, or parts of it are.
    pub(super) fn kill(&mut self, number: usize) {
        let node = self.nodes.get_mut(&number).unwrap();
        let Some(life) = node.life.take() else { return };
        self.record.note(|| format!("m{number} loses power"));
        self.record.count("power cuts", 1);
        self.net.disconnect(Place::Member(number));
        node.disk.cut_power_after(0);
        life.expiry.abort();
        let kept = (0..self.random.usize(1..20)).map(|_| self.random.bool()).collect::<Vec<_>>();
        node.disk = node.disk.after_power_cut(&kept);
        tokio::spawn(Runtime::scope(self.random.u64(..), async move {
            life.running.consensus.stop().await;
            drop(life.storage);
        }));
    }

    /// Takes a member away for good.
    pub(super) fn throw_away(&mut self, number: usize) {
        self.kill(number);
        self.nodes.remove(&number);
    }

    /// Returns the member that leads in the highest term, as far as it knows.
    pub(super) fn leader(&self) -> Option<usize> {
        let leading = self.nodes.iter().filter_map(|(number, node)| {
            let term = node.life.as_ref()?.running.consensus.leading_term()?;
            Some((term, *number))
        });
        leading.max().map(|(_, number)| number)
    }

    /// Returns the members that run, or those that do not.
    pub(super) fn numbers(&self, running: bool) -> Vec<usize> {
        let chosen = self.nodes.iter().filter(|(_, node)| node.life.is_some() == running);
        chosen.map(|(number, _)| *number).collect()
    }

    /// Looks at what each member has applied since the last time.
    pub(super) async fn look(&mut self) {
        for life in self.nodes.values_mut().filter_map(|node| node.life.as_mut()) {
            life.looked = self.record.look(&life.storage, life.looked).await;
        }
    }
}
