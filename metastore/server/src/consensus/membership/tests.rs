//! A leader alone, in memory, and what it makes of others.

use async_trait::async_trait;
use inkfast_metastore::messages::Request;
use inkfast_metastore::state::Answer;
use inkfast_wire::Frame;
use openraft::EntryPayload;

use super::*;
use crate::consensus::network::Peers;
use crate::consensus::types::Runtime;
use crate::service::{Front, Me};
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_commands::block_on;
use crate::test_disk::TestFiles;

const DEADLINE: Duration = Duration::from_secs(30);
const HERE: &str = "here:1";
const THERE: (Uuid, &str) = (Uuid::from_u128(7), "there:1");

#[test]
fn a_change_that_is_half_done_is_finished() {
    run(async |_, consensus| {
        leave_half_done(&consensus).await;
        let done = |metrics: &RaftMetrics<_>| !is_half_done(metrics.membership_config.membership());
        consensus.0.raft.wait(Some(DEADLINE)).metrics(done, "the end of the change").await.unwrap();
        assert!(consensus.standing().members.iter().all(|member| member.voter));
    });
}

#[test]
fn a_voter_of_a_change_that_is_half_done_has_yet_to_be_added() {
    run(async |_, consensus| {
        leave_half_done(&consensus).await;
        consensus.add_member(consensus.0.id, HERE).await.unwrap();
        assert!(!is_half_done(&consensus.membership()));
    });
}

#[test]
fn who_catches_up_for_long_follows_already() {
    run(async |_, consensus| {
        for _ in 0..2 {
            let error = consensus.add_member(THERE.0, THERE.1).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "it may be tried again: {error}");
            assert!(error.to_string().contains("follows already"), "{error}");
            let members = consensus.standing().members;
            assert!(members.iter().any(|member| member.id == THERE.0 && !member.voter));
        }

        // Nobody has to wait for it.
        let (added, removed) = tokio::join!(consensus.add_member(THERE.0, THERE.1), async {
            sleep(Duration::from_secs(1)).await;
            consensus.remove_member(THERE.0).await
        });
        assert!(matches!(&added, Err(Error::BadRequest { .. })), "{added:?}");
        assert_eq!(removed, Ok(()));
        assert_eq!(consensus.standing().members.len(), 1);
    });
}

#[test]
fn a_change_that_cannot_be_made_is_refused_at_once() {
    run(async |_, consensus| {
        let late = Instant::now() + DEADLINE;
        let me = BTreeSet::from([NodeId(consensus.0.id)]);
        let stranger = BTreeSet::from([NodeId(THERE.0)]);
        for change in [Change::RemoveVoters(me), Change::AddVoterIds(stranger)] {
            let refused = consensus.change(change, late).await;
            assert!(matches!(refused, Err(Error::BadRequest { .. })), "{refused:?}");
        }
    });
}

#[test]
fn only_who_is_meant_is_added_or_moved() {
    run(async |front, consensus| {
        let (id, address) = (Some(consensus.0.id), THERE.1.to_owned());
        let added = front.answer(Ok(Request::AddMember { address: address.clone(), id })).await;
        let Err(Error::BadRequest { why }) = &added else { panic!("{added:?}") };
        assert!(why.contains("--advertise"), "{why}");

        // It may have moved there by the next time.
        for address in [address, "nobody:1".to_owned()] {
            let moved = front.answer(Ok(Request::MoveMember { address, id })).await;
            assert!(matches!(moved, Err(Error::Unavailable { .. })), "{moved:?}");
        }
        let address = THERE.1.to_owned();
        let stranger = Request::MoveMember { address: address.clone(), id: Some(THERE.0) };
        let moved = front.answer(Ok(stranger.clone())).await;
        assert!(matches!(moved, Err(Error::BadRequest { .. })), "{moved:?}");

        let node = BTreeMap::from([(NodeId(THERE.0), Address("away:1".into()))]);
        consensus.change(Change::AddNodes(node), Instant::now() + DEADLINE).await.unwrap();
        assert_eq!(front.answer(Ok(stranger)).await, Ok(Answer::Done));
        let members = consensus.standing().members;
        assert!(members.iter().any(|it| it.id == THERE.0 && it.address == address), "{members:?}");
    });
}

/// Commits the first half of a change, of nothing.
async fn leave_half_done(consensus: &Consensus) {
    let before = consensus.membership();
    let voters: BTreeSet<_> = before.voter_ids().collect();
    let nodes: BTreeMap<_, _> = before.nodes().map(|(id, node)| (*id, node.clone())).collect();
    let joint = Membership::new(vec![voters.clone(), voters], nodes).unwrap();
    consensus.0.raft.append_membership(joint, EntryPayload::Blank, []).await.unwrap();
    assert!(is_half_done(&consensus.membership()));
}

/// Does something with a leader that is the only member.
fn run(work: impl AsyncFnOnce(Front, Consensus)) {
    block_on(Runtime::scope(1, async {
        let files = TestFiles::default();
        let storage = Storage::open(files, Executor::Inline, Beginning::Found).unwrap();
        let me = Me { member: storage.member.clone(), address: HERE.into() };
        let (front, consensus) = Front::start(me, &storage, Arc::new(OneThere)).await.unwrap();
        let raft = &consensus.0.raft;
        raft.wait(Some(DEADLINE)).state(ServerState::Leader, "a leader").await.unwrap();
        consensus.confirm().await.unwrap();
        work(front, consensus).await;
    }));
}

/// Somebody is there, who answers no calls.
struct OneThere;

#[async_trait]
impl Peers for OneThere {
    async fn call(&self, _: Uuid, _: &str, _: Frame, _: Duration) -> Result<Frame, String> {
        Err("it does not answer".into())
    }

    async fn who(&self, address: &str) -> Result<Uuid, String> {
        let known = Some(THERE.0).filter(|_| address == THERE.1);
        known.ok_or_else(|| "nobody is there".into())
    }
}
