//! `inkfast start`: the daemons.

use std::path::{Path, PathBuf};

use inkfast_bookie::{Bookie, MinFree};
use inkfast_metastore::limits::check_address;
use inkfast_metastore_server::MetastoreServer;
use inkfast_wire::{Net, Role};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::refuse;
use crate::Failure;
use crate::cluster::{BOOKIES_DEFAULT, Cluster, METASTORES_DEFAULT};
use crate::config::{beside, load_identity, read};
use crate::output::say;

#[derive(clap::Subcommand)]
pub(crate) enum Start {
    /// Metastores and bookies in one process on loopback, to try things out
    Cluster(ClusterArguments),
    /// A metastore: the first of a cluster, or with --join one more
    Metastore(MetastoreSettings),
    /// A bookie
    Bookie(BookieSettings),
}

impl Start {
    pub(crate) async fn run(self, file: Option<&Path>) -> Result<(), Failure> {
        match self {
            Self::Cluster(arguments) => {
                refuse(file.is_some(), "start cluster")?;
                cluster(arguments).await
            }
            Self::Metastore(flags) => metastore(flags.over(file)?).await,
            Self::Bookie(flags) => bookie(flags.over(file)?).await,
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct ClusterArguments {
    /// Keeps the cluster here, to be started again; without it, it vanishes when it stops
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How many bookies; a cluster that is started again may get more [default: 3, or as many as
    /// there are]
    #[arg(long, value_name = "N")]
    bookies: Option<usize>,
    /// How many metastores: 1, 3 or 5; a cluster that is started again may get more [default: 1,
    /// or as many as there are]
    #[arg(long, value_name = "N")]
    metastores: Option<usize>,
}

async fn cluster(arguments: ClusterArguments) -> Result<(), Failure> {
    let ClusterArguments { dir, bookies, metastores } = arguments;
    let mut signals = Signals::new()?;
    let start = async {
        match &dir {
            Some(dir) => Cluster::start(dir, bookies, metastores).await,
            None => {
                let bookies = bookies.unwrap_or(BOOKIES_DEFAULT);
                Cluster::temporary(bookies, metastores.unwrap_or(METASTORES_DEFAULT)).await
            }
        }
    };
    let mut cluster = tokio::select! {
        started = start => started?,
        () = signals.next() => return Ok(()),
    };
    let metastores: Vec<_> = cluster.metastore_addresses().map(|it| it.to_string()).collect();
    // As it was called, so that the example can be pasted.
    let inkfast = std::env::args().next().unwrap_or_else(|| "inkfast".to_owned());
    say(format_args!(
        "A cluster of {} and {} bookies runs in {}.\nUse it from another terminal:\n\n  \
         export INKFAST_CONFIG={}\n  seq 100000 | {inkfast} ledger write\n  \
         {inkfast} ledger list\n  {inkfast} ledger read 0 | tail\n",
        match metastores.len() {
            1 => "one metastore".to_owned(),
            many => format!("{many} metastores"),
        },
        cluster.bookies().count(),
        cluster.dir().display(),
        cluster.client_file().display(),
    ))?;
    let bookies: Vec<_> = cluster.bookies().map(|b| b.address().to_string()).collect();
    let (metastores, bookies) = (metastores.join(","), bookies.join(" "));
    say(format_args!("ready metastore {metastores} bookies {bookies}"))?;
    tokio::select! {
        error = cluster.failed() => return Err(error.into()),
        () = signals.next() => {}
    }
    cluster.stop().await;
    Ok(())
}

/// The metastore's settings, from flags or a file.
#[derive(clap::Args, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct MetastoreSettings {
    /// Where it keeps its state; made if it is missing
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Where it listens, host:port
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where others reach it, if that is not where it listens
    #[arg(long, value_name = "ADDR")]
    advertise: Option<String>,
    /// The addresses of some members of the cluster that an empty directory is to join, with
    /// commas between; without it a cluster of its own is founded there
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    join: Vec<String>,
    /// Where its certificates are
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// The name of its identity among them, if they have names
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
}

impl MetastoreSettings {
    fn over(self, path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(self) };
        let file: Self = read(path)?;
        Ok(Self {
            dir: self.dir.or_else(|| file.dir.map(|dir| beside(path, dir))),
            listen: self.listen.or(file.listen),
            advertise: self.advertise.or(file.advertise),
            join: if self.join.is_empty() { file.join } else { self.join },
            certs: self.certs.or_else(|| file.certs.map(|certs| beside(path, certs))),
            identity: self.identity.or(file.identity),
        })
    }
}

async fn metastore(settings: MetastoreSettings) -> Result<(), Failure> {
    let certs = needed(settings.certs, "certs")?;
    for address in settings.advertise.iter().chain(&settings.join) {
        check_address(address).map_err(|error| Failure::Usage(error.to_string()))?;
    }
    let config = inkfast_metastore_server::Config {
        dir: needed(settings.dir, "dir")?,
        listen: needed(settings.listen, "listen")?,
        advertise: settings.advertise,
        join: settings.join,
        identity: load_identity(&certs, Role::Metastore, settings.identity.as_deref())?,
        net: Net::Os,
    };
    let mut signals = Signals::new()?;
    let metastore = tokio::select! {
        started = MetastoreServer::start(config) => started?,
        () = signals.next() => return Ok(()),
    };
    say(format_args!("ready metastore {}", metastore.address()))?;
    tokio::select! {
        error = metastore.failed() => return Err(error.into()),
        () = signals.next() => {}
    }
    metastore.stop().await;
    Ok(())
}

/// A bookie's settings, from flags or a file.
#[derive(clap::Args, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BookieSettings {
    /// Where it keeps its entries; made if it is missing. Give it once for each disk: a ledger is
    /// on one of them, and without one the others are still served
    #[arg(long, value_name = "DIR")]
    #[serde(deserialize_with = "one_or_more")]
    dir: Vec<PathBuf>,
    /// Where it listens, host:port
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// Where others reach it, if that is not where it listens
    #[arg(long, num_args = 1.., value_name = "ADDR")]
    advertise: Vec<String>,
    /// The metastore's addresses, with commas between
    #[arg(long, value_delimiter = ',', value_name = "ADDR")]
    metastore: Vec<String>,
    /// Where its certificates are
    #[arg(long, value_name = "DIR")]
    certs: Option<PathBuf>,
    /// The name of its identity among them, if they have names
    #[arg(long, value_name = "NAME")]
    identity: Option<String>,
    /// The rack that it is in
    #[arg(long, value_name = "NAME")]
    rack: Option<String>,
    /// The free space of a disk below which it refuses writers, until there is 1.4 times as much;
    /// below a quarter of it, also recoveries [default: 5 % of the disk, at most 16 GiB]
    #[arg(long, value_name = "BYTES|N%")]
    #[serde(deserialize_with = "number_or_words")]
    min_free: Option<MinFree>,
    /// The memory that it may take for entries that wait, for what was written last, and for its
    /// indexes, in bytes; what connections take comes on top [default: 268435456]
    #[arg(long, value_name = "BYTES")]
    memory: Option<u64>,
    /// How fast each disk's entries are read and verified in the background, in bytes a second; 0
    /// for not at all [default: 8388608]
    #[arg(long, value_name = "BYTES")]
    scrub_rate: Option<u64>,
}

impl BookieSettings {
    fn over(self, path: Option<&Path>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(self) };
        let file: Self = read(path)?;
        let or = |flag: Vec<String>, file| if flag.is_empty() { file } else { flag };
        Ok(Self {
            dir: match self.dir.is_empty() {
                true => file.dir.into_iter().map(|dir| beside(path, dir)).collect(),
                false => self.dir,
            },
            listen: self.listen.or(file.listen),
            advertise: or(self.advertise, file.advertise),
            metastore: or(self.metastore, file.metastore),
            certs: self.certs.or_else(|| file.certs.map(|certs| beside(path, certs))),
            identity: self.identity.or(file.identity),
            rack: self.rack.or(file.rack),
            min_free: self.min_free.or(file.min_free),
            memory: self.memory.or(file.memory),
            scrub_rate: self.scrub_rate.or(file.scrub_rate),
        })
    }
}

async fn bookie(settings: BookieSettings) -> Result<(), Failure> {
    let certs = needed(settings.certs, "certs")?;
    let metastore = (!settings.metastore.is_empty()).then_some(settings.metastore);
    let config = inkfast_bookie::Config {
        min_free: settings.min_free,
        memory_bytes: settings.memory,
        scrub_rate: settings.scrub_rate,
        dirs: needed((!settings.dir.is_empty()).then_some(settings.dir), "dir")?,
        listen: needed(settings.listen, "listen")?,
        advertise: settings.advertise,
        metastore: needed(metastore, "metastore")?,
        identity: load_identity(&certs, Role::Bookie, settings.identity.as_deref())?,
        rack: settings.rack,
        net: Net::Os,
    };
    let mut signals = Signals::new()?;
    let mut bookie = tokio::select! {
        started = Bookie::start(config) => started?,
        () = signals.next() => return Ok(()),
    };
    say(format_args!("ready bookie {} {}", bookie.address(), bookie.id()))?;
    tokio::select! {
        error = bookie.failed() => return Err(error.into()),
        () = signals.next() => {}
    }
    bookie.stop().await;
    Ok(())
}

/// Reads a path, or a list of them.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<PathBuf>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`dir` is a path, or a list of paths")]
    enum Paths {
        One(PathBuf),
        More(Vec<PathBuf>),
    }
    Ok(match Paths::deserialize(from)? {
        Paths::One(path) => vec![path],
        Paths::More(paths) => paths,
    })
}

/// Reads a number of bytes, or words as the flag takes them.
fn number_or_words<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MinFree>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "`min_free` is a number of bytes, or a percentage such as '5%'")]
    enum Either {
        Number(u64),
        Words(String),
    }
    match Either::deserialize(from)? {
        Either::Number(bytes) => Ok(Some(MinFree::Bytes(bytes))),
        Either::Words(words) => words.parse().map(Some).map_err(D::Error::custom),
    }
}

fn needed<T>(setting: Option<T>, name: &str) -> Result<T, Failure> {
    setting.ok_or_else(|| {
        Failure::Usage(format!("--{name} is missing: give it, or `{name}` in a file with --config"))
    })
}

/// What tells a daemon to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::Failed(format!("cannot take signals: {error}")))
        };
        let (terminate, interrupt) =
            (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_over_the_file() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("bookie.toml");
        let text = "dir = 'data'\nlisten = 'a:1'\nmetastore = ['m:1', 'm:2']\nrack = 'r1'";
        std::fs::write(&path, text).unwrap();
        let flags = BookieSettings {
            listen: Some("b:2".to_owned()),
            metastore: vec!["m:3".to_owned()],
            ..BookieSettings::default()
        };
        let settings = flags.over(Some(&path)).unwrap();
        assert_eq!(settings.dir, [dir.path().join("data")]);
        assert_eq!(settings.listen.as_deref(), Some("b:2"));
        assert_eq!(settings.metastore, ["m:3"]);
        assert_eq!(settings.rack.as_deref(), Some("r1"));
    }

    #[test]
    fn settings_in_a_file_may_have_several_shapes() {
        let home = tempfile::TempDir::new().unwrap();
        let path = home.path().join("bookie.toml");
        std::fs::write(&path, "dir = ['a', '/b']").unwrap();
        let settings = BookieSettings::default().over(Some(&path)).unwrap();
        assert_eq!(settings.dir, [home.path().join("a"), "/b".into()]);
        let flags = BookieSettings { dir: vec!["c".into()], ..BookieSettings::default() };
        assert_eq!(flags.over(Some(&path)).unwrap().dir, [PathBuf::from("c")]);
        for (words, read) in [("7", MinFree::Bytes(7)), ("'5%'", MinFree::Percent(5))] {
            std::fs::write(&path, format!("min_free = {words}")).unwrap();
            let settings = BookieSettings::default().over(Some(&path)).unwrap();
            assert_eq!(settings.min_free, Some(read));
        }
        std::fs::write(&path, "dir = 7").unwrap();
        let refused = BookieSettings::default().over(Some(&path)).err().unwrap().to_string();
        assert!(refused.contains("a path, or a list"), "{refused}");
    }
}
