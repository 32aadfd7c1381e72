//! The redb files of a member: how each is opened and made, and what all of them have.

use std::io;

use redb::{
    Builder, Database, ReadableDatabase, StorageBackend, TableDefinition, TableError,
    WriteTransaction,
};

use crate::directory::Files;
use crate::error::Error;

/// The format of the files; a higher one is refused.
pub(crate) const FORMAT: u32 = 3;

/// What a file says of itself, every value but the format's [sealed](seal).
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_FORMAT: &str = "format";

/// Opens a file that is there and whole; `check` walks all of it to see that it is.
pub(crate) fn open(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
    check: bool,
) -> Result<Database, Error> {
    let database = open_any(files, name, cache_bytes, check)?;
    let broken = |why: String| Error::not_a_metastore(format!("{name}: {why}"));
    let transaction = database.begin_read().map_err(|error| Error::database(name, error))?;
    let meta = match transaction.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => {
            return Err(broken("it is a redb file of something else".into()));
        }
        Err(error) => return Err(broken(error.to_string())),
    };
    let format = meta.get(META_FORMAT).map_err(|error| Error::database(name, error))?;
    let format = format.and_then(|format| format.value().try_into().ok());
    match format.map(u32::from_le_bytes) {
        Some(FORMAT) => {}
        Some(found) if found > FORMAT => return Err(Error::NewerFormat { found }),
        Some(found) => {
            return Err(broken(format!("it has the format {found} of an older program")));
        }
        None => return Err(broken("it does not say its format".into())),
    }
    drop((meta, transaction));
    Ok(database)
}

/// Makes a file anew, whatever was there under its name, and syncs it.
pub(crate) fn make(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
    fill: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<Database, Error> {
    files.remove(name).map_err(|error| Error::database(name, error))?;
    let database = open_any(files, name, cache_bytes, false)?;
    let make = || {
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        transaction.open_table(META)?.insert(META_FORMAT, FORMAT.to_le_bytes().as_slice())?;
        fill(&transaction)?;
        Ok(transaction.commit()?)
    };
    make().map_err(|error: redb::Error| Error::database(name, error))?;
    Ok(database)
}

fn open_any(
    files: &dyn Files,
    name: &str,
    cache_bytes: usize,
    check: bool,
) -> Result<Database, Error> {
    let backend = files.open(name).map_err(|error| Error::database(name, error))?;
    Builder::new()
        .set_cache_size(cache_bytes)
        .set_check_integrity_on_open(check)
        .create_with_backend(OpenFile(backend))
        .map_err(|error| Error::database(name, error))
}

/// Puts a checksum before a value, which is also over the key that it belongs to.
pub(crate) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let checksum = crc32c::crc32c_append(crc32c::crc32c(key), value);
    [checksum.to_le_bytes().as_slice(), value].concat()
}

/// Takes a value out of its seal; none if it is not as it was written, or not at its place.
pub(crate) fn unseal<'v>(key: &[u8], sealed: &'v [u8]) -> Option<&'v [u8]> {
    let (checksum, value) = sealed.split_first_chunk()?;
    let expected = crc32c::crc32c_append(crc32c::crc32c(key), value);
    (u32::from_le_bytes(*checksum) == expected).then_some(value)
}

/// A file as redb wants it. It is not locked: whoever has the [`Files`] is alone.
#[derive(Debug)]
struct OpenFile(Box<dyn StorageBackend>);

impl StorageBackend for OpenFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.0.close()
    }
}
