//! What happened, and what must never happen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use inkfast_wire::Frame;
use openraft::raft::{AppendEntriesRequest, VoteRequest, VoteResponse};
use openraft::storage::RaftLogReader;
use tokio::time::Instant;
use uuid::Uuid;

use crate::consensus::codec::Coded;
use crate::consensus::network::{
    KIND_APPEND, KIND_DONE, KIND_SNAPSHOT_END, KIND_SNAPSHOT_PIECE, KIND_VOTE,
};
use crate::consensus::types::{Entry, LogId, NodeId, Types};
use crate::storage::Storage;

/// The record of a run. Clones are the same.
#[derive(Clone)]
pub(super) struct Record(Arc<Mutex<Inner>>);

struct Inner {
    begun: Instant,
    trace: Vec<String>,
    violations: Vec<String>,
    /// Who has sent entries in a term.
    leaders: BTreeMap<u64, Uuid>,
    /// Whom a member has voted for in a term.
    votes: BTreeMap<(Uuid, u64), Uuid>,
    /// The entries that were applied.
    applied: BTreeMap<u64, Entry>,
    /// The entries that leaders have sent, and what comes before each.
    sent: BTreeMap<LogId, (Entry, LogId)>,
    /// How often what has happened.
    counts: BTreeMap<&'static str, usize>,
}

impl Record {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            begun: Instant::now(),
            trace: Vec::new(),
            violations: Vec::new(),
            leaders: BTreeMap::new(),
            votes: BTreeMap::new(),
            applied: BTreeMap::new(),
            sent: BTreeMap::new(),
            counts: BTreeMap::new(),
        })))
    }

    /// Writes down an event.
    pub(super) fn note(&self, words: impl FnOnce() -> String) {
        let mut inner = self.lock();
        let ms = inner.begun.elapsed().as_millis();
        inner.trace.push(format!("{ms} {}", words()));
    }

    /// Counts what has happened, so that it can be told from a run in which nothing has.
    pub(super) fn count(&self, what: &'static str, times: usize) {
        *self.lock().counts.entry(what).or_default() += times;
    }

    pub(super) fn counts(&self) -> BTreeMap<&'static str, usize> {
        self.lock().counts.clone()
    }

    /// Writes down that something has happened that must not.
    pub(super) fn violation(&self, words: String) {
        self.note(|| format!("VIOLATION: {words}"));
        self.lock().violations.push(words);
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.lock().trace.clone()
    }

    pub(super) fn terms(&self) -> usize {
        self.lock().leaders.len()
    }

    /// Returns all entries that were applied by any member. Some may have been purged everywhere
    /// before they were looked at: they are those that were sent before the known ones.
    pub(super) fn applied(&self) -> Vec<Entry> {
        let inner = self.lock();
        let mut applied = inner.applied.clone();
        for entry in inner.applied.values() {
            let mut before = inner.sent.get(&entry.log_id).map(|(_, before)| before);
            while let Some(id) = before
                && !applied.contains_key(&id.index)
                && let Some((entry, earlier)) = inner.sent.get(id)
            {
                applied.insert(id.index, entry.clone());
                before = Some(earlier);
            }
        }
        applied.into_values().collect()
    }

    /// Looks at a call to a member, and says what it is.
    pub(super) fn called(&self, from: Uuid, frame: &Frame) -> String {
        match frame.kind {
            KIND_APPEND => {
                let rpc = AppendEntriesRequest::<Types>::decode(frame.body.clone()).unwrap();
                let term = rpc.vote.leader_id.term;
                let leader = *self.lock().leaders.entry(term).or_insert(from);
                if leader != from {
                    self.violation(format!("{leader} and {from} both lead in term {term}"));
                }
                let mut before = rpc.prev_log_id;
                for entry in rpc.entries {
                    let id = entry.log_id;
                    if let Some(before) = before.replace(id) {
                        self.lock().sent.insert(id, (entry, before));
                    }
                }
            }
            KIND_VOTE => {
                let rpc = VoteRequest::<Types>::decode(frame.body.clone()).unwrap();
                self.voted(from, rpc.vote.leader_id.term, from);
            }
            // Their names are new each time.
            KIND_SNAPSHOT_PIECE | KIND_SNAPSHOT_END => return format!("{}", frame.kind),
            _ => {}
        }
        format!("{} {:08x}", frame.kind, crc32c::crc32c(&frame.body))
    }

    /// Looks at a member's answer.
    pub(super) fn answered(&self, by: Uuid, call: &Frame, answer: &Frame) {
        match (call.kind, answer.kind) {
            (KIND_VOTE, KIND_DONE) => {}
            (KIND_SNAPSHOT_END, KIND_DONE) => return self.count("snapshots", 1),
            _ => return,
        }
        let answer = VoteResponse::<Types>::decode(answer.body.clone()).unwrap();
        if answer.vote_granted {
            let leader_id = answer.vote.leader_id;
            let NodeId(candidate) = leader_id.voted_for;
            self.voted(by, leader_id.term, candidate);
        }
    }

    fn voted(&self, voter: Uuid, term: u64, candidate: Uuid) {
        let voted = *self.lock().votes.entry((voter, term)).or_insert(candidate);
        if voted != candidate {
            let words = format!("{voter} voted for {voted} and {candidate} in term {term}");
            self.violation(words);
        }
    }

    /// Looks at what a member has applied after an entry: all members apply the same. Returns up to
    /// where.
    pub(super) async fn look(&self, storage: &Storage, after: u64) -> u64 {
        let Ok(meta) = storage.store.applied().await else { return after };
        let Some(applied) = meta.last_log_id.map(|id| id.index) else { return after };
        let read = storage.log.clone().try_get_log_entries(after + 1..=applied).await;
        let Ok(entries) = read else { return after };
        for entry in entries {
            let known = {
                let mut inner = self.lock();
                inner.applied.entry(entry.log_id.index).or_insert_with(|| entry.clone()).clone()
            };
            if known != entry {
                let id = storage.member.id;
                self.violation(format!("{id} applied another entry {} than others", entry.log_id));
            }
        }
        applied.max(after)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}
