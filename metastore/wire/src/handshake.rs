//! The first exchange on a connection: both sides find out whether they should talk at all.

use std::{ops::RangeInclusive, sync::Arc};

use quinn::Connecting;
use rustls::pki_types::CertificateDer;
use uuid::Uuid;

use crate::{Connection, Endpoint, Error, Frame, Peer, PeerName, Stream, error::CLOSE_REFUSED};

/// The versions of the protocol that this program speaks. A connection uses the highest that
/// both sides do.
pub const PROTOCOL_VERSIONS: RangeInclusive<u32> = 1..=1;

const KIND_HELLO: u8 = 1;
const KIND_WELCOME: u8 = 2;

/// What the caller says first.
#[derive(Clone, PartialEq, prost::Message)]
struct Hello {
    #[prost(uint32, tag = "1")]
    versions_min: u32,
    #[prost(uint32, tag = "2")]
    versions_max: u32,
    /// The caller's cluster, if it knows it.
    #[prost(bytes = "vec", optional, tag = "3")]
    cluster: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "4")]
    instance: Vec<u8>,
    /// The instance that the caller means, if it means a particular one.
    #[prost(bytes = "vec", optional, tag = "5")]
    wanted: Option<Vec<u8>>,
}

/// What the callee answers if it lets the caller in.
#[derive(Clone, PartialEq, prost::Message)]
struct Welcome {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(bytes = "vec", tag = "2")]
    cluster: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    instance: Vec<u8>,
}

/// Makes a connection of one that is just being established.
pub(crate) async fn call(
    endpoint: &Endpoint,
    connecting: Connecting,
    wanted: Option<Uuid>,
) -> Result<Connection, Error> {
    let address = connecting.remote_address().to_string();
    let quinn = connecting.await.map_err(|error| Error::connecting_failed(&address, error))?;
    let welcome = match greet(endpoint, &quinn, wanted).await {
        Ok(welcome) => welcome,
        Err(error) => {
            let reason = quinn.close_reason();
            return Err(reason.map_or(error, |reason| Error::connecting_failed(&address, reason)));
        }
    };
    match peer_of_welcome(endpoint, &quinn, &welcome, wanted) {
        Ok(peer) => Ok(Connection::new(quinn, peer)),
        Err(why) => {
            quinn.close(CLOSE_REFUSED, why.as_bytes());
            Err(Error::WrongPeer { address, why })
        }
    }
}

async fn greet(
    endpoint: &Endpoint,
    quinn: &quinn::Connection,
    wanted: Option<Uuid>,
) -> Result<Welcome, Error> {
    let hello = Hello {
        versions_min: *PROTOCOL_VERSIONS.start(),
        versions_max: *PROTOCOL_VERSIONS.end(),
        cluster: endpoint.cluster().map(|cluster| cluster.into_bytes().to_vec()),
        instance: endpoint.instance().into_bytes().to_vec(),
        wanted: wanted.map(|wanted| wanted.into_bytes().to_vec()),
    };
    let mut stream = Stream::new(quinn.open_bi().await.map_err(Error::connection_lost)?);
    stream.sender.send(&Frame::message(KIND_HELLO, &hello)).await?;
    stream.sender.finish();
    receive(&mut stream, KIND_WELCOME).await
}

/// Receives the one message of a direction.
async fn receive<M: prost::Message + Default>(stream: &mut Stream, kind: u8) -> Result<M, Error> {
    match stream.receiver.next().await? {
        Some(frame) if frame.kind == kind => frame.decode(),
        Some(frame) => {
            Err(Error::malformed(format!("a handshake with a frame of kind {}", frame.kind)))
        }
        None => Err(Error::malformed("a handshake without a frame")),
    }
}

/// Checks that the callee is the one that was meant; the error says how it is not.
fn peer_of_welcome(
    endpoint: &Endpoint,
    quinn: &quinn::Connection,
    welcome: &Welcome,
    wanted: Option<Uuid>,
) -> Result<Peer, String> {
    let name = certified_name(quinn)?;
    let version = welcome.version;
    if !PROTOCOL_VERSIONS.contains(&version) {
        return Err(format!("it chose version {version} of the protocol, which was not offered"));
    }
    let instance = uuid(&welcome.instance)?;
    if let Some(wanted) = wanted
        && wanted != instance
    {
        return Err(format!("it is the instance {instance}, not {wanted}"));
    }
    let cluster = uuid(&welcome.cluster)?;
    if !endpoint.agrees_on_cluster(cluster) {
        return Err(another_cluster("it", Some(cluster), endpoint.cluster()));
    }
    Ok(Peer { name, instance, version })
}

/// Lets a caller in, or closes the connection with the reason why not, which is also returned.
pub(crate) async fn answer(
    endpoint: &Endpoint,
    quinn: &quinn::Connection,
) -> Result<Arc<Peer>, Error> {
    let mut stream = Stream::new(quinn.accept_bi().await.map_err(Error::connection_lost)?);
    let answer = match receive::<Hello>(&mut stream, KIND_HELLO).await {
        Ok(hello) => peer_of_hello(endpoint, certified_name(quinn), &hello),
        Err(error) => Err(error.to_string()),
    };
    let (peer, cluster) = answer.map_err(|why| {
        quinn.close(CLOSE_REFUSED, why.as_bytes());
        Error::Refused { by: "this process".into(), why }
    })?;
    let welcome = Welcome {
        version: peer.version,
        cluster: cluster.into_bytes().to_vec(),
        instance: endpoint.instance().into_bytes().to_vec(),
    };
    stream.sender.send(&Frame::message(KIND_WELCOME, &welcome)).await?;
    stream.sender.finish();
    Ok(Arc::new(peer))
}

/// Checks a caller. Gives it and our cluster, or says what is wrong and what to do.
fn peer_of_hello(
    endpoint: &Endpoint,
    name: Result<PeerName, String>,
    hello: &Hello,
) -> Result<(Peer, Uuid), String> {
    let name = name?;
    if name.cluster != endpoint.name().cluster {
        return Err(format!("{name} is not of the cluster {}", endpoint.name().cluster));
    }
    if !endpoint.roles().contains(&name.role) {
        return Err(format!("the role {} is not let in by a {}", name.role, endpoint.name().role));
    }
    let version = common_version(hello.versions_min..=hello.versions_max)?;
    let cluster = hello.cluster.as_deref().map(uuid).transpose()?;
    let ours = endpoint.cluster().ok_or("this process does not know its cluster yet")?;
    if cluster.is_some_and(|cluster| cluster != ours) {
        return Err(another_cluster("the caller", cluster, Some(ours)));
    }
    if let Some(wanted) = hello.wanted.as_deref().map(uuid).transpose()?
        && wanted != endpoint.instance()
    {
        let ours = endpoint.instance();
        return Err(format!("this is the instance {ours}, not {wanted} that the caller means"));
    }
    Ok((Peer { name, instance: uuid(&hello.instance)?, version }, ours))
}

/// Chooses the highest version that both sides speak.
fn common_version(theirs: RangeInclusive<u32>) -> Result<u32, String> {
    let highest = *theirs.end().min(PROTOCOL_VERSIONS.end());
    if theirs.contains(&highest) && PROTOCOL_VERSIONS.contains(&highest) {
        return Ok(highest);
    }
    Err(format!(
        "no common version of the protocol: the caller speaks {theirs:?}, this process \
         {PROTOCOL_VERSIONS:?}; upgrade the older one"
    ))
}

fn another_cluster(who: &str, theirs: Option<Uuid>, ours: Option<Uuid>) -> String {
    let text = |cluster: Option<Uuid>| cluster.map_or_else(String::new, |id| id.to_string());
    format!("{who} belongs to the cluster {}, not {}", text(theirs), text(ours))
}

/// Reads the peer's name in the certificate that TLS has verified.
fn certified_name(quinn: &quinn::Connection) -> Result<PeerName, String> {
    let chain = quinn
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok())
        .ok_or("there is no certificate")?;
    PeerName::of_certificate(chain.first().ok_or("there is no certificate")?)
}

fn uuid(bytes: &[u8]) -> Result<Uuid, String> {
    Uuid::from_slice(bytes).map_err(|_| format!("an id of {} bytes, where 16 belong", bytes.len()))
}
