use uuid::Uuid;

use super::*;
use crate::consensus::types::NodeId;
use crate::directory::INCOMING;
use crate::storage::{Beginning, Storage};
use crate::store::Executor;
use crate::test_commands::block_on;
use crate::test_disk::TestFiles;

#[test]
fn a_snapshot_of_which_no_more_comes_is_given_up() {
    block_on(async {
        let (files, receiving) = receiving();
        let receiving = Arc::new(receiving);
        let ending = tokio::spawn(receiving.clone().end_idle());
        receiving.add(piece(1, "one", 0)).await.unwrap();
        sleep(IDLE_DEADLINE - IDLE_INTERVAL).await;
        receiving.add(piece(1, "one", 1)).await.unwrap();
        sleep(IDLE_DEADLINE - IDLE_INTERVAL).await;
        assert!(files.file_names().contains(&INCOMING.into()));
        sleep(2 * IDLE_INTERVAL).await;
        assert!(!files.file_names().contains(&INCOMING.into()));
        receiving.add(piece(1, "one", 2)).await.unwrap_err();
        receiving.add(piece(1, "two", 0)).await.unwrap();
        ending.abort();
    });
}

#[test]
fn an_earlier_leader_is_not_listened_to() {
    block_on(async {
        let (_, receiving) = receiving();
        receiving.add(piece(2, "present", 0)).await.unwrap();
        for number in [0, 1] {
            receiving.add(piece(1, "deposed", number)).await.unwrap_err();
        }
        receiving.vote_of(&piece(1, "deposed", 1)).unwrap_err();
        let unnamed = PieceMessage { vote: None, ..piece(2, "present", 1) };
        receiving.add(unnamed).await.unwrap_err();
        receiving.add(piece(2, "present", 1)).await.unwrap();
        receiving.add(piece(3, "next", 0)).await.unwrap();
        receiving.add(piece(2, "present", 2)).await.unwrap_err();
        receiving.add(piece(3, "next", 1)).await.unwrap();
        receiving.add(piece(3, "again", 0)).await.unwrap();
    });
}

fn receiving() -> (TestFiles, Receiving) {
    let files = TestFiles::default();
    let storage = Storage::open(files.clone(), Executor::Inline, Beginning::Found).unwrap();
    (files, Receiving::new(storage.store))
}

/// Makes a piece that has no rows.
fn piece(term: u64, snapshot: &'static str, number: u64) -> PieceMessage {
    let vote = Vote::new_committed(term, NodeId(Uuid::from_u128(term.into())));
    PieceMessage {
        vote: Some(vote.to_message()),
        snapshot: snapshot.into(),
        number,
        ..PieceMessage::default()
    }
}
