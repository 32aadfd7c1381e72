//! The authority that makes a cluster's certificates.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData,
};

use crate::{
    IdentityError, PeerName, Role,
    identity::{check_label, file_stem, read, read_certificates, role_name},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a certificate is good for.
const VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Makes the identities of a cluster's processes. Whoever can read its key can be anyone in the
/// cluster.
pub struct Authority {
    dir: PathBuf,
    cluster: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Opens the authority of a cluster (`DIR/ca.pem`, and `DIR/ca.key`, which only its owner may
    /// read), or makes it, and the directory, where there is none.
    ///
    /// Refuses a directory that has another cluster's authority, or only its certificate.
    pub fn open_or_create(dir: &Path, cluster: &str) -> Result<Self, IdentityError> {
        check_label(cluster)?;
        fs::create_dir_all(dir).map_err(|error| write_error(dir, &error))?;
        let (path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let params = authority_params(cluster).map_err(|error| IdentityError::bad(&path, error))?;
        let key = if path.exists() {
            open_key(&path, &key_path, cluster)?
        } else {
            create(&path, &key_path, &params)?
        };
        let issuer = Issuer::new(params, key);
        Ok(Self { dir: dir.into(), cluster: cluster.into(), issuer })
    }

    /// Makes the certificate and key of a process, as `DIR/<role>.pem` and `.key`, or
    /// `DIR/<role>-<name>.pem` and `.key` when a name is given. Without one, the certificate's
    /// name is that of the role. Keeps a certificate that exists.
    pub fn issue(&self, role: Role, name: Option<&str>) -> Result<(), IdentityError> {
        name.map_or(Ok(()), check_label)?;
        let stem = file_stem(role, name);
        let path = self.dir.join(format!("{stem}.pem"));
        if path.exists() {
            return Ok(());
        }
        let name = name.map_or_else(|| role.to_string(), str::to_string);
        let peer = PeerName { cluster: self.cluster.clone(), role, name };
        let bad = |error| IdentityError::bad(&path, error);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(bad)?;
        let certificate =
            process_params(&peer).and_then(|params| params.signed_by(&key, &self.issuer));
        // The certificate comes last: where it is, the key is.
        write(&self.dir.join(format!("{stem}.key")), &key.serialize_pem())?;
        write(&path, &certificate.map_err(bad)?.pem())
    }
}

/// Reads the key of an authority that exists, and sees that it is the right one.
fn open_key(path: &Path, key_path: &Path, cluster: &str) -> Result<KeyPair, IdentityError> {
    let certificates = read_certificates(path)?;
    let certificate = webpki::EndEntityCert::try_from(&certificates[0])
        .map_err(|error| IdentityError::bad(path, error))?;
    let name = authority_name(cluster);
    if !certificate.valid_dns_names().any(|found| found == name) {
        let found: Vec<&str> = certificate.valid_dns_names().collect();
        let why = format!("it is the authority {found:?}, not {name}; choose another directory");
        return Err(IdentityError::Bad { path: path.into(), why });
    }
    let key = String::from_utf8_lossy(&read(key_path)?).into_owned();
    let key = KeyPair::from_pem(&key).map_err(|error| IdentityError::bad(key_path, error))?;
    if certificate.subject_public_key_info().as_ref() != key.subject_public_key_info() {
        return Err(IdentityError::bad(key_path, "it is not the key of ca.pem beside it"));
    }
    Ok(key)
}

fn create(
    path: &Path,
    key_path: &Path,
    params: &CertificateParams,
) -> Result<KeyPair, IdentityError> {
    let bad = |error| IdentityError::bad(path, error);
    let key = KeyPair::generate_for(&PKCS_ED25519).map_err(bad)?;
    let certificate = params.self_signed(&key).map_err(bad)?;
    // The certificate comes last: a key without one has signed nothing and is replaced.
    write(key_path, &key.serialize_pem())?;
    write(path, &certificate.pem())?;
    Ok(key)
}

fn authority_name(cluster: &str) -> String {
    format!("ca.{cluster}.inkfast")
}

fn authority_params(cluster: &str) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(authority_name(cluster), vec![authority_name(cluster)])?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Ok(params)
}

fn process_params(peer: &PeerName) -> Result<CertificateParams, rcgen::Error> {
    let names = vec![role_name(&peer.cluster, peer.role), peer.to_string()];
    let mut params = params(peer.to_string(), names)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn params(common_name: String, names: Vec<String>) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    // The clocks of a cluster's machines differ.
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + VALIDITY;
    Ok(params)
}

/// Writes a file that only its owner may read, all of it or nothing.
fn write(path: &Path, content: &str) -> Result<(), IdentityError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let attempt = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs::File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    attempt().map_err(|error| write_error(path, &error))
}

fn write_error(path: &Path, error: &io::Error) -> IdentityError {
    IdentityError::Write { path: path.into(), why: error.to_string() }
}
