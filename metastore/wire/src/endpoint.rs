//! This process's place on the network.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    Connection, Error, Identity, Net, PeerName, Role,
    error::CLOSE_DONE,
    handshake,
    identity::role_name,
    transport::{client_config, endpoint_config, server_config},
};

/// How long closing an endpoint waits for its peers to hear of it.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// Calls other processes, and takes calls if it was made by [`server`](Self::server). One is
/// enough for a process: all its connections share one socket.
///
/// Clones are the same endpoint.
#[derive(Clone)]
pub struct Endpoint(Arc<Inner>);

struct Inner {
    quinn: quinn::Endpoint,
    client: quinn::ClientConfig,
    net: Net,
    name: PeerName,
    instance: Uuid,
    /// Learned from the first peer where it was not known before.
    cluster: OnceLock<Uuid>,
    roles: &'static [Role],
}

/// Says where to listen, as whom, and for whom.
#[derive(Clone, Debug)]
pub struct Server {
    /// `host:port`; port 0 takes any that is free. The process calls others from here too, so
    /// an address of one network reaches only that.
    pub listen: String,
    /// Names this process's data: callers that mean another instance are refused.
    pub instance: Uuid,
    /// Names the cluster: peers of another are refused.
    pub cluster: Uuid,
    /// Lets the process tell its peers after a restart that their connections are gone. Keep it
    /// secret, and the same for as long as the address is.
    pub reset_key: [u8; 64],
    /// The roles that are let in.
    pub roles: &'static [Role],
}

impl Endpoint {
    /// Makes an endpoint that only calls others. Must be called within the runtime.
    ///
    /// Where the cluster's id is not known, it is learned from the first peer that lets us in;
    /// from then on, peers of other clusters are refused.
    pub fn client(
        net: &Net,
        identity: &Identity,
        instance: Uuid,
        cluster: Option<Uuid>,
    ) -> Result<Self, Error> {
        let bind = |error| bind_error("any port", &error);
        let socket = net.bind_any().map_err(bind)?;
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(None),
            None,
            socket,
            net.runtime(),
        )
        .map_err(bind)?;
        let endpoint = Self::new(quinn, net, identity, instance, &[]);
        if let Some(cluster) = cluster {
            endpoint.agrees_on_cluster(cluster);
        }
        Ok(endpoint)
    }

    /// Makes an endpoint that others can call; [`serve`](crate::serve) answers them.
    ///
    /// Fails where the address cannot be resolved or is in use.
    pub async fn server(net: &Net, identity: &Identity, server: Server) -> Result<Self, Error> {
        let address = net.resolve(&server.listen).await?[0];
        let bind = |error| bind_error(&server.listen, &error);
        let quinn = quinn::Endpoint::new_with_abstract_socket(
            endpoint_config(Some(&server.reset_key)),
            Some(server_config(identity)),
            net.bind(address).map_err(bind)?,
            net.runtime(),
        )
        .map_err(bind)?;
        let endpoint = Self::new(quinn, net, identity, server.instance, server.roles);
        endpoint.agrees_on_cluster(server.cluster);
        Ok(endpoint)
    }

    fn new(
        quinn: quinn::Endpoint,
        net: &Net,
        identity: &Identity,
        instance: Uuid,
        roles: &'static [Role],
    ) -> Self {
        Self(Arc::new(Inner {
            quinn,
            client: client_config(identity),
            net: net.clone(),
            name: identity.name().clone(),
            instance,
            cluster: OnceLock::new(),
            roles,
        }))
    }

    /// Gives the address of the socket, with the port that was taken.
    pub fn local_addr(&self) -> Result<SocketAddr, Error> {
        self.0.quinn.local_addr().map_err(|error| bind_error("any port", &error))
    }

    /// Gives the cluster's id, once it is known.
    pub fn cluster(&self) -> Option<Uuid> {
        self.0.cluster.get().copied()
    }

    /// Closes all connections, in both directions, refuses new ones, and waits a moment until
    /// the peers have been told why.
    pub async fn close(&self, why: &str) {
        self.0.quinn.close(CLOSE_DONE, why.as_bytes());
        if timeout(CLOSE_DEADLINE, self.0.quinn.wait_idle()).await.is_err() {
            tracing::debug!("not every peer may have been told that this endpoint is closed");
        }
    }

    /// Connects to a process of a role in our cluster. The caller sets the deadline.
    pub(crate) async fn connect(
        &self,
        address: SocketAddr,
        role: Role,
        wanted: Option<Uuid>,
    ) -> Result<Connection, Error> {
        let server_name = role_name(&self.0.name.cluster, role);
        let connecting =
            self.0.quinn.connect_with(self.0.client.clone(), address, &server_name).map_err(
                |error| Error::Unreachable { address: address.to_string(), why: error.to_string() },
            )?;
        handshake::call(self, connecting, wanted).await
    }

    pub(crate) async fn accept(&self) -> Option<quinn::Incoming> {
        self.0.quinn.accept().await
    }

    pub(crate) async fn resolve(&self, host_port: &str) -> Result<Vec<SocketAddr>, Error> {
        self.0.net.resolve(host_port).await
    }

    pub(crate) fn name(&self) -> &PeerName {
        &self.0.name
    }

    pub(crate) fn instance(&self) -> Uuid {
        self.0.instance
    }

    pub(crate) fn roles(&self) -> &'static [Role] {
        self.0.roles
    }

    /// Compares a cluster's id with ours, which it becomes if we had none.
    pub(crate) fn agrees_on_cluster(&self, cluster: Uuid) -> bool {
        *self.0.cluster.get_or_init(|| cluster) == cluster
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Endpoint({} {})", self.0.name, self.0.instance)
    }
}

fn bind_error(address: &str, error: &std::io::Error) -> Error {
    let why = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there; stop it or choose another port".into()
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine does not have that address".into(),
        _ => error.to_string(),
    };
    Error::Bind { address: address.to_string(), why }
}
