//! What the machine allows, for what Inkfast does to be compared with.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{Latency, check};
use crate::Failure;
use crate::output::Output;

mod disk;
mod net;

/// How long each figure takes where a bench is to be compared with them: five make about a second.
const BRIEFLY: Duration = Duration::from_millis(200);
/// So that a frame fits.
const SIZE_MAX: usize = 1 << 20;

/// How to measure the machine.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Where to write: the file system there is measured [default: that of temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How large each frame is that goes over the network
    #[arg(long, value_name = "N", default_value_t = 1024)]
    size: usize,
    /// How long to measure each figure
    #[arg(long, value_name = "N", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    #[command(flatten)]
    output: Output,
}

impl Arguments {
    pub(super) async fn run(self) -> Result<(), Failure> {
        check("size", self.size, 1..=SIZE_MAX)?;
        let each = Duration::from_secs(self.seconds.into());
        let baseline = Baseline::measure(self.dir.as_deref(), self.size, each).await?;
        Ok(self.output.print(&baseline)?)
    }
}

/// What a machine does without Inkfast's protocol and index, in this process alone.
#[derive(Serialize)]
pub(super) struct Baseline {
    /// One after the other, each durable before the next, as the bookie's log writes them.
    append_4_kib_us: Latency,
    append_256_kib_us: Latency,
    /// Of what was just written, which no cache has, in order.
    disk_read_megabytes_per_second: f64,
    /// Of small frames there and back over our transport, on loopback, many under way.
    pub(super) echo_frames_per_second: f64,
    echo_cpu_us_per_frame: f64,
    /// Of the same frames one way.
    pub(super) stream_megabytes_per_second: f64,
}

impl Baseline {
    /// Measures in about a second.
    pub(super) async fn briefly(dir: Option<&Path>, frame_bytes: usize) -> Result<Self, Failure> {
        Self::measure(dir, frame_bytes.max(1), BRIEFLY).await
    }

    async fn measure(
        dir: Option<&Path>,
        frame_bytes: usize,
        each: Duration,
    ) -> Result<Self, Failure> {
        let temporary = std::env::temp_dir();
        let disk = disk::measure(dir.unwrap_or(&temporary), each).await?;
        let net = net::measure(frame_bytes, each).await?;
        Ok(Self {
            append_4_kib_us: disk.small,
            append_256_kib_us: disk.large,
            disk_read_megabytes_per_second: disk.read_bytes_per_second / 1e6,
            echo_frames_per_second: net.echoes_per_second,
            echo_cpu_us_per_frame: net.cpu_per_echo.as_secs_f64() * 1e6,
            stream_megabytes_per_second: net.stream_bytes_per_second / 1e6,
        })
    }
}

impl fmt::Display for Baseline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (size, Latency { p50, p99, .. }) in
            [("4 KiB", &self.append_4_kib_us), ("256 KiB", &self.append_256_kib_us)]
        {
            writeln!(f, "append {size:<7} p50 {p50:>9} us, p99 {p99} us")?;
        }
        writeln!(f, "disk read          {:>9.0} MB/s", self.disk_read_megabytes_per_second)?;
        write!(f, "echo               {:>9.0} frames/s", self.echo_frames_per_second)?;
        writeln!(f, ", {:.2} us CPU each", self.echo_cpu_us_per_frame)?;
        write!(f, "stream             {:>9.0} MB/s", self.stream_megabytes_per_second)
    }
}
