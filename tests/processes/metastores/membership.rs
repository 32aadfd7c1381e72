//! Members that come and go while the cluster is at work.

use std::time::{Duration, Instant};

use crate::load::until;
use crate::metastores::Metastores;
use crate::metastores::loads::{Counters, Creations, assert_known};
use crate::metastores::status::Status;

#[test]
fn one_grows_to_three_and_five_and_shrinks_again_under_load() {
    let mut cluster = Metastores::found(5, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    cluster.join(1);
    cluster.join(2);
    cluster.wait_settled(&[0, 1, 2]);
    creations.go_on(20);
    cluster.join(3);
    cluster.join(4);
    cluster.wait_settled(&[0, 1, 2, 3, 4]);
    creations.go_on(20);

    // The founder is among the first to go, and whoever leads is sooner or later.
    let mut left = vec![0, 1, 2, 3, 4];
    for gone in [4, 0, 1, 3] {
        cluster.change("remove-member", gone).succeeded();
        left.retain(|&member| member != gone);
        cluster.wait_settled(&left);
        cluster.members[gone].kill();
        creations.go_on(20);
    }
    counters.stop();
    let created = creations.stop();
    assert_known(&library, &created);

    // It needs nobody else, and has it all on its own disk.
    cluster.members[2].kill();
    cluster.members[2].restart();
    cluster.wait_settled(&[2]);
    assert_known(&library, &created);
}

#[test]
fn the_leader_is_removed_and_added_again_while_it_runs() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    for by_id in [true, false] {
        let leader = cluster.leader();
        let address = cluster.members[leader].address;
        let id = cluster.wait_all_settled().at(address).id.clone();
        let name = if by_id { id.clone() } else { address.to_string() };
        cluster.client.run(&["metastore", "remove-member", &name]).succeeded();
        let since = Instant::now();
        let others: Vec<_> = (0..3).filter(|&member| member != leader).collect();
        cluster.wait_settled(&others);
        creations.first_begun_after(since);
        creations.go_on(20);
        cluster.members[leader].running().assert_runs();
        cluster.wait_settled(&others);

        cluster.change("add-member", leader).succeeded();
        let settled = cluster.wait_all_settled();
        assert_eq!(settled.at(address).id, id, "a member is its directory");
        // Done already is done.
        cluster.change("add-member", leader).succeeded();
    }
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn a_dead_member_is_removed_and_comes_back_as_one_to_be_added() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    let dead = cluster.followers()[0];
    cluster.members[dead].kill();
    creations.go_on(20);
    cluster.change("remove-member", dead).succeeded();
    cluster.wait_all_settled();

    // It does not know that it has no vote any more, and must disturb nobody.
    cluster.members[dead].restart();
    let others: Vec<_> = (0..3).filter(|&member| member != dead).collect();
    creations.go_on(100);
    cluster.wait_settled(&others);
    cluster.change("add-member", dead).succeeded();
    cluster.wait_all_settled();
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn a_dead_leader_is_removed() {
    let mut cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 1);
    let dead = cluster.leader();
    cluster.members[dead].kill();
    cluster.change("remove-member", dead).succeeded();
    cluster.wait_all_settled();
    creations.go_on(20);
    // Two are left, who both are needed.
    assert_known(&library, &creations.stop());
}

#[test]
fn leadership_goes_where_it_is_sent() {
    let cluster = Metastores::start(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    let counters = Counters::start(&library, 2);
    let mut longest = Duration::ZERO;
    for round in 0..6 {
        let next = round % 3;
        let address = cluster.members[next].address;
        let id = cluster.wait_all_settled().at(address).id.clone();
        let name = if round < 3 { id.clone() } else { address.to_string() };
        let since = Instant::now();
        cluster.client.run(&["metastore", "transfer-leader", &name]).succeeded();
        longest = longest.max(since.elapsed());
        // It leads when the command returns; later on there may be reasons for another.
        let settled = cluster.wait_all_settled();
        assert_eq!(settled.leader().unwrap().id, id, "{settled:?}");
        cluster.client.run(&["metastore", "transfer-leader", &name]).succeeded();
        creations.go_on(10);
    }
    eprintln!("the longest transfer: {longest:?}");
    counters.stop();
    assert_known(&library, &creations.stop());
}

#[test]
fn a_joiner_that_is_killed_on_its_way_joins_when_it_is_started_again() {
    let mut cluster = Metastores::found(3, 3);
    let library = cluster.library();
    let creations = Creations::start(&library, 2);
    creations.go_on(50);
    for joiner in [1, 2] {
        let running = cluster.running().map(|member| cluster.members[member].address);
        let running: Vec<_> = running.collect();
        cluster.members[joiner].spawn(&running);
        // One when it is somebody, the other when the cluster knows of it.
        let (log, address) =
            (cluster.members[joiner].dir().join("log.redb"), cluster.members[joiner].address);
        let is_known = |status: Status| status.members.iter().any(|it| it.address == address);
        until("begun", || match joiner {
            1 => log.exists(),
            _ => Status::ask(&cluster.client).is_some_and(is_known),
        });
        cluster.members[joiner].kill();
        cluster.members[joiner].restart();
        // Where it had joined already, it is just started; else it is joining still.
        cluster.change("add-member", joiner).succeeded();
        cluster.wait_settled(&(0..=joiner).collect::<Vec<_>>());
    }
    assert_known(&library, &creations.stop());
}
