//! How QUIC is set up.

use std::{sync::Arc, time::Duration};

use quinn::{
    ClientConfig, ConnectionId, ConnectionIdGenerator, EndpointConfig, IdleTimeout,
    MtuDiscoveryConfig, ServerConfig, TransportConfig, VarInt,
};
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};

use crate::Identity;

/// How often something is said on an idle connection.
const KEEP_ALIVE: Duration = Duration::from_millis(1500);

/// A connection on which nothing was heard for so long is lost.
const IDLE_TIMEOUT_MS: u32 = 6000;

/// The largest datagram that is tried. Large datagrams halve the work; above some 6550 bytes the
/// system silently drops batches of them.
const DATAGRAM_BYTES_MAX: u16 = 6500;

/// What one stream may have on its way to us unread: several of the largest frames.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;

/// What all streams of a connection may have on their way to us unread.
const RECEIVE_WINDOW_BYTES: u32 = 32 << 20;

/// What a connection holds of ours until the peer has it; past it, senders wait.
const SEND_WINDOW_BYTES: u64 = 16 << 20;

/// Streams a caller may have open at a time; past it, opening waits.
const STREAMS_MAX: u32 = 16384;

/// Bytes that are kept for a connection attempt which was not yet looked at, and for all.
const INCOMING_BYTES_MAX: u64 = 64 << 10;
const INCOMING_BYTES_TOTAL: u64 = 4 << 20;

/// Connection attempts that may wait to be looked at.
const INCOMING_MAX: usize = 256;

/// Without a reset key, one is made up that nobody else will ever have.
pub(crate) fn endpoint_config(reset_key: Option<&[u8; 64]>) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    if let Some(key) = reset_key {
        config.reset_key(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key)));
        config.cid_generator(|| Box::new(RandomIds));
    }
    config.max_udp_payload_size(DATAGRAM_BYTES_MAX).expect("over the least that QUIC allows");
    config
}

pub(crate) fn client_config(identity: &Identity) -> ClientConfig {
    let mut config = ClientConfig::new(identity.caller());
    // Only callers open streams.
    config.transport_config(Arc::new(transport_config(0)));
    config
}

pub(crate) fn server_config(identity: &Identity) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(identity.callee());
    config.transport_config(Arc::new(transport_config(STREAMS_MAX)));
    config.max_incoming(INCOMING_MAX);
    config.incoming_buffer_size(INCOMING_BYTES_MAX);
    config.incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
    config
}

fn transport_config(streams_max: u32) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_BYTES_MAX);
    let mut config = TransportConfig::default();
    config
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .send_window(SEND_WINDOW_BYTES)
        .max_concurrent_bidi_streams(VarInt::from_u32(streams_max))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    config
}

/// Names connections by chance alone, and so that nobody can guess a name: for any name, a reset
/// can be had from us.
///
/// QUIC's usual generator also marks its names, and ignores those without its mark. A restarted
/// process would ignore the connections of the one before it, where it should answer with a
/// reset at once.
struct RandomIds;

const CONNECTION_ID_BYTES: usize = 8;

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; CONNECTION_ID_BYTES];
        SystemRandom::new().fill(&mut bytes).expect("the system has random bytes");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
