//! The limits, and the checks that every request passes before it is sent and before it is applied.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use inkfast_wire::FRAME_BYTES_MAX;

use crate::error::Error;
use crate::state::Operation;
use crate::types::{Scan, Transaction, Write};

/// The most bytes of a key, of a sequence's name and of the prefix of a scan or watch. Keys have at
/// least one.
pub const KEY_BYTES_MAX: usize = 1024;
/// The most bytes of a value.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The most conditions and writes of a transaction together.
pub const TRANSACTION_OPERATIONS_MAX: usize = 1024;
/// The most bytes of a transaction: keys, values, and [`OPERATION_BYTES`] for each condition and
/// write. It fits a frame.
pub const TRANSACTION_BYTES_MAX: usize = FRAME_BYTES_MAX - 1024;
/// What a condition, a write or an entry of a page counts beside its key and value.
pub const OPERATION_BYTES: usize = 64;
/// The most entries of a page.
pub const PAGE_ENTRIES_MAX: usize = 1000;
/// The most bytes of a page, counted as those of a transaction.
pub const PAGE_BYTES_MAX: usize = TRANSACTION_BYTES_MAX;
/// The most keys that a lease may have.
pub const LEASE_KEYS_MAX: usize = TRANSACTION_OPERATIONS_MAX;
/// The most leases there may be at a time.
pub const LEASES_MAX: u64 = 100_000;
/// The shortest lease.
pub const LEASE_TTL_MIN: Duration = Duration::from_millis(1);
/// The longest lease.
pub const LEASE_TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// The most numbers that a sequence gives out at once.
pub const SEQUENCE_BLOCK_MAX: u64 = 1 << 32;
/// The most bytes of a member's address.
pub const ADDRESS_BYTES_MAX: usize = 255;

const _: () =
    assert!(KEY_BYTES_MAX + VALUE_BYTES_MAX + 2 * OPERATION_BYTES <= TRANSACTION_BYTES_MAX);

/// Refuses a key that is empty or too long.
pub fn check_key(key: &str) -> Result<(), Error> {
    if key.is_empty() {
        return Err(Error::bad_request("a key is empty: give it at least one byte"));
    }
    check_length("a key", key)
}

/// Refuses a scan of nothing, and one after a key that it is not about.
pub fn check_scan(scan: &Scan) -> Result<(), Error> {
    check_length("a prefix", &scan.prefix)?;
    if let Some(after) = &scan.after {
        check_length("a key", after)?;
        if !after.starts_with(&scan.prefix) {
            return Err(Error::bad_request(format!(
                "a page after {after:?}, which does not begin with the prefix {:?}: go on after \
                 the last key of the page before",
                scan.prefix
            )));
        }
    }
    if scan.limit == 0 {
        return Err(Error::bad_request("a page of no entries: ask for at least one"));
    }
    Ok(())
}

/// Refuses a watch of what no key can be.
pub fn check_watch(prefix: &str) -> Result<(), Error> {
    check_length("a prefix", prefix)
}

/// Refuses an address that is not `host:port`, or too long. Whether anybody is there is not asked.
pub fn check_address(address: &str) -> Result<(), Error> {
    if address.len() > ADDRESS_BYTES_MAX {
        return Err(Error::bad_request(format!(
            "an address of {} bytes: it may have {ADDRESS_BYTES_MAX}",
            address.len()
        )));
    }
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match address.rsplit_once(':') {
        Some((host, port)) if is_host(host) && is_port(port) => Ok(()),
        _ => Err(Error::bad_request(format!(
            "{address:?} is no address: it is host:port, with a port of 1 to 65535"
        ))),
    }
}

/// Whether it can stand before a port: a name or an IPv4 address, or an IPv6 address in brackets.
fn is_host(host: &str) -> bool {
    let inside = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    match inside {
        Some(inside) => inside.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.chars().all(name),
    }
}

/// Refuses what no state of the store would make right.
pub fn check_operation(operation: &Operation) -> Result<(), Error> {
    match operation {
        Operation::Commit(transaction) => check_transaction(transaction),
        Operation::NextSequence { name, count } => {
            check_key(name)?;
            if !(1..=SEQUENCE_BLOCK_MAX).contains(count) {
                return Err(Error::bad_request(format!(
                    "{count} numbers of a sequence at once: ask for 1 to {SEQUENCE_BLOCK_MAX}"
                )));
            }
            Ok(())
        }
        Operation::GrantLease { ttl } => {
            if !(LEASE_TTL_MIN..=LEASE_TTL_MAX).contains(ttl) {
                return Err(Error::bad_request(format!(
                    "a lease of {ttl:?}: it lasts {LEASE_TTL_MIN:?} to {LEASE_TTL_MAX:?}"
                )));
            }
            Ok(())
        }
        Operation::EndLease(_) => Ok(()),
    }
}

fn check_transaction(transaction: &Transaction) -> Result<(), Error> {
    let operations = transaction.conditions.len() + transaction.writes.len();
    if operations > TRANSACTION_OPERATIONS_MAX {
        return Err(Error::bad_request(format!(
            "a transaction of {operations} conditions and writes: it may have \
             {TRANSACTION_OPERATIONS_MAX}"
        )));
    }
    let mut bytes = operations * OPERATION_BYTES;
    for condition in &transaction.conditions {
        check_key(condition.key())?;
        bytes += condition.key().len();
    }
    let mut written = BTreeSet::new();
    for write in &transaction.writes {
        check_key(write.key())?;
        if !written.insert(write.key()) {
            return Err(Error::bad_request(format!(
                "a transaction writes the key {:?} twice: write each key once",
                write.key()
            )));
        }
        bytes += write.key().len();
        if let Write::Put { key, value, .. } = write {
            if value.len() > VALUE_BYTES_MAX {
                return Err(Error::bad_request(format!(
                    "the value of {key:?} has {} bytes: it may have {VALUE_BYTES_MAX}",
                    value.len()
                )));
            }
            bytes += value.len();
        }
    }
    if bytes > TRANSACTION_BYTES_MAX {
        return Err(Error::bad_request(format!(
            "a transaction of {bytes} bytes: it may have {TRANSACTION_BYTES_MAX}; split it"
        )));
    }
    Ok(())
}

fn check_length(what: &str, text: &str) -> Result<(), Error> {
    if text.len() > KEY_BYTES_MAX {
        return Err(Error::bad_request(format!(
            "{what} has {} bytes: it may have {KEY_BYTES_MAX}",
            text.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port() {
        for good in ["127.0.0.1:7000", "[::1]:1", "meta-1.example.com:65535", "m_1:80"] {
            assert_eq!(check_address(good), Ok(()), "{good}");
        }
        let long = format!("{}:80", "m".repeat(ADDRESS_BYTES_MAX));
        for bad in ["", "m", "m:", ":80", "m:0", "m:65536", "::1:80", "[m]:80", "m m:80", &long] {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }
}
