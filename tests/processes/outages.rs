//! A metastore that is away for long.

use std::time::{Duration, Instant};

use crate::cluster::{Cluster, PLAIN, STRIPED};
use crate::load::{Load, Tail, is_long, until};

#[test]
fn a_metastore_that_is_away_stops_neither_writers_nor_readers() {
    // Longer than a bookie's lease; with INKFAST_LONG a minute.
    let away = Duration::from_secs(if is_long() { 60 } else { 12 });
    let mut cluster = Cluster::start(6);
    let mut loads = [PLAIN, STRIPED].map(|sizes| Load::start(&cluster.client, sizes));
    let mut tails = loads.each_ref().map(|load| Tail::start(&cluster.client, load.ledger(), 0));
    let mut go_on = |loads: &mut [Load], time| {
        let since = Instant::now();
        while since.elapsed() < time {
            for (load, tail) in loads.iter_mut().zip(&mut tails) {
                load.step(500);
                tail.wait_for(load.confirmed() - 1);
            }
        }
    };
    go_on(&mut loads, Duration::from_secs(1));
    let ensembles = loads.each_ref().map(|load| cluster.ensemble(load.ledger()));
    let common = (0..6).find(|bookie| ensembles.iter().all(|e| e.contains(bookie))).unwrap();

    cluster.metastore.kill();
    go_on(&mut loads, away);
    // One fewer is enough for all. Nobody can be asked to replace it.
    cluster.bookies[common].kill();
    go_on(&mut loads, Duration::from_secs(6));

    cluster.metastore.restart();
    for load in &mut loads {
        until("replaced", || {
            load.step(500);
            !cluster.ensemble(load.ledger()).contains(&common)
        });
    }
    go_on(&mut loads, Duration::from_secs(1));
    let closed = loads.map(Load::close);
    for (tail, (_, written)) in tails.into_iter().zip(&closed) {
        tail.assert_ends_with(written);
    }
    cluster.restart_killed();
    cluster.assert_survive_any_loss(&closed);
}
