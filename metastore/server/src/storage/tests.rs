//! Whatever a power cut keeps of what was not synced, what was said to be done is there.

use inkfast_metastore::state::Command;
use inkfast_metastore::watches::Watches;
use inkfast_metastore::{Version, messages::decode_command};
use openraft::EntryPayload;
use openraft::impls::leader_id_std::LeaderId;
use openraft::storage::{
    RaftLogReader, RaftLogStorage, RaftLogStorageExt, RaftSnapshotBuilder, RaftStateMachine,
};
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use tempfile::TempDir;

use super::*;
use crate::consensus::machine::Machine;
use crate::consensus::types::{Data, Entry, NodeId, Vote};
use crate::snapshot::SnapshotData;
use crate::test_commands::{all_rows, block_on, command, entry, log_id, rows_after};
use crate::test_disk::TestFiles;

/// What openraft has a member do.
#[derive(Clone, Debug)]
enum Step {
    Vote,
    /// Appends entries, in a new term or not.
    Append(Vec<Command>, bool),
    /// Applies so many of the entries that there are.
    Apply(usize),
    /// Replaces entries that were not applied, all but so many.
    Conflict(usize, Vec<Command>),
    /// Makes a snapshot, and purges all of the log that is in it but so many entries.
    Snapshot(u64),
    /// Installs the snapshot of a member that has applied so much more.
    Install(Vec<Command>),
    /// Stops and starts.
    Restart,
}

/// What a member should have.
#[derive(Clone, Debug, Default)]
struct Model {
    vote: Option<Vote>,
    term: u64,
    /// All entries that there ever were, without those that were replaced.
    entries: Vec<Entry>,
    /// How many of them were applied.
    applied: usize,
    /// How many of the applied are on disk at least.
    durable: usize,
    /// How many were purged at most.
    purged: usize,
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(192))]

    #[test]
    fn a_power_cut_takes_back_nothing(
        lives in vec((vec(step(), 1..16), 1..200usize), 1..5),
        kept in vec(any::<bool>(), 1..16),
    ) {
        block_on(async {
            let mut files = TestFiles::default();
            let mut member = Member::start(&files).await;
            let id = member.storage.member.clone();
            let mut model = Model::default();
            for (steps, writes) in lives {
                files.cut_power_after(writes);
                let mut possible = model.clone();
                for step in steps {
                    possible = model.clone();
                    if !member.step(step, &files, &mut model, &mut possible).await {
                        break;
                    }
                }
                files = files.after_power_cut(&kept);
                member = Member::start(&files).await;
                assert_eq!(member.storage.member, id);
                model = member.check(model, possible).await;
            }
        });
    }
}

struct Member {
    storage: Storage,
    machine: Machine,
}

impl Member {
    async fn start(files: &TestFiles) -> Self {
        let storage = Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap();
        let machine = machine(&storage.store);
        Self { storage, machine }
    }

    /// Does a step, and false if the power was cut meanwhile. `possible` is what the member may
    /// then have, beside `model`: what was begun.
    async fn step(
        &mut self,
        step: Step,
        files: &TestFiles,
        model: &mut Model,
        possible: &mut Model,
    ) -> bool {
        let next = model.entries.len() as u64;
        let done = match step {
            Step::Vote => {
                possible.term += 1;
                let leader_id = LeaderId { term: possible.term, voted_for: NodeId::default() };
                let vote = Vote { leader_id, committed: false };
                possible.vote = Some(vote);
                self.storage.log.save_vote(&vote).await.is_ok()
            }
            Step::Append(commands, new_term) => {
                possible.term += u64::from(new_term);
                let entries = entries(possible.term, next, commands);
                possible.entries.extend(entries.clone());
                self.storage.log.blocking_append(entries).await.is_ok()
            }
            Step::Apply(count) => {
                let end = model.entries.len().min(model.applied + count);
                let entries = model.entries[model.applied..end].to_vec();
                possible.applied = end;
                apply(&mut self.machine, entries).await
            }
            Step::Conflict(kept, commands) => {
                let kept = model.entries.len().min(model.applied.max(model.purged) + kept);
                model.entries.truncate(kept);
                let last = model.entries.last().map(|entry| entry.log_id);
                let mut log = self.storage.log.clone();
                if log.truncate_after(last).await.is_err() {
                    // What was replaced may still be there.
                    std::mem::swap(&mut model.entries, &mut possible.entries);
                    return false;
                }
                possible.term += 1;
                possible.entries.clone_from(&model.entries);
                possible.entries.extend(entries(possible.term, kept as u64, commands));
                let appended = possible.entries[kept..].to_vec();
                log.blocking_append(appended).await.is_ok()
            }
            Step::Snapshot(left) => self.snapshot(left, model, possible).await,
            Step::Install(commands) => {
                possible.term += 1;
                possible.entries.truncate(model.applied);
                let more = entries(possible.term, model.applied as u64, commands);
                possible.entries.extend(more);
                let end = possible.entries.len();
                (possible.applied, possible.durable) = (end, end);
                self.install(model, possible).await
            }
            Step::Restart => {
                self.storage.clone().close().await;
                let reopened = Storage::open(files.clone(), Executor::Inline, Beginning::Found);
                let Ok(storage) = reopened else { return false };
                (self.machine, self.storage) = (machine(&storage.store), storage);
                possible.durable = model.applied;
                true
            }
        };
        if done {
            *model = possible.clone();
        }
        done
    }

    async fn snapshot(&mut self, left: u64, model: &mut Model, possible: &mut Model) -> bool {
        let mut builder = self.machine.get_snapshot_builder().await;
        let Ok(snapshot) = builder.build_snapshot().await else { return false };
        let built = snapshot.meta.last_log_id;
        assert_eq!(index_after(built), model.applied);
        model.durable = model.applied;
        *possible = model.clone();
        self.purge(built.and_then(|id| id.index.checked_sub(left)), possible).await
    }

    async fn purge(&mut self, upto: Option<u64>, possible: &mut Model) -> bool {
        let Some(upto) = upto else { return true };
        let Some(entry) = possible.entries.get(usize::try_from(upto).unwrap()) else { return true };
        if usize::try_from(upto).unwrap() < possible.purged {
            return true;
        }
        possible.purged = usize::try_from(upto).unwrap() + 1;
        let purged = self.storage.log.purge(entry.log_id).await.is_ok();
        tokio::task::yield_now().await;
        purged
    }

    async fn install(&mut self, model: &mut Model, possible: &mut Model) -> bool {
        let Some(last) = possible.entries.last().map(|entry| entry.log_id) else { return true };
        if possible.applied == model.applied {
            return true;
        }
        let other = Storage::open(TestFiles::default(), Executor::Inline, Beginning::Found);
        let mut other = machine(&other.unwrap().store);
        assert!(apply(&mut other, possible.entries.clone()).await);
        let snapshot = other.get_current_snapshot().await.unwrap().unwrap();
        assert!(matches!(snapshot.snapshot, SnapshotData::View(_)));
        let kept = model.entries.get(model.applied.wrapping_sub(1)).map(|entry| entry.log_id);
        if self.storage.log.truncate_after(kept).await.is_err() {
            possible.clone_from(model);
            possible.entries.truncate(model.applied);
            return false;
        }
        model.entries.truncate(model.applied);
        if self.machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.is_err() {
            return false;
        }
        model.clone_from(possible);
        self.purge(Some(last.index), possible).await
    }

    /// Checks that a member has what it should have, and returns what that is.
    async fn check(&mut self, model: Model, possible: Model) -> Model {
        let mut log = self.storage.log.clone();
        let vote = log.read_vote().await.unwrap();
        assert!([model.vote, possible.vote].contains(&vote), "{vote:?}");
        let applied = self.storage.store.applied().await.unwrap().last_log_id;
        let durable = index_after(applied);
        let state = log.get_log_state().await.unwrap();
        let purged = index_after(state.last_purged_log_id);
        let read = log.try_get_log_entries(..).await.unwrap();
        assert!(purged <= durable, "the log begins after the state ends");
        assert!(purged <= possible.purged.max(model.purged));

        let fits = |model: &Model| {
            let logged = model.entries.get(purged..).unwrap_or_default();
            let installed = durable == model.entries.len() && read.len() <= logged.len();
            (model.durable..=model.applied).contains(&durable)
                && (logged == read || installed && logged.starts_with(&read))
        };
        let found = [&possible, &model].into_iter().find(|model| fits(model));
        let found = found.unwrap_or_else(|| {
            let read = read.iter().map(|entry| entry.log_id).collect::<Vec<_>>();
            panic!("purged {purged}, {read:?}, applied {durable}: {model:?} or {possible:?}")
        });
        let commands = found.entries[..durable].iter().map(command_of);
        assert_eq!(all_rows(&self.storage.store).await, rows_after(commands));
        if index_after(state.last_log_id) < durable {
            // As openraft does when it starts.
            log.purge(applied.unwrap()).await.unwrap();
        }
        Model { vote, applied: durable, durable, ..found.clone() }
    }
}

async fn apply(machine: &mut Machine, entries: Vec<Entry>) -> bool {
    let entries = entries.into_iter().map(|entry| Ok((entry, None)));
    machine.apply(futures::stream::iter(entries)).await.is_ok()
}

fn machine(store: &Store) -> Machine {
    Machine::new(store.clone(), Arc::default(), Watches::new(Version::new(0)))
}

fn entries(term: u64, first: u64, commands: Vec<Command>) -> Vec<Entry> {
    (first..).zip(commands).map(|(index, command)| entry(log_id(term, index), command)).collect()
}

fn command_of(entry: &Entry) -> Command {
    match &entry.payload {
        EntryPayload::Normal(Data(data)) => decode_command(data.clone()).unwrap(),
        other => panic!("{other}"),
    }
}

fn index_after(id: Option<LogId>) -> usize {
    id.map_or(0, |id| usize::try_from(id.index).unwrap() + 1)
}

fn step() -> impl Strategy<Value = Step> {
    let commands = || vec(command(), 1..6);
    prop_oneof![
        1 => Just(Step::Vote),
        4 => (commands(), any::<bool>()).prop_map(|(commands, term)| Step::Append(commands, term)),
        4 => (1..8usize).prop_map(Step::Apply),
        1 => (0..4usize, commands()).prop_map(|(kept, commands)| Step::Conflict(kept, commands)),
        2 => (0..4u64).prop_map(Step::Snapshot),
        1 => commands().prop_map(Step::Install),
        1 => Just(Step::Restart),
    ]
}

#[test]
fn a_member_is_made_once() {
    let mut made = 0;
    for writes in 0..200 {
        block_on(async {
            let files = TestFiles::default();
            files.cut_power_after(writes);
            let first = Storage::open(files.clone(), Executor::Inline, Beginning::Found);
            let files = files.after_power_cut(&[writes % 2 == 0, writes % 3 == 0]);
            let again = Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap();
            assert!(again.founds());
            if let Ok(first) = first {
                assert_eq!(again.member, first.member);
                made += 1;
            }
            let member = again.member.clone();
            again.close().await;
            let third = Storage::open(files, Executor::Inline, Beginning::Found).unwrap();
            assert_eq!(third.member, member);
        });
    }
    assert!((50..195).contains(&made), "{made}");
}

#[test]
fn a_cluster_is_founded_once_and_only_by_its_founder() {
    block_on(async {
        let files = TestFiles::default();
        let mut founder = Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap();
        let cluster = founder.member.cluster;
        assert!(founder.founds());
        founder.log.blocking_append(entries(1, 0, vec![a_command()])).await.unwrap();
        assert!(!founder.founds());
        founder.close().await;
        let beginning = Beginning::Join { cluster: Uuid::new_v4() };
        let founder = Storage::open(files, Executor::Inline, beginning).unwrap();
        assert_eq!(founder.member.cluster, cluster, "it is a member already");
        assert!(!founder.founds());
        assert!(!founder.joins());

        let files = TestFiles::default();
        let beginning = Beginning::Join { cluster };
        let joining = Storage::open(files.clone(), Executor::Inline, beginning).unwrap();
        assert_eq!(joining.member.cluster, cluster);
        assert!(!joining.founds());
        joining.close().await;
        let joining = Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap();
        assert!(!joining.founds());
        assert!(joining.joins());
        joining.log.note_joined().await.unwrap();
        let member = joining.member.clone();
        joining.close().await;
        let joined = Storage::open(files, Executor::Inline, beginning).unwrap();
        assert!(!joined.joins());
        assert_eq!(joined.member, member);
    });
}

#[tokio::test]
async fn a_directory_says_who_lives_there() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("made");
    assert_eq!(Storage::member_of(&path).unwrap(), None);
    assert!(!path.exists());
    let storage = Storage::open_directory(&path, Beginning::Found).unwrap();
    let member = storage.member.clone();
    assert!(matches!(Storage::member_of(&path), Err(Error::InUse { .. })));
    let clone = storage.clone();
    storage.close().await;
    assert_eq!(Storage::member_of(&path).unwrap(), Some(member.clone()));
    assert_eq!(Storage::open_directory(&path, Beginning::Found).unwrap().member, member);
    drop(clone);
    let mut names = std::fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect::<Vec<_>>();
    names.sort();
    assert_eq!(names, [LOG, "metastore.lock", STATE]);
}

#[test]
fn a_state_to_which_the_log_does_not_reach_back_is_refused() {
    block_on(async {
        let files = TestFiles::default();
        let mut member = Member::start(&files).await;
        let old = files.bytes(STATE).unwrap();
        let all = entries(1, 0, vec![a_command(); 4]);
        member.storage.log.blocking_append(all.clone()).await.unwrap();
        assert!(apply(&mut member.machine, all).await);
        member.storage.log.purge(log_id(1, 1)).await.unwrap();
        member.storage.close().await;
        let whole = files.after_power_cut(&[true]);
        assert!(Storage::open(whole, Executor::Inline, Beginning::Found).is_ok());
        for lost in [false, true] {
            files.set_bytes(STATE, old.clone());
            if lost {
                files.remove(STATE).unwrap();
            }
            let refused = Storage::open(files.clone(), Executor::Inline, Beginning::Found);
            let refused = refused.unwrap_err();
            assert!(matches!(refused, Error::NotAMetastore { .. }), "{refused}");
            assert!(refused.to_string().contains("state.redb is missing, or an old copy"));
        }
    });
}

#[test]
fn a_state_that_is_lost_is_made_again_by_a_whole_log() {
    block_on(async {
        let files = TestFiles::default();
        let mut member = Member::start(&files).await;
        let all = entries(1, 0, vec![a_command(); 4]);
        member.storage.log.blocking_append(all.clone()).await.unwrap();
        assert!(apply(&mut member.machine, all.clone()).await);
        let rows = all_rows(&member.storage.store).await;
        member.storage.close().await;
        files.remove(STATE).unwrap();
        let mut member = Member::start(&files).await;
        let (applied, _) = member.machine.applied_state().await.unwrap();
        assert_eq!(applied, None);
        assert!(apply(&mut member.machine, all).await);
        assert_eq!(all_rows(&member.storage.store).await, rows);
    });
}

fn a_command() -> Command {
    crate::test_commands::put(Uuid::new_v4(), "key")
}
