//! The figures of both, side by side.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Deserializer;

use crate::Error;
use crate::load::{Figures, Report};

/// The figures of all rounds, by operation and number of clients.
type Rounds = BTreeMap<(String, usize), Vec<Figures>>;

/// Prints the medians of a directory's figures, and the ratios.
pub(crate) fn print(dir: &Path) -> Result<(), Error> {
    let (inkfast, etcd) = (read(dir, "inkfast-")?, read(dir, "etcd-")?);
    println!("medians; the ratio is inkfast / etcd, of operations per second");
    println!(
        "{:<8}{:>8}{:>12}{:>12}{:>8}{:>26}{:>26}",
        "", "clients", "inkfast/s", "etcd/s", "ratio", "inkfast p50/p99 us", "etcd p50/p99 us"
    );
    for ((operation, clients), figures) in inkfast {
        let key = (operation, clients);
        let other = etcd.get(&key).ok_or_else(|| format!("etcd has no figures of {key:?}"))?;
        let (ours, theirs) = (rate(&figures), rate(other));
        println!(
            "{:<8}{clients:>8}{ours:>12.0}{theirs:>12.0}{:>8.2}{:>26}{:>26}",
            key.0,
            ours / theirs,
            latency(&figures),
            latency(other),
        );
    }
    Ok(())
}

/// Reads the files whose names begin with the prefix; the number of clients follows it.
fn read(dir: &Path, prefix: &str) -> Result<Rounds, Error> {
    let mut rounds = Rounds::new();
    for file in fs::read_dir(dir)? {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let middle = name.and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".json"));
        let Some(clients) = middle else { continue };
        let clients = clients.parse()?;
        let text = fs::read_to_string(&path)?;
        for report in Deserializer::from_str(&text).into_iter::<Report>() {
            for (operation, figures) in report? {
                rounds.entry((operation, clients)).or_default().push(figures);
            }
        }
    }
    Ok(rounds)
}

fn rate(rounds: &[Figures]) -> f64 {
    median(rounds.iter().map(|round| round.operations_per_second))
}

fn latency(rounds: &[Figures]) -> String {
    let median = |of: fn(&Figures) -> u64| median(rounds.iter().map(|round| of(round) as f64));
    format!("{} / {}", median(|round| round.latency_us.p50), median(|round| round.latency_us.p99))
}

/// Returns the middle one, or the higher one of two.
fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<_> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
