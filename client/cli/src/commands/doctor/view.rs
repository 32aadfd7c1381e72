//! How what was found on a bookie's disks is shown.

use std::fmt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use inkfast_bookie::doctor::{IndexReport, Report, SegmentReport, Trouble};
use inkfast_bookie::log::Mark;
use serde::Serialize;

/// What is printed: as JSON by its fields, otherwise as lines for people.
#[derive(Serialize)]
pub(super) struct View {
    sound: bool,
    directories: Vec<DirectoryView>,
}

#[derive(Serialize)]
struct DirectoryView {
    dir: String,
    bookie: String,
    cluster: String,
    name: String,
    log: String,
    other_logs: Vec<String>,
    segments: Vec<SegmentView>,
    spares: usize,
    entries: u64,
    unindexed_records: u64,
    index: String,
    /// Null if nothing is to be cut off.
    torn_tail: Option<String>,
    troubles: Vec<TroubleView>,
}

#[derive(Serialize)]
struct SegmentView {
    file: String,
    bytes: u32,
    /// Null if the index does not say.
    live_bytes: Option<u32>,
    /// Null if it never was.
    verified_at_ms: Option<u64>,
    whole: bool,
}

#[derive(Serialize)]
struct TroubleView {
    what: String,
    in_log: bool,
    /// As `ledger/entry`.
    entries: Vec<String>,
    entries_beyond: u64,
}

impl View {
    pub(super) fn new(reports: &[(&Path, Report)]) -> Self {
        let sound = reports.iter().all(|(_, report)| report.troubles.is_empty());
        let view = |(dir, report): &(&Path, Report)| DirectoryView::new(dir, report);
        Self { sound, directories: reports.iter().map(view).collect() }
    }
}

impl DirectoryView {
    fn new(dir: &Path, report: &Report) -> Self {
        let segment = |(number, report): (_, &SegmentReport)| SegmentView {
            file: format!("{number}"),
            bytes: report.bytes,
            live_bytes: report.live_bytes,
            verified_at_ms: report.verified_at_ms,
            whole: report.is_whole,
        };
        Self {
            dir: dir.display().to_string(),
            bookie: report.bookie.to_string(),
            cluster: report.cluster.to_string(),
            name: report.name.clone(),
            log: report.log.to_string(),
            other_logs: report.other_logs.iter().map(ToString::to_string).collect(),
            segments: report.segments.iter().map(segment).collect(),
            spares: report.spares,
            entries: report.entries,
            unindexed_records: report.unindexed,
            index: match &report.index {
                IndexReport::Sound(None) => "sound, and new".to_owned(),
                IndexReport::Sound(Some(Mark { segment, offset, .. })) => {
                    format!("sound, up to {segment} at offset {offset}")
                }
                IndexReport::Missing => "missing".to_owned(),
                IndexReport::Damaged(_) => "unreadable".to_owned(),
            },
            torn_tail: report.cut.map(|cut| {
                format!("{} bytes of {} from offset {} on", cut.bytes, cut.segment, cut.offset)
            }),
            troubles: report.troubles.iter().map(TroubleView::new).collect(),
        }
    }
}

impl TroubleView {
    fn new(trouble: &Trouble) -> Self {
        let entries = trouble.entries.iter().map(|(ledger, entry)| format!("{ledger}/{entry}"));
        Self {
            what: trouble.what.clone(),
            in_log: trouble.in_log,
            entries: entries.collect(),
            entries_beyond: trouble.beyond,
        }
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.directories.iter().try_for_each(|directory| writeln!(f, "{directory}"))?;
        f.write_str(if self.sound { "sound" } else { "NOT SOUND" })
    }
}

impl fmt::Display for DirectoryView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dir, bookie, cluster, name, log, index, spares, entries, .. } = self;
        writeln!(f, "directory  {dir}")?;
        writeln!(f, "bookie     {bookie}, named '{name}', of cluster {cluster}")?;
        writeln!(f, "log        {log}")?;
        for other in &self.other_logs {
            writeln!(f, "other log  {other}, in another directory of the bookie")?;
        }
        writeln!(f, "  {:<20}  {:>10}  {:>10}  {:<16}", "SEGMENT", "BYTES", "NEEDED", "VERIFIED")?;
        self.segments.iter().try_for_each(|segment| writeln!(f, "{segment}"))?;
        writeln!(f, "spares     {spares}")?;
        writeln!(f, "entries    {entries}")?;
        writeln!(f, "index      {index}")?;
        if self.unindexed_records > 0 {
            let records = self.unindexed_records;
            writeln!(f, "new        {records} records, which the next start brings to the index")?;
        }
        if let Some(torn) = &self.torn_tail {
            writeln!(f, "torn tail  {torn}; nothing of it was acknowledged")?;
        }
        self.troubles.iter().try_for_each(|trouble| writeln!(f, "TROUBLE    {trouble}"))
    }
}

impl fmt::Display for SegmentView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.live_bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string());
        let verified = self.verified_at_ms.map_or_else(|| "never".to_owned(), ago);
        let whole = if self.whole { "whole" } else { "DAMAGED" };
        write!(f, "  {:<20}  {:>10}  {needed:>10}  {verified:<16}  {whole}", self.file, self.bytes)
    }
}

impl fmt::Display for TroubleView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.entries.is_empty() {
            write!(f, ": entries (ledger/entry) {}", self.entries.join(", "))?;
        }
        match self.entries_beyond {
            0 => Ok(()),
            more => write!(f, ", and {more} more"),
        }
    }
}

fn ago(at_ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
    let hours = at.elapsed().unwrap_or_default().as_secs() / 3600;
    if hours < 48 { format!("{hours} hours ago") } else { format!("{} days ago", hours / 24) }
}
