//! What changed since the file of the desired state was written. A delta of a few bytes is not worth a file of megabytes:
//! it is one record behind the others here, and the file is written anew when the journal has outgrown it.
//!
//! Layout, little endian: magic (8 bytes), version (u32), checksum and length of the payload in the file that it goes with
//! (u32, u64), checksum of these 24 bytes (u32); then records: length of the payload (u32), checksum of these four bytes
//! (u32), payload, checksum of the payload (u32). A payload is like the file's: what its resources are after the change,
//! or that they are gone. All checksums are CRC-32.
//!
//! A record counts when all of it is there: before that, nobody was told that it is kept. So a crash leaves the last
//! record or a part of it, and a part at the end is no error; anything else that is not as it was written is one. A journal
//! that goes with another file is older than the file, which then has all that it says.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{
    Batch, Desired, Key,
    disk::{self, Content, Disk, DiskError, broken},
    known_type,
};
use crate::limits::{DESIRED_FILE_BYTES_MAX, JOURNAL_BYTES_MIN};

const MAGIC: [u8; 8] = *b"WEFTJRNL";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 28;
/// Before a record's payload.
const LENGTH_BYTES: usize = 8;
/// Behind it.
const CHECKSUM_BYTES: usize = 4;

/// Names of what a batch speaks of. What became of them, the desired state says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change(BTreeSet<Key>);

impl Change {
    /// `None`: all may be another.
    pub fn of(batch: &Batch) -> Option<Self> {
        if batch.listed.is_some() {
            return None;
        }
        let upserts = batch.upserts.iter().map(|upsert| (upsert.r#type, &upsert.name));
        let removes = batch.removes.iter().map(|remove| (remove.r#type, &remove.name));
        // Of an unknown type nothing is held.
        let keys = upserts.chain(removes).filter_map(|(kind, name)| {
            let kind = known_type(kind)?;
            Some(Key { kind, name: name.clone() })
        });
        Some(Self(keys.collect()))
    }
}

/// The file that a journal goes with, by what its header says of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Base {
    checksum: u32,
    length: u64,
}

impl Base {
    pub(super) fn of(payload: &[u8]) -> Self {
        Self { checksum: crc32fast::hash(payload), length: payload.len() as u64 }
    }
}

/// Where records are written. After an error it must not be used again: half a record may be at its end.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    base: Base,
    /// The file that it goes with, in case somebody takes it away.
    base_path: PathBuf,
    base_file: Option<FileId>,
    /// `None`: nothing was written yet, and what may be there is another's.
    file: Option<File>,
    bytes: u64,
}

/// Device and inode.
type FileId = (u64, u64);

fn id(metadata: &fs::Metadata) -> FileId {
    (metadata.dev(), metadata.ino())
}

fn id_at(path: &Path) -> Option<FileId> {
    Some(id(&fs::metadata(path).ok()?))
}

impl Journal {
    pub(super) fn new(disk: &Disk, base: Base) -> Self {
        let base_path = disk.path(Content::Desired);
        let base_file = id_at(&base_path);
        Self { path: disk.journal_path(), base, base_path, base_file, file: None, bytes: 0 }
    }

    /// When it returns `true`, the change survives a crash. `desired` is what it led to. `false`: it is time to write the
    /// file anew; nothing was written.
    pub fn append(&mut self, desired: &Desired, change: &Change) -> Result<bool, DiskError> {
        let payload = disk::encode_change(desired, &change.0);
        let room = self.base.length.max(JOURNAL_BYTES_MIN).saturating_sub(self.bytes);
        let Some(length) = u32::try_from(payload.len()).ok().filter(|length| u64::from(*length) <= room)
        else {
            return Ok(false);
        };
        if !self.is_in_place() {
            return Ok(false);
        }
        let written = self.write(&record(length, &payload));
        written.map_err(|source| DiskError::Io { path: self.path.clone(), source })?;
        Ok(true)
    }

    /// What is written into a file that has no name any more, nobody finds after a crash.
    fn is_in_place(&self) -> bool {
        let own = self.file.as_ref().map(|file| file.metadata().ok().as_ref().map(id));
        self.base_file.is_some()
            && self.base_file == id_at(&self.base_path)
            && own.is_none_or(|own| own.is_some() && own == id_at(&self.path))
    }

    fn write(&mut self, record: &[u8]) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            file.write_all(record)?;
            file.sync_data()?;
        } else {
            let mut file = File::create(&self.path)?;
            file.write_all(&header(self.base))?;
            file.write_all(record)?;
            file.sync_all()?;
            if let Some(directory) = self.path.parent() {
                File::open(directory)?.sync_all()?;
            }
            self.file = Some(file);
            self.bytes = HEADER_BYTES as u64;
        }
        self.bytes += record.len() as u64;
        Ok(())
    }
}

/// Applies what the journal says to what its file says.
pub(super) fn replay(path: &Path, base: Base, desired: &mut Desired) -> Result<(), DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        // A file and one record more.
        Ok(metadata) if metadata.len() > 2 * DESIRED_FILE_BYTES_MAX => {
            return Err(broken(path, 2 * DESIRED_FILE_BYTES_MAX, "it is larger than a journal can be"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    }
    let bytes = fs::read(path).map_err(failed)?;
    let Some(mut rest) = records(path, base, &bytes)? else { return Ok(()) };
    loop {
        let place = (bytes.len() - rest.len()) as u64;
        let Some((payload, behind)) = first_record(path, place, rest)? else { return Ok(()) };
        disk::apply(desired, payload).map_err(|what| broken(path, place + LENGTH_BYTES as u64, what))?;
        rest = behind;
    }
}

/// What is behind the header; `None`: nothing, or nothing that concerns the file.
fn records<'a>(path: &Path, base: Base, bytes: &'a [u8]) -> Result<Option<&'a [u8]>, DiskError> {
    let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else { return Ok(None) };
    if is_unwritten(bytes) {
        return Ok(None);
    }
    let (said, checksum) = header.split_at(HEADER_BYTES - CHECKSUM_BYTES);
    if crc32fast::hash(said).to_le_bytes() != checksum {
        return Err(broken(path, 0, "the checksum of its header is wrong"));
    }
    if !said.starts_with(&MAGIC) {
        return Err(broken(path, 0, "it does not begin as a journal does"));
    }
    if said[8..12] != VERSION.to_le_bytes() {
        return Err(broken(path, 8, format!("its version is not {VERSION}, the one this daemon reads")));
    }
    Ok((header == self::header(base).as_slice()).then_some(rest))
}

/// A record's payload, and what is behind the record.
type Parted<'a> = (&'a [u8], &'a [u8]);

/// Of the first record; `None`: there is no whole one.
fn first_record<'a>(path: &Path, place: u64, bytes: &'a [u8]) -> Result<Option<Parted<'a>>, DiskError> {
    let Some((head, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
    if is_unwritten(bytes) {
        return Ok(None);
    }
    let [l0, l1, l2, l3, checksum @ ..] = *head;
    let length = [l0, l1, l2, l3];
    if crc32fast::hash(&length).to_le_bytes() != checksum {
        return Err(broken(path, place, "the checksum of a record's length is wrong"));
    }
    let length = u32::from_le_bytes(length) as usize;
    let whole = rest.split_at_checked(length).and_then(|(payload, rest)| {
        let (checksum, rest) = rest.split_first_chunk::<CHECKSUM_BYTES>()?;
        Some((payload, *checksum, rest))
    });
    let Some((payload, checksum, rest)) = whole else { return Ok(None) };
    if crc32fast::hash(payload).to_le_bytes() != checksum {
        // The last one's end may be room that the file system gave before it had written what belongs there.
        if rest.is_empty() && is_unwritten(&checksum) {
            return Ok(None);
        }
        return Err(broken(path, place + LENGTH_BYTES as u64, "the checksum of a record is wrong"));
    }
    Ok(Some((payload, rest)))
}

/// Room that a file system gave before a crash and wrote nothing to.
fn is_unwritten(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn header(base: Base) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&base.checksum.to_le_bytes());
    header[16..24].copy_from_slice(&base.length.to_le_bytes());
    let checksum = crc32fast::hash(&header[..24]);
    header[24..].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn record(length: u32, payload: &[u8]) -> Vec<u8> {
    let length = length.to_le_bytes();
    let mut record = Vec::with_capacity(LENGTH_BYTES + payload.len() + CHECKSUM_BYTES);
    record.extend(length);
    record.extend(crc32fast::hash(&length).to_le_bytes());
    record.extend(payload);
    record.extend(crc32fast::hash(payload).to_le_bytes());
    record
}

#[cfg(test)]
mod tests;
