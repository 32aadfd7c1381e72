//! Where sockets and the runtime come from.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use crate::Error;

/// What is asked of the system for each of a socket's two buffers; it may give less.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;

/// Says where sockets and the runtime come from: the operating system, or a simulation.
#[derive(Clone)]
pub enum Net {
    /// The operating system's sockets on the tokio runtime that is running.
    Os,
    /// Sockets and a runtime that somebody else made.
    Given(Arc<dyn Sockets>, Arc<dyn quinn::Runtime>),
}

/// Makes datagram sockets and knows the names of hosts.
pub trait Sockets: Send + Sync {
    /// Opens a socket. An endpoint that only calls others binds `0.0.0.0:0`.
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// Turns `host:port` into addresses, the preferred one first.
    fn resolve(&self, host_port: &str) -> io::Result<Vec<SocketAddr>>;
}

impl Net {
    /// Resolves a `host:port`; at least one address on success.
    pub(crate) async fn resolve(&self, host_port: &str) -> Result<Vec<SocketAddr>, Error> {
        let resolved = match self {
            Self::Os => tokio::net::lookup_host(host_port).await.map(Iterator::collect),
            Self::Given(sockets, _) => sockets.resolve(host_port),
        };
        let failed = |why| Error::Resolve { address: host_port.to_string(), why };
        let addresses: Vec<SocketAddr> = resolved.map_err(|error| failed(error.to_string()))?;
        if addresses.is_empty() {
            return Err(failed("no address is known for it".into()));
        }
        Ok(addresses)
    }

    pub(crate) fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        match self {
            Self::Os => bind_os(address),
            Self::Given(sockets, _) => sockets.bind(address),
        }
    }

    /// Opens a socket for calling others, IPv6 and IPv4 alike where the system can.
    pub(crate) fn bind_any(&self) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
        let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        match self {
            Self::Os => {
                bind_os(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))).or_else(|_| bind_os(any_v4))
            }
            Self::Given(sockets, _) => sockets.bind(any_v4),
        }
    }

    pub(crate) fn runtime(&self) -> Arc<dyn quinn::Runtime> {
        match self {
            Self::Os => Arc::new(quinn::TokioRuntime),
            Self::Given(_, runtime) => runtime.clone(),
        }
    }
}

impl fmt::Debug for Net {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Os => "Os",
            Self::Given(..) => "Given",
        })
    }
}

fn bind_os(address: SocketAddr) -> io::Result<Arc<dyn quinn::AsyncUdpSocket>> {
    let socket = std::net::UdpSocket::bind(address)?;
    let state = quinn::udp::UdpSocketState::new((&socket).into())?;
    for set in [
        state.set_send_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES),
        state.set_recv_buffer_size((&socket).into(), SOCKET_BUFFER_BYTES),
    ] {
        if let Err(error) = set {
            tracing::debug!(%error, "the system does not give a socket the buffers it was asked for");
        }
    }
    quinn::Runtime::wrap_udp_socket(&quinn::TokioRuntime, socket)
}
