//! Who a process is: the names in its certificate, and the keys that prove them.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::WebPkiClientVerifier,
};

/// What TLS calls the protocol; an endpoint that speaks another is refused by TLS itself.
const ALPN: &[u8] = b"inkfast";

/// The last label of every name.
const SUFFIX: &str = "inkfast";

/// The longest name of a cluster or process; DNS allows no more in a label.
const LABEL_BYTES_MAX: usize = 63;

/// Says what a process is for, and so what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Writes and reads ledgers.
    Client,
    /// Stores entries.
    Bookie,
    /// Keeps the cluster's metadata.
    Metastore,
    /// Operates the cluster.
    Admin,
}

impl Role {
    /// Every role there is.
    pub const ALL: [Self; 4] = [Self::Client, Self::Bookie, Self::Metastore, Self::Admin];

    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Bookie => "bookie",
            Self::Metastore => "metastore",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| {
            let why = "a role is client, bookie, metastore or admin";
            IdentityError::Name { name: text.into(), why: why.into() }
        })
    }
}

/// Names a process as its certificate does: `<name>.<role>.<cluster>.inkfast`, which is also how
/// it is displayed and parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerName {
    /// The cluster that the certificate is for.
    pub cluster: String,
    /// What the process is for.
    pub role: Role,
    /// Which of its role it is; not necessarily unique.
    pub name: String,
}

impl PeerName {
    /// Reads the one full name in a certificate. Nothing is verified here.
    pub(crate) fn of_certificate(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        let certificate = webpki::EndEntityCert::try_from(certificate)
            .map_err(|error| format!("the certificate cannot be read: {error}"))?;
        let mut names = certificate.valid_dns_names().filter_map(|name| name.parse().ok());
        match (names.next(), names.next()) {
            (Some(name), None) => Ok(name),
            _ => Err(format!("the certificate has no single <name>.<role>.<cluster>.{SUFFIX}")),
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.name, role_name(&self.cluster, self.role))
    }
}

impl FromStr for PeerName {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let labels: Vec<&str> = text.split('.').collect();
        let [name, role, cluster, SUFFIX] = labels[..] else {
            let why = format!("a full name is <name>.<role>.<cluster>.{SUFFIX}");
            return Err(IdentityError::Name { name: text.into(), why });
        };
        check_label(name)?;
        check_label(cluster)?;
        Ok(Self { cluster: cluster.into(), role: role.parse()?, name: name.into() })
    }
}

/// Gives the name that stands for everyone of a role in a cluster. A caller verifies the callee
/// by it.
pub(crate) fn role_name(cluster: &str, role: Role) -> String {
    format!("{role}.{cluster}.{SUFFIX}")
}

/// Refuses what cannot be one label of a name.
pub(crate) fn check_label(label: &str) -> Result<(), IdentityError> {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let framed = label.starts_with('-') || label.ends_with('-');
    if label.is_empty() || label.len() > LABEL_BYTES_MAX || framed || !label.bytes().all(good) {
        let why = "a name has 1 to 63 of a-z, 0-9 and -, and no - at its ends";
        return Err(IdentityError::Name { name: label.into(), why: why.into() });
    }
    Ok(())
}

/// Gives the name of an identity's two files without their extension.
pub(crate) fn file_stem(role: Role, name: Option<&str>) -> String {
    name.map_or_else(|| role.to_string(), |name| format!("{role}-{name}"))
}

/// Holds what this process proves itself with, and the authority it believes: certificate, key
/// and CA, checked against each other.
#[derive(Clone)]
pub struct Identity {
    name: PeerName,
    caller: Arc<QuicClientConfig>,
    callee: Arc<QuicServerConfig>,
}

impl Identity {
    /// Reads `DIR/ca.pem` and the certificate and key of a role: `DIR/<role>.pem` and `.key`, or
    /// `DIR/<role>-<name>.pem` and `.key` when a name is given.
    ///
    /// Refuses files that do not belong together, a certificate of another role, and one that is
    /// not valid now.
    pub fn load(dir: &Path, role: Role, name: Option<&str>) -> Result<Self, IdentityError> {
        name.map_or(Ok(()), check_label)?;
        let stem = file_stem(role, name);
        let (ca_path, path) = (dir.join("ca.pem"), dir.join(format!("{stem}.pem")));
        let bad = |why: String| IdentityError::Bad { path: path.clone(), why };

        let mut roots = RootCertStore::empty();
        for certificate in read_certificates(&ca_path)? {
            roots.add(certificate).map_err(|error| IdentityError::bad(&ca_path, error))?;
        }
        let chain = read_certificates(&path)?;
        let key_path = dir.join(format!("{stem}.key"));
        let key = PrivateKeyDer::from_pem_slice(&read(&key_path)?)
            .map_err(|error| IdentityError::bad(&key_path, error))?;

        let peer_name = PeerName::of_certificate(&chain[0]).map_err(bad)?;
        if peer_name.role != role {
            return Err(bad(format!("it is for the role {}, not {role}", peer_name.role)));
        }
        Self::new(peer_name, roots, (chain, key)).map_err(|error| {
            bad(format!("{error}; are certificate, key and ca.pem of one authority?"))
        })
    }

    /// Gives the name in this process's certificate.
    pub fn name(&self) -> &PeerName {
        &self.name
    }

    fn new(
        name: PeerName,
        roots: RootCertStore,
        (chain, key): (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>),
    ) -> Result<Self, rustls::Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now())?;

        let mut caller = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        caller.alpn_protocols = vec![ALPN.to_vec()];
        // Connections are few and long: verify each from nothing.
        caller.resumption = Resumption::disabled();

        let mut callee = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        callee.alpn_protocols = vec![ALPN.to_vec()];
        callee.send_tls13_tickets = 0;

        let unsuitable = |_| rustls::Error::General("the TLS provider lacks QUIC's cipher".into());
        Ok(Self {
            name,
            caller: Arc::new(QuicClientConfig::try_from(caller).map_err(unsuitable)?),
            callee: Arc::new(QuicServerConfig::try_from(callee).map_err(unsuitable)?),
        })
    }

    pub(crate) fn caller(&self) -> Arc<QuicClientConfig> {
        self.caller.clone()
    }

    pub(crate) fn callee(&self) -> Arc<QuicServerConfig> {
        self.callee.clone()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Identity({})", self.name)
    }
}

/// Says what is wrong with a name, or with a file of an identity or authority.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A name cannot be used.
    #[error("bad name {name:?}: {why}")]
    Name {
        /// The name.
        name: String,
        /// What names look like.
        why: String,
    },
    /// A file cannot be read.
    #[error(
        "cannot read {path}: {why}; identities are made by the authority of the cluster and \
         copied to where they are used"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A file cannot be written.
    #[error("cannot write {path}: {why}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A file holds something else than it should.
    #[error("{path} cannot be used: {why}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl IdentityError {
    pub(crate) fn bad(path: &Path, why: impl fmt::Display) -> Self {
        Self::Bad { path: path.into(), why: why.to_string() }
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path)
        .map_err(|error| IdentityError::Read { path: path.into(), why: error.to_string() })
}

/// Reads a file of PEM certificates; at least one on success.
pub(crate) fn read_certificates(
    path: &Path,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(path)?).collect();
    let certificates = certificates.map_err(|error| IdentityError::bad(path, error))?;
    if certificates.is_empty() {
        return Err(IdentityError::bad(path, "it has no PEM certificate"));
    }
    Ok(certificates)
}
