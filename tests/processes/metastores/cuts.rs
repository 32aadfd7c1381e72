//! Members that are cut off from each other, in one direction or in both.

use std::thread;
use std::time::{Duration, Instant};

use inkfast_metastore::Transaction;

use crate::load::until;
use crate::metastores::Metastores;
use crate::metastores::loads::Counters;
use crate::proxy::Direction;

/// How long a client asks in these tests, where there may be no answer.
const SHORT: Duration = Duration::from_secs(3);

const DIRECTIONS: [Direction; 3] = [Direction::Inbound, Direction::Outbound, Direction::Both];

#[test]
fn a_leader_that_is_cut_off_answers_nothing_stale() {
    let cluster = Metastores::start_in_network(3, 0);
    let library = cluster.library();
    cluster.wait_all_settled();
    for round in 0..2 {
        let (leader, others) = (cluster.leader(), cluster.followers());
        let others: Vec<_> = others.iter().map(|&m| cluster.members[m].address).collect();
        let (old, new) = (format!("old {round}"), format!("new {round}"));
        let of_all = library.store();
        library.run(of_all.commit(Transaction::new().put("cut", old.clone()))).unwrap();
        let of_leader = library.store_of(&[cluster.members[leader].address], SHORT);
        let of_others = library.store_of(&others, SHORT);
        let value = |found: Option<inkfast_metastore::KeyValue>| found.unwrap().value;
        assert_eq!(value(library.run(of_leader.get("cut")).unwrap()), old);

        cluster.network().cut_off(leader, Direction::Both);
        let since = Instant::now();
        let put = || of_others.commit(Transaction::new().put("cut", new.clone()));
        until("served by the others", || library.run(put()).is_ok());
        eprintln!("the others had a leader after {:?}", since.elapsed());
        // Whoever does not mind has what was from it still.
        let stale = library.store_of(&[cluster.members[leader].address], SHORT);
        assert_eq!(value(library.run(stale.get_stale("cut")).unwrap()), old);
        // It may have found its way to the new leader. It may not answer what was.
        if let Ok(found) = library.run(of_leader.get("cut")) {
            assert_eq!(value(found), new);
        }
        let late = library.run(of_leader.commit(Transaction::new().put("late", "")));
        eprintln!("what the old leader says to a write: {late:?}");

        cluster.network().heal();
        cluster.wait_all_settled();
        assert_eq!(value(library.run(of_leader.get("cut")).unwrap()), new);
    }
}

#[test]
fn a_cut_in_any_direction_heals() {
    let cluster = Metastores::start_in_network(3, 0);
    let library = cluster.library();
    let counters = Counters::start(&library, 3);
    let store = library.store_of(&cluster.addresses(), SHORT);
    for direction in DIRECTIONS {
        for of_leader in [true, false] {
            cluster.wait_all_settled();
            let leader = cluster.leader();
            let member = if of_leader { leader } else { cluster.followers()[0] };
            cluster.network().cut_off(member, direction);
            let since = Instant::now();
            // The others hear each other. What it answered on its last breath does not count.
            let put = || store.commit(Transaction::new().put("cut", ""));
            until("served", || library.run(put()).is_ok() && since.elapsed() > SHORT);
            let (who, took) = (if of_leader { "leader" } else { "follower" }, since.elapsed());
            eprintln!("{direction:?} cut of the {who}: served after {took:?}");
            cluster.network().heal();
        }
    }
    cluster.wait_all_settled();
    for unanswered in counters.stop_with_outages() {
        eprintln!("unanswered: {unanswered}");
    }
}

#[test]
fn nobody_notices_a_follower_that_is_cut_off_and_returns() {
    let cluster = Metastores::start_in_network(3, 0);
    let library = cluster.library();
    let counters = Counters::start(&library, 2);
    let follower = cluster.followers()[0];
    let before = cluster.wait_all_settled();
    cluster.network().cut_off(follower, Direction::Both);
    thread::sleep(Duration::from_secs(5));
    cluster.network().heal();
    let after = cluster.wait_all_settled();
    assert_eq!(before.term, after.term, "there was an election");
    counters.stop();
}
