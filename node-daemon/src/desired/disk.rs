//! State on disk: a file that is either whole or refused. A write makes a new file beside it, syncs it, renames it over
//! the old one and syncs the directory, so that a crash leaves the one or the other.
//!
//! Layout, little endian: magic (8 bytes), version (u32), CRC-32 of the payload (u32), length of the payload in bytes
//! (u64), payload. The file ends there.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use prost::Message;
use weft_proto::v1;

use super::{
    Batch, Desired, Key,
    journal::{self, Base, Journal},
};
use crate::limits::DESIRED_FILE_BYTES_MAX;

const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;

/// What a file holds; its first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Desired,
    Attachments,
}

impl Content {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Desired => *b"WEFTDSRD",
            Self::Attachments => *b"WEFTATCH",
        }
    }

    const fn file_name(self) -> &'static str {
        match self {
            Self::Desired => "desired",
            Self::Attachments => "attachments",
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: the state file is broken at byte {offset}: {what}. Nothing was changed in the kernel. To move the file \
         aside and start without it: weft-noded --forget-desired",
        path.display()
    )]
    Broken { path: PathBuf, offset: u64, what: String },
}

/// A directory with one file for each [`Content`].
#[derive(Clone, Debug)]
pub struct Disk {
    directory: PathBuf,
}

impl Disk {
    /// Makes the directory where it is missing.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, DiskError> {
        let directory = directory.into();
        fs::create_dir_all(&directory).map_err(|source| DiskError::Io { path: directory.clone(), source })?;
        Ok(Self { directory })
    }

    pub fn path(&self, content: Content) -> PathBuf {
        self.directory.join(content.file_name())
    }

    /// The payload; `None`: there is no file.
    pub fn load(&self, content: Content) -> Result<Option<Vec<u8>>, DiskError> {
        let path = self.path(content);
        let failed = |source| DiskError::Io { path: path.clone(), source };
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > DESIRED_FILE_BYTES_MAX => {
                return Err(broken(&path, DESIRED_FILE_BYTES_MAX, "it is larger than a state file can be"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        }
        let bytes = fs::read(&path).map_err(failed)?;
        unframe(&path, content, &bytes).map(|payload| Some(payload.to_vec()))
    }

    /// When it returns, the payload survives a crash.
    pub fn store(&self, content: Content, payload: &[u8]) -> Result<(), DiskError> {
        let path = self.path(content);
        let beside = path.with_extension("new");
        let write = || {
            let mut file = File::create(&beside)?;
            file.write_all(&header(content, payload))?;
            file.write_all(payload)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(|source| {
            // Half a file would only take room on a disk that may have none left.
            drop(fs::remove_file(&beside));
            DiskError::Io { path: path.clone(), source }
        })
    }

    /// Where what changed since the file of the desired state was written is kept.
    pub fn journal_path(&self) -> PathBuf {
        self.directory.join("desired-journal")
    }

    /// Moves a file aside, that of the desired state with its journal; `None`: there was none.
    pub fn move_aside(&self, content: Content, suffix: &str) -> Result<Option<PathBuf>, DiskError> {
        let aside = Self::rename_aside(self.path(content), suffix)?;
        if content == Content::Desired {
            Self::rename_aside(self.journal_path(), suffix)?;
        }
        Ok(aside)
    }

    fn rename_aside(path: PathBuf, suffix: &str) -> Result<Option<PathBuf>, DiskError> {
        let aside = path.with_extension(suffix);
        match fs::rename(&path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DiskError::Io { path, source }),
        }
    }

    /// The desired state; a fresh one where there is no file.
    pub fn load_desired(&self) -> Result<Desired, DiskError> {
        let mut desired = Desired::default();
        let Some(payload) = self.load(Content::Desired)? else { return Ok(desired) };
        apply(&mut desired, &payload)
            .map_err(|what| broken(&self.path(Content::Desired), HEADER_BYTES as u64, what))?;
        journal::replay(&self.journal_path(), Base::of(&payload), &mut desired)?;
        Ok(desired)
    }

    /// Writes all of it. What changes from here on may go to the journal.
    pub fn store_desired(&self, desired: &Desired) -> Result<Journal, DiskError> {
        let payload = encode(desired, desired.to_upserts().collect(), Vec::new());
        self.store(Content::Desired, &payload)?;
        let (path, journal) = (self.journal_path(), Journal::new(self, Base::of(&payload)));
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DiskError::Io { path, source }),
            _ => Ok(journal),
        }
    }
}

pub(super) fn broken(path: &Path, offset: u64, what: impl Into<String>) -> DiskError {
    DiskError::Broken { path: path.to_owned(), offset, what: what.into() }
}

fn header(content: Content, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&content.magic());
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    header[16..].copy_from_slice(&(payload.len() as u64).to_le_bytes());
    header
}

fn unframe<'a>(path: &Path, content: Content, bytes: &'a [u8]) -> Result<&'a [u8], DiskError> {
    let at = |offset: usize, what: &str| broken(path, offset as u64, what);
    let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(at(bytes.len(), &format!("it ends here, inside its header of {HEADER_BYTES} bytes")));
    };
    let [m0, m1, m2, m3, m4, m5, m6, m7, v0, v1, v2, v3, c0, c1, c2, c3, length @ ..] = *header;
    if [m0, m1, m2, m3, m4, m5, m6, m7] != content.magic() {
        return Err(at(0, "it does not begin as a state file of this kind does"));
    }
    let version = u32::from_le_bytes([v0, v1, v2, v3]);
    if version != VERSION {
        return Err(at(8, &format!("version {version} is not {VERSION}, the one this daemon reads")));
    }
    let length = u64::from_le_bytes(length);
    if payload.len() as u64 != length {
        let what = format!("it ends here, but its header says {length} bytes of payload");
        return Err(at(bytes.len(), &what));
    }
    if crc32fast::hash(payload) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(at(HEADER_BYTES, "the checksum of what follows is wrong"));
    }
    Ok(payload)
}

/// The payload is the store's id and revisions (`Have`), then everything held (`Delta`), each with its length in front.
fn encode(desired: &Desired, upserts: Vec<v1::Upsert>, removes: Vec<v1::Remove>) -> Vec<u8> {
    let have =
        v1::Have { store_id: desired.store_id.clone(), revision: desired.realised, ..v1::Have::default() };
    let delta = v1::Delta {
        revision: desired.revision,
        identities_through: desired.identities_through,
        upserts,
        removes,
        in_sync: desired.complete,
        ..v1::Delta::default()
    };
    let mut payload = have.encode_length_delimited_to_vec();
    payload.extend(delta.encode_length_delimited_to_vec());
    payload
}

/// Of these resources alone: what they are now, or that they are gone.
pub(super) fn encode_change(desired: &Desired, keys: &BTreeSet<Key>) -> Vec<u8> {
    let gone = keys.iter().filter(|key| !desired.held.contains_key(key));
    let removes = gone.map(|key| v1::Remove { r#type: key.kind.into(), name: key.name.clone() });
    encode(desired, desired.upserts_of(keys).collect(), removes.collect())
}

/// What is left of a payload's state is as it was, where the payload does not speak of it.
pub(super) fn apply(desired: &mut Desired, mut payload: &[u8]) -> Result<(), String> {
    let have = v1::Have::decode_length_delimited(&mut payload).map_err(|error| error.to_string())?;
    let delta = v1::Delta::decode_length_delimited(&mut payload).map_err(|error| error.to_string())?;
    desired.store_id = have.store_id;
    desired.apply(Batch {
        revision: delta.revision,
        identities_through: delta.identities_through,
        upserts: delta.upserts,
        removes: delta.removes,
        in_sync: delta.in_sync,
        ..Batch::default()
    });
    // A resource that an earlier version understood and this one does not is no reason to run without it.
    if let Some(rejected) = desired.rejected().next() {
        return Err(format!(
            "{} \"{}\": {}",
            rejected.r#type().as_str_name(),
            rejected.name,
            rejected.reason
        ));
    }
    desired.realised = have.revision;
    Ok(())
}

#[cfg(test)]
mod tests;
