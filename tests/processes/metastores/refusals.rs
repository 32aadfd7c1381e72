//! Changes of the membership that cannot be made: words say why, and nothing is changed.

use crate::cluster::{Client, create_certs, lines, run_daemon, write_config};
use crate::metastores::{Member, Metastores};
use crate::process::Process;

const NO_MEMBER: &str = "11111111-2222-4333-8444-555555555555";

/// Panics if the members are other ones than these, or do not work.
fn assert_unharmed(cluster: &Metastores, members: &[usize]) {
    cluster.wait_settled(members);
    let ledger = cluster.client.write(&[], lines(0..10));
    assert!(cluster.client.read(&ledger) == lines(0..10), "other bytes came back");
}

#[test]
fn unknown_members_are_neither_removed_nor_made_leaders() {
    let cluster = Metastores::start(3, 3);
    let nowhere = Member::new(cluster.home(), 9, None).address.to_string();
    for command in ["remove-member", "transfer-leader"] {
        for name in [NO_MEMBER, &nowhere, &cluster.bookies[0].address.to_string()] {
            let words = cluster.client.run(&["metastore", command, name]).failed(1);
            assert!(words.contains(name), "{words}");
        }
    }
    assert_unharmed(&cluster, &[0, 1, 2]);
}

#[test]
fn nobody_leads_who_is_dead() {
    let mut cluster = Metastores::start(3, 3);
    let dead = cluster.followers()[0];
    cluster.members[dead].kill();
    let words = cluster.change("transfer-leader", dead).failed(1);
    assert!(words.contains(&cluster.members[dead].address.to_string()), "{words}");
    cluster.members[dead].restart();
    assert_unharmed(&cluster, &[0, 1, 2]);
}

#[test]
fn the_last_member_stays() {
    let mut cluster = Metastores::found(1, 3);
    let words = cluster.change("remove-member", 0).failed(1);
    assert!(words.contains("last") || words.contains("only"), "{words}");
    assert_unharmed(&cluster, &[0]);
    cluster.change("transfer-leader", 0).succeeded();
    cluster.change("add-member", 0).succeeded();
    cluster.members[0].kill();
    cluster.members[0].restart();
    assert_unharmed(&cluster, &[0]);
}

#[test]
fn who_cannot_be_reached_is_not_added() {
    let cluster = Metastores::start(3, 3);
    let nowhere = Member::new(cluster.home(), 9, None).address.to_string();
    // A bookie is no metastore.
    for address in [&nowhere, &cluster.bookies[0].address.to_string()] {
        let words = cluster.client.run(&["metastore", "add-member", address]).failed(1);
        assert!(words.contains(address.as_str()), "{words}");
        assert_unharmed(&cluster, &[0, 1, 2]);
    }
}

#[test]
fn who_belongs_to_another_cluster_is_not_added() {
    let cluster = Metastores::start(3, 3);
    // The same authority, so that only the id of the cluster tells.
    let mut other = Member::new(cluster.home(), 9, None);
    other.start(&[]);
    create_certs(cluster.home(), "other-certs");
    let args = ["metastore", "--dir", "stranger", "--certs", "other-certs"];
    let mut stranger = run_daemon(cluster.home(), &args, "127.0.0.1:0");
    let line = stranger.line_with("ready metastore ");
    let stranger_at = line.split_whitespace().last().unwrap();
    for address in [&other.address.to_string(), stranger_at] {
        let words = cluster.client.run(&["metastore", "add-member", address]).failed(1);
        assert!(words.contains(address), "{words}");
    }
    assert_unharmed(&cluster, &[0, 1, 2]);
    other.running().assert_runs();
    stranger.assert_runs();
    let config = write_config(cluster.home(), "other.toml", &[other.address], "certs");
    Client::new(cluster.home(), config).run(&["metastore", "status"]).succeeded();
}

#[test]
fn a_cluster_that_cannot_be_reached_is_not_joined_but_later() {
    let mut cluster = Metastores::found(3, 3);
    let nowhere = Member::new(cluster.home(), 9, None).address;
    let bookie = cluster.bookies[0].address;
    // Both at once: they try for a while.
    let tried = [(1, nowhere), (2, bookie)];
    tried.iter().for_each(|&(member, address)| cluster.members[member].spawn(&[address]));
    for (member, address) in tried {
        let words = cluster.members[member].outcome().failed(1);
        assert!(words.contains(&address.to_string()), "{words}");
    }
    // They did not found clusters instead.
    let founder = cluster.members[0].address;
    cluster.members[1].start(&[nowhere, founder]);
    assert_unharmed(&cluster, &[0, 1]);
    cluster.members[2].start(&[founder]);
    assert_unharmed(&cluster, &[0, 1, 2]);
}

#[test]
fn a_cluster_without_a_majority_takes_nobody_in() {
    let mut cluster = Metastores::found(3, 3);
    cluster.join(1);
    cluster.members[1].kill();
    let founder = cluster.members[0].address;
    cluster.members[2].spawn(&[founder]);
    cluster.members[2].outcome().failed(1);
    cluster.members[1].restart();
    // It may have got as far as to be known, without a vote.
    cluster.members[2].start(&[founder]);
    cluster.change("add-member", 2).succeeded();
    assert_unharmed(&cluster, &[0, 1, 2]);
}

#[test]
fn who_has_another_authority_does_not_join() {
    let cluster = Metastores::start(1, 3);
    create_certs(cluster.home(), "other-certs");
    let founder = cluster.members[0].address.to_string();
    let args = ["metastore", "--dir", "stranger", "--certs", "other-certs", "--join", &founder];
    run_daemon(cluster.home(), &args, "127.0.0.1:0").outcome().failed(1);
    assert_unharmed(&cluster, &[0]);

    // And who has another authority changes nothing.
    let config = write_config(cluster.home(), "other.toml", &cluster.addresses(), "other-certs");
    let stranger = Client::new(cluster.home(), config);
    stranger.run(&["metastore", "status"]).failed(1);
    stranger.run(&["metastore", "remove-member", &founder]).failed(1);
    stranger.run(&["metastore", "backup", "stolen"]).failed(1);
    assert!(!cluster.home().join("stolen").exists());
    assert_unharmed(&cluster, &[0]);
}

#[test]
fn one_directory_is_one_process() {
    let mut cluster = Metastores::start(3, 3);
    let founder = cluster.members[0].address.to_string();
    let args = ["metastore", "--dir", "metastore-1", "--certs", "certs", "--join", &founder];
    run_daemon(cluster.home(), &args, "127.0.0.1:0").outcome().failed(1);
    cluster.members[1].running().assert_runs();
    assert_unharmed(&cluster, &[0, 1, 2]);
}

#[test]
fn a_member_that_moves_tells_the_cluster() {
    let mut cluster = Metastores::start(3, 3);
    let moved = cluster.followers()[0];
    let id = cluster.wait_all_settled().at(cluster.members[moved].address).id.clone();
    cluster.members[moved].kill();
    let args = ["start", "metastore", "--dir", &format!("metastore-{moved}"), "--certs", "certs"];
    let args = [&args[..], &["--listen", "127.0.0.1:0"]].concat();
    let mut process = Process::start(cluster.home(), None, &args);
    let line = process.line_with("ready metastore ");
    let address = line.split_whitespace().last().unwrap().parse().unwrap();
    let mut addresses = cluster.addresses();
    addresses[moved] = address;
    let status = cluster.wait_settled_at(&addresses);
    assert_eq!(status.at(address).id, id);
}
