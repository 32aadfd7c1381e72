//! What goes into a ledger comes out of it, byte for byte.

use tempfile::TempDir;

use crate::cluster::{Cluster, assert_keeps, lines};
use crate::daemons::start_cluster;

#[test]
fn a_long_file_reads_back_equal() {
    let cluster = Cluster::start(3);
    let mut file = lines(0..60_000);
    file.extend_from_slice(b"\n\n\0\xff not text\r\n");
    file.extend(lines(0..60_000));
    file.extend_from_slice(b"a last line without its newline");

    let ledger = cluster.client.write(&[], file.as_slice());
    assert!(cluster.client.read(&ledger) == file, "other bytes came back");
    assert!(cluster.client.show(&ledger).contains("closed"));
}

#[test]
fn ranges_are_exact() {
    let cluster = Cluster::start(3);
    let ledger = cluster.client.write(&[], lines(0..5000));
    let read = |range: &[&str]| {
        cluster.client.run(&[&["ledger", "read", &ledger], range].concat()).succeeded()
    };
    assert!(read(&["--from", "0", "--to", "0"]) == lines(0..1));
    assert!(read(&["--from", "7", "--to", "4123"]) == lines(7..4124));
    assert!(read(&["--to", "12"]) == lines(0..13));
    assert!(read(&["--from", "4990"]) == lines(4990..5000));
    assert!(read(&["--from", "4999", "--to", "4999"]) == lines(4999..5000));
}

#[test]
fn binary_data_goes_in_chunks() {
    let cluster = Cluster::start(3);
    let data: Vec<u8> =
        (0..1_500_123_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let ledger = cluster.client.write(&["--chunk-bytes", "1000"], data.as_slice());
    assert!(cluster.client.read(&ledger) == data, "other bytes came back");
    let chunk = |n| cluster.client.run(&["ledger", "read", &ledger, "--from", n, "--to", n]);
    assert!(chunk("1").succeeded() == data[1000..2000]);
    assert!(chunk("1500").succeeded() == data[1_500_000..]);

    // The largest entry there is.
    let largest = &data[..1 << 20];
    let ledger = cluster.client.write(&["--chunk-bytes", "1048576"], largest);
    assert!(cluster.client.read(&ledger) == largest, "other bytes came back");
}

#[test]
fn a_striped_ledger_reads_back_equal() {
    let mut cluster = Cluster::start(5);
    let sizes = ["--ensemble", "5", "--write-quorum", "3", "--ack-quorum", "2"];
    let ledger = cluster.client.write(&sizes, lines(0..20_000));
    assert!(cluster.client.read(&ledger) == lines(0..20_000), "other bytes came back");
    // Each entry has more than one copy.
    cluster.bookies[0].kill();
    assert!(cluster.client.read(&ledger) == lines(0..20_000), "other bytes came back");
}

#[test]
fn an_empty_file_is_an_empty_ledger() {
    let cluster = Cluster::start(3);
    let ledger = cluster.client.write(&[], "");
    assert_eq!(cluster.client.read(&ledger), b"");
    cluster.client.run(&["ledger", "recover", &ledger]).succeeded();
    assert_eq!(cluster.client.read(&ledger), b"");
}

#[test]
fn a_reader_does_not_disturb_the_writer() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    writer.send(lines(0..100));
    writer.wait_confirmed(99);
    // What a reader knows to be confirmed may lag, but not by the first entry.
    let seen = cluster.client.run(&["ledger", "read", &writer.ledger]).succeeded();
    assert!(lines(0..100).starts_with(&seen), "other bytes came back");

    writer.send(lines(100..200));
    writer.wait_confirmed(199);
    writer.end_input();
    let ledger = writer.ledger.clone();
    let (outcome, confirmed) = writer.outcome();
    outcome.succeeded();
    assert_keeps(&cluster.client.read(&ledger), confirmed, 199);
}

#[test]
fn a_ledger_left_open_is_recovered_whole() {
    let cluster = Cluster::start(3);
    let ledger = cluster.client.write(&["--leave-open"], lines(0..100));
    assert!(cluster.client.show(&ledger).contains("open"));
    let end = cluster.client.recover(&ledger);
    assert!(cluster.client.show(&ledger).contains("closed"));
    assert_keeps(&cluster.client.read(&ledger), Some(99), end);
    assert_eq!(cluster.client.recover(&ledger), end, "a second recovery says the same");
}

#[test]
fn a_deleted_ledger_is_gone() {
    let cluster = Cluster::start(3);
    let (deleted, kept) = (cluster.client.write(&[], "a\n"), cluster.client.write(&[], "b\n"));
    cluster.client.run(&["ledger", "delete", &deleted]).succeeded();
    for command in ["read", "tail", "show", "recover", "delete"] {
        cluster.client.run(&["ledger", command, &deleted]).failed(1);
    }
    let listed = String::from_utf8(cluster.client.run(&["ledger", "list"]).succeeded()).unwrap();
    let lists = |id: &str| listed.lines().any(|line| line.split_whitespace().next() == Some(id));
    assert!(lists(&kept) && !lists(&deleted), "{listed}");
    assert_eq!(cluster.client.read(&kept), b"b\n");
}

#[test]
fn the_command_works_against_a_cluster_in_one_process() {
    let home = TempDir::new().unwrap();
    let mut daemon = start_cluster(home.path(), &["--bookies", "5"]);
    daemon.process.assert_runs();
    let sizes = ["--ensemble", "5", "--write-quorum", "3", "--ack-quorum", "2"];
    let ledger = daemon.client.write(&sizes, lines(0..1000));
    assert!(daemon.client.read(&ledger) == lines(0..1000), "other bytes came back");
}
