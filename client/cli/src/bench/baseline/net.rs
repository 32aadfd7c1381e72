//! Our transport on loopback, with both ends in this process.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use inkfast_wire::{
    Authority, Connection, Endpoint, Error, Frame, Frames, Identity, Net, Peer, Remote, Role,
    Server, Service, Stream, Target, serve,
};
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;
use tokio::time::timeout_at;
use uuid::Uuid;

use crate::Failure;

/// How many frames are under way, if they are small.
const WINDOW: usize = 1000;
/// How many bytes are under way, if the frames are large.
const WINDOW_BYTES: usize = 4 << 20;
/// How many bytes are sent at once where they go one way.
const SEND_BYTES: usize = 1 << 20;

/// A frame to be sent back.
const ECHO: u8 = 1;
/// A frame to be sent again and again.
const REPEAT: u8 = 2;

pub(super) struct Measured {
    pub(super) echoes_per_second: f64,
    /// Of both ends.
    pub(super) cpu_per_echo: Duration,
    pub(super) stream_bytes_per_second: f64,
}

pub(super) async fn measure(frame_bytes: usize, each: Duration) -> Result<Measured, Failure> {
    let certs = TempDir::with_prefix("inkfast-baseline-")?;
    let authority = Authority::open_or_create(certs.path(), "baseline")?;
    let identity = |role| {
        authority.issue(role, None)?;
        Identity::load(certs.path(), role, None)
    };
    let (caller, callee) = (identity(Role::Client)?, identity(Role::Bookie)?);
    let measured = measure_between(&caller, &callee, (frame_bytes, each)).await;
    Ok(measured.map_err(inkfast::Error::from)?)
}

async fn measure_between(
    caller: &Identity,
    callee: &Identity,
    (frame_bytes, each): (usize, Duration),
) -> Result<Measured, Error> {
    let (listen, roles) = ("127.0.0.1:0".to_owned(), &[Role::Client]);
    let (instance, cluster) = (Uuid::new_v4(), Uuid::new_v4());
    let server = Server { listen, instance, cluster, reset_key: [0; 64], roles };
    let server = Endpoint::server(&Net::Os, callee, server).await?;
    tokio::spawn(serve(server.clone(), Mirror));
    let client = Endpoint::client(&Net::Os, caller, Uuid::new_v4(), Some(cluster))?;
    let addresses = vec![server.local_addr().to_string()];
    let target = Target { role: Role::Bookie, instance: Some(instance), addresses };
    let connection = Remote::new(&client, target).connection().await?;
    let body = Bytes::from(vec![b'x'; frame_bytes]);

    let (begun, cpu_before) = (Instant::now(), cpu());
    let echoes = count_echoes(&connection, &body, each).await?;
    let (elapsed, cpu) = (begun.elapsed(), cpu().saturating_sub(cpu_before));
    let begun = Instant::now();
    let streamed = count_streamed(&connection, &body, each).await?;
    let stream_bytes_per_second = streamed as f64 / begun.elapsed().as_secs_f64();
    client.close("the baseline is measured").await;
    server.close("the baseline is measured").await;
    Ok(Measured {
        echoes_per_second: echoes as f64 / elapsed.as_secs_f64(),
        cpu_per_echo: cpu.div_f64(echoes.max(1) as f64),
        stream_bytes_per_second,
    })
}

/// Tells how many frames come back, of which as many are under way as the window allows.
async fn count_echoes(
    connection: &Connection,
    body: &Bytes,
    lasts: Duration,
) -> Result<usize, Error> {
    let Stream { mut sender, mut receiver } = connection.open().await?;
    let (mut sent_back, begun) = (0, Instant::now());
    let mut missing = WINDOW.min(WINDOW_BYTES / body.len()).max(1);
    while begun.elapsed() < lasts {
        let mut frames = Frames::default();
        (0..missing).for_each(|_| frames.push(ECHO, body));
        sender.send_encoded(&mut frames.take()).await?;
        missing = 0;
        let mut next = receiver.next().await?;
        while next.is_some() {
            missing += 1;
            next = receiver.next_buffered()?;
        }
        sent_back += missing;
    }
    Ok(sent_back)
}

/// Tells how many bytes of frames come from a callee that sends as fast as it can.
async fn count_streamed(
    connection: &Connection,
    body: &Bytes,
    lasts: Duration,
) -> Result<usize, Error> {
    let mut stream = connection.open().await?;
    let (until, mut bytes) = (tokio::time::Instant::now() + lasts, 0);
    stream.sender.send(&Frame { kind: REPEAT, body: body.clone() }).await?;
    while let Ok(frame) = timeout_at(until, stream.receiver.next()).await {
        bytes += frame?.map_or(0, |frame| frame.body.len());
        while let Some(frame) = stream.receiver.next_buffered()? {
            bytes += frame.body.len();
        }
        if tokio::time::Instant::now() > until {
            break;
        }
    }
    Ok(bytes)
}

/// Sends frames back.
#[derive(Clone)]
struct Mirror;

impl Service for Mirror {
    async fn serve(&self, _peer: Arc<Peer>, stream: Stream) {
        // It ends when the caller has had enough.
        let _ = mirror(stream).await;
    }
}

async fn mirror(Stream { mut sender, mut receiver }: Stream) -> Result<(), Error> {
    while let Some(frame) = receiver.next().await? {
        let mut frames = Frames::default();
        if frame.kind == REPEAT {
            let count = (SEND_BYTES / frame.body.len().max(1)).max(1);
            loop {
                (0..count).for_each(|_| frames.push(REPEAT, &frame.body));
                sender.send_encoded(&mut frames.take()).await?;
            }
        }
        let mut next = Some(frame);
        while let Some(frame) = next {
            frames.push(frame.kind, &frame.body);
            next = receiver.next_buffered()?;
        }
        sender.send_encoded(&mut frames.take()).await?;
    }
    Ok(())
}

/// Tells how much of the processors this process has used.
fn cpu() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(used).unwrap_or_default()
}
