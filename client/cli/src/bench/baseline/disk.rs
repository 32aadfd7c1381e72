//! A disk, written as the bookie's log writes it.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use inkfast_bookie::disk::{Disk, OsDisk};
use inkfast_bookie::executor::Executor;
use inkfast_bookie::log::{self, Append, Appender, Completions, SEGMENT_BYTES_MAX, Settings};
use tempfile::TempDir;
use uuid::Uuid;

use super::super::{Latency, histogram, latency, note};
use crate::Failure;

/// Payloads of records that take 4 and 256 KiB in the log, the last block of which they do not fill.
const SMALL_BYTES: usize = 4000;
const LARGE_BYTES: usize = (256 << 10) - 96;
/// How much is read at once.
const READ_BYTES: usize = 1 << 20;

pub(super) struct Measured {
    pub(super) small: Latency,
    pub(super) large: Latency,
    pub(super) read_bytes_per_second: f64,
}

/// Measures the file system of a directory, which has to be there. Nothing is left behind.
pub(super) async fn measure(dir: &Path, each: Duration) -> Result<Measured, Failure> {
    let failed = |error: Box<dyn Error + Send + Sync>| {
        Failure::Failed(format!("cannot measure the disk of {}: {error}", dir.display()))
    };
    measure_in(dir, each).await.map_err(failed)
}

async fn measure_in(dir: &Path, each: Duration) -> Result<Measured, Box<dyn Error + Send + Sync>> {
    let temporary = TempDir::with_prefix_in("inkfast-baseline-", dir)?;
    let disk: Arc<dyn Disk> = Arc::new(OsDisk::open(temporary.path())?);
    let opening = Arc::clone(&disk);
    let opened = Executor::Threads.run(move || {
        let settings = Settings { log: Uuid::new_v4(), segment_bytes_max: SEGMENT_BYTES_MAX };
        log::create(&*opening, settings.log)?;
        log::open(opening, settings, None, &mut |_| Ok(()))
    });
    let (appender, mut completions) = opened.await?.0.start(Executor::Threads);
    let small = append(&appender, &mut completions, SMALL_BYTES, each).await?;
    let large = append(&appender, &mut completions, LARGE_BYTES, each).await?;
    // The log ends before its files are gone.
    drop(appender);
    while completions.next().await?.is_some() {}
    let read_bytes_per_second = Executor::Threads.run(move || read(&*disk, each)).await?;
    Ok(Measured { small, large, read_bytes_per_second })
}

/// Appends one record after the other.
async fn append(
    appender: &Appender<()>,
    completions: &mut Completions<()>,
    bytes: usize,
    lasts: Duration,
) -> Result<Latency, log::Failed> {
    let payload = Bytes::from(vec![b'x'; bytes]);
    let mut latencies_us = histogram();
    let begun = Instant::now();
    while begun.elapsed() < lasts {
        let since = Instant::now();
        appender.ready().await?;
        appender.push(Append { kind: 1, payloads: [payload.clone()].into(), token: () });
        completions.next().await?;
        note(&mut latencies_us, since);
    }
    Ok(latency(&latencies_us))
}

/// Reads all that was written, or as much as there is time for. Blocks.
fn read(disk: &dyn Disk, lasts: Duration) -> std::io::Result<f64> {
    let mut buffer = vec![0; READ_BYTES];
    let (mut bytes, begun) = (0, Instant::now());
    for name in disk.list()? {
        let file = disk.open(&name)?;
        let end = file.len_bytes()?;
        for offset in (0..end).step_by(READ_BYTES) {
            let some = READ_BYTES.min(usize::try_from(end - offset).unwrap_or(READ_BYTES));
            file.read_at(offset, &mut buffer[..some])?;
            bytes += some;
            if begun.elapsed() > lasts {
                return Ok(bytes as f64 / begun.elapsed().as_secs_f64());
            }
        }
    }
    Ok(bytes as f64 / begun.elapsed().as_secs_f64())
}
