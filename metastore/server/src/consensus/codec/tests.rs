use std::fmt::Debug;

use openraft::entry::RaftEntry;

use super::*;

#[test]
fn what_is_written_down_is_read_again() {
    let at = |term, index| LogId { leader_id: CommittedLeaderId::new(term), index };
    let nodes = |ids: &[u64]| ids.iter().copied().map(NodeId::from).collect::<BTreeSet<_>>();
    let addresses = [1, 2, 3].map(|id| (NodeId::from(id), Address(format!("host:{id}"))));
    let membership =
        Membership::new(vec![nodes(&[1, 2]), nodes(&[2])], BTreeMap::from(addresses)).unwrap();
    let vote = Vote::new_committed(7, NodeId::from(2));

    same(at(3, 4));
    same(vote);
    same(Vote::new(0, NodeId::from(9)));
    same(membership.clone());
    same(Membership::default());
    same(SnapshotMeta::default());
    same(SnapshotMeta {
        last_log_id: Some(at(3, 9)),
        last_membership: StoredMembership::new(Some(at(2, 1)), membership.clone()),
    });
    let entries = [
        Entry::new(at(1, 1), EntryPayload::Blank),
        Entry::new(at(1, 2), EntryPayload::Normal(Data("data".into()))),
        Entry::new(at(2, 3), EntryPayload::Normal(Data(Bytes::new()))),
        Entry::new(at(2, 4), EntryPayload::Membership(membership)),
    ];
    for entry in entries.clone() {
        same(entry);
    }
    same(VoteRequest { vote, last_log_id: Some(at(1, 4)), leadership_transfer: true });
    same(VoteResponse { vote, vote_granted: true, last_log_id: None });
    same(AppendEntriesResponse::Success);
    same(AppendEntriesResponse::Conflict);
    same(AppendEntriesResponse::PartialSuccess(None));
    same(AppendEntriesResponse::PartialSuccess(Some(at(1, 1))));
    same(AppendEntriesResponse::HigherVote(vote));
    same(TransferLeaderRequest::new(vote, NodeId::from(3), Some(at(5, 6))));
    same(SnapshotResponse::new(vote));

    let request = AppendEntriesRequest {
        vote,
        prev_log_id: None,
        entries: entries.to_vec(),
        leader_commit: Some(at(1, 3)),
    };
    let again = AppendEntriesRequest::decode(request.encode().into()).unwrap();
    assert_eq!((again.vote, again.prev_log_id), (request.vote, request.prev_log_id));
    assert_eq!((again.entries, again.leader_commit), (request.entries, request.leader_commit));
}

fn same<T: Coded + Debug + PartialEq>(value: T) {
    assert_eq!(T::decode(value.encode().into()).unwrap(), value);
}

#[test]
fn what_cannot_be_read_is_refused() {
    assert!(Vote::decode(Bytes::from_static(b"\xff")).is_err());
    // Neither a vote of nobody nor an entry without its place.
    assert!(Vote::decode(Bytes::new()).is_err());
    assert!(Entry::decode(Bytes::new()).is_err());
    assert!(VoteRequest::decode(Bytes::new()).is_err());
    // An answer of which nothing is known.
    assert!(AppendEntriesResponse::decode(Bytes::new()).is_err());
    assert!(AppendEntriesResponse::decode(Bytes::from_static(&[9 << 3 | 2, 0])).is_err());
}
