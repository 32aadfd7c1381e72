//! A tail shows a ledger as it is written, whatever becomes of a bookie.

use crate::cluster::{Cluster, Writer, lines};
use crate::process::{Process, Signal};

/// Writes these lines, the last of which says that those before it are confirmed.
fn write(writer: &mut Writer, numbers: std::ops::Range<u64>) {
    let last = numbers.end - 1;
    writer.send(lines(numbers.start..last));
    writer.wait_confirmed(last - 1);
    writer.send(lines(last..numbers.end));
    writer.wait_confirmed(last);
}

fn expect(tail: &mut Process, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let line = tail.next_line().unwrap_or_else(|| panic!("ended before line {number}"));
        assert!(line == lines(number..number + 1), "another line than {number}");
    }
}

#[test]
fn a_tail_prints_what_is_confirmed_and_ends_with_the_ledger() {
    let cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&[]);
    let mut tail = cluster.client.start(&["ledger", "tail", &writer.ledger]);
    let mut later = cluster.client.start(&["ledger", "tail", &writer.ledger, "--from", "15"]);
    write(&mut writer, 0..10);
    expect(&mut tail, 0..9);
    write(&mut writer, 10..20);
    expect(&mut tail, 9..19);
    expect(&mut later, 15..19);
    writer.end_input();
    writer.outcome().0.succeeded();
    for tail in [tail, later] {
        assert!(tail.outcome().succeeded() == lines(19..20), "another end");
    }
    let failed = cluster.client.run(&["ledger", "tail", "77"]).failed(1);
    assert!(failed.contains("no ledger 77"), "{failed}");
}

#[test]
fn a_tail_goes_on_when_a_bookie_hangs_and_when_one_is_killed() {
    let mut cluster = Cluster::start(3);
    let mut writer = cluster.client.writer(&["--ack-quorum", "1"]);
    let mut tail = cluster.client.start(&["ledger", "tail", &writer.ledger]);
    write(&mut writer, 0..100);
    expect(&mut tail, 0..99);
    cluster.bookies[0].running().signal(Signal::Stop);
    write(&mut writer, 100..200);
    expect(&mut tail, 99..199);
    cluster.bookies[1].kill();
    write(&mut writer, 200..300);
    expect(&mut tail, 199..299);
    writer.end_input();
    writer.outcome().0.succeeded();
    assert!(tail.outcome().succeeded() == lines(299..300), "another end");
    cluster.bookies[0].running().signal(Signal::Continue);
}
