//! Who does not belong to the cluster is refused, and does no harm.

use std::net::UdpSocket;

use crate::cluster::{Client, Cluster, create_certs, lines, run_daemon, write_config};
use crate::random::Random;

#[test]
fn a_client_of_another_ca_is_refused() {
    let cluster = Cluster::start(3);
    let ledger = cluster.client.write(&[], "ours\n");
    create_certs(cluster.home(), "other-certs");
    let addresses = [cluster.metastore.address];
    let config = write_config(cluster.home(), "other.toml", &addresses, "other-certs");
    let stranger = Client::new(cluster.home(), config);
    stranger.run(&["ledger", "list"]).failed(1);
    let read = stranger.run(&["ledger", "read", &ledger]);
    assert_eq!(read.stdout, b"");
    read.failed(1);
    stranger.run(&["ledger", "delete", &ledger]).failed(1);
    assert_eq!(cluster.client.read(&ledger), b"ours\n");
}

#[test]
fn a_bookie_of_another_ca_is_refused() {
    let cluster = Cluster::start(3);
    create_certs(cluster.home(), "other-certs");
    let metastore = cluster.metastore.address.to_string();
    let args = ["bookie", "--dir", "stranger", "--metastore", &metastore, "--certs", "other-certs"];
    run_daemon(cluster.home(), &args, "127.0.0.1:0").outcome().failed(1);
    // It did not get in: there are three bookies still.
    let sizes = ["--ensemble", "4", "--write-quorum", "3", "--ack-quorum", "2"];
    let mut write = cluster.client.start(&[&["ledger", "write"], &sizes[..]].concat());
    write.end_input();
    write.outcome().failed(1);
}

#[test]
fn a_directory_of_another_cluster_is_refused_and_kept() {
    let (mut ours, other) = (Cluster::start(3), Cluster::start(0));
    // On all three: one of them is to be the only one that has it.
    let ledger = ours.client.write(&["--ack-quorum", "3"], lines(0..100));
    ours.bookies[0].kill();
    let (dir, certs) = (ours.bookie_dir(0), other.home().join("certs"));
    let (dir, certs) = (dir.to_str().unwrap(), certs.to_str().unwrap());
    let metastore = other.metastore.address.to_string();
    let args = ["bookie", "--dir", dir, "--metastore", &metastore, "--certs", certs];
    run_daemon(ours.home(), &args, "127.0.0.1:0").outcome().failed(1);

    // A metastore's directory is no bookie's either, nor the other way round.
    ours.metastore.kill();
    let metastore = ours.metastore.address.to_string();
    let args = ["bookie", "--dir", "metastore", "--metastore", &metastore, "--certs", "certs"];
    run_daemon(ours.home(), &args, "127.0.0.1:0").outcome().failed(1);
    let args = ["metastore", "--dir", dir, "--certs", "certs"];
    run_daemon(ours.home(), &args, "127.0.0.1:0").outcome().failed(1);

    ours.metastore.restart();
    ours.bookies[0].restart();
    // It has its copy still: the only one that runs.
    ours.bookies[1].kill();
    ours.bookies[2].kill();
    assert!(ours.client.read(&ledger) == lines(0..100));
}

#[test]
fn a_directory_or_a_port_in_use_is_refused() {
    let mut cluster = Cluster::start(3);
    let (metastore, bookie) = (cluster.metastore.address, cluster.bookies[0].address);
    let refused =
        |args: &[&str], listen: &str| run_daemon(cluster.home(), args, listen).outcome().failed(1);
    let (at_metastore, at_bookie) = (metastore.to_string(), bookie.to_string());
    let words = refused(&["metastore", "--dir", "new-m", "--certs", "certs"], &at_metastore);
    assert!(words.contains(&at_metastore), "{words}");
    let new = ["bookie", "--dir", "new-b", "--metastore", &at_metastore, "--certs", "certs"];
    let words = refused(&new, &at_bookie);
    assert!(words.contains(&at_bookie), "{words}");

    refused(&["metastore", "--dir", "metastore", "--certs", "certs"], "127.0.0.1:0");
    let same = ["bookie", "--dir", "bookie-0", "--metastore", &at_metastore, "--certs", "certs"];
    refused(&same, "127.0.0.1:0");

    cluster.metastore.running().assert_runs();
    cluster.bookies[0].running().assert_runs();
    let ledger = cluster.client.write(&[], lines(0..100));
    assert!(cluster.client.read(&ledger) == lines(0..100));
}

#[test]
fn garbage_sent_to_a_port_harms_nothing() {
    let mut cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..100));
    writer.wait_confirmed(99);
    let mut ports = vec![cluster.metastore.address];
    ports.extend(cluster.bookies.iter().map(|bookie| bookie.address));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut random = Random::new(1);
    for n in 0..3000 {
        let garbage = datagram(&mut random, n);
        for port in &ports {
            // What does not fit in a socket's buffer is lost, as on any network.
            socket.send_to(&garbage, port).ok();
        }
    }
    writer.send(lines(100..200));
    writer.wait_confirmed(199);
    writer.end_input();
    let ledger = writer.ledger.clone();
    writer.outcome().0.succeeded();
    assert!(cluster.client.read(&ledger) == lines(0..200));
    let ledger = cluster.client.write(&[], lines(0..100));
    assert!(cluster.client.read(&ledger) == lines(0..100));
    cluster.metastore.running().assert_runs();
    cluster.bookies.iter_mut().for_each(|bookie| bookie.running().assert_runs());
}

/// Gives random bytes, of which every other datagram has the look of QUIC.
fn datagram(random: &mut Random, n: usize) -> Vec<u8> {
    // A first packet has at least 1200 bytes.
    let size = [1 + n % 64, 1200][n % 2];
    let mut bytes: Vec<u8> = (0..size).map(|_| random.next().to_le_bytes()[0]).collect();
    match n % 4 {
        // Initial packets: long header, version 1, connection ids of 8 bytes.
        1 => bytes[..6].copy_from_slice(&[0xC3, 0, 0, 0, 1, 8]),
        // A version that nobody speaks, or the fixed bit of a short header.
        3 => bytes[..5].copy_from_slice(&[0xC0, 0x0A, 0x1A, 0x2A, 0x3A]),
        _ => bytes[0] = 0x40 | (bytes[0] & 0x3F),
    }
    bytes
}
