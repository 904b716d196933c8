//! Which store a controller serves, and opening it.
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    fleet_config, limits,
    relocation::{self, Moved, RelocationError, Step},
    store::{Embedded, Etcd, EtcdConfig, Store, StoreError},
};

/// The embedded store's file in the data directory.
const STORE_FILE: &str = "weft.redb";

#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// For one controller: a file in this directory, which is made if it is not there.
    Embedded { directory: PathBuf },
    /// For several.
    Etcd(EtcdConfig),
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot make the data directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("there is no embedded store in {}", .0.display())]
    NoStore(PathBuf),
    #[error(transparent)]
    Relocation(#[from] RelocationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(crate) async fn open(config: &StoreConfig) -> Result<Arc<dyn Store>, OpenError> {
    match config {
        StoreConfig::Embedded { directory } => Ok(Arc::new(open_embedded(directory).await?)),
        StoreConfig::Etcd(config) => Ok(Arc::new(open_etcd(config).await?)),
    }
}

async fn open_embedded(directory: &Path) -> Result<Embedded, OpenError> {
    std::fs::create_dir_all(directory)
        .map_err(|source| OpenError::Directory { path: directory.to_owned(), source })?;
    let store = Embedded::open(directory.join(STORE_FILE)).await?;
    relocation::refuse_unfinished(&store).await?;
    Ok(store)
}

async fn open_etcd(config: &EtcdConfig) -> Result<Etcd, OpenError> {
    loop {
        let store = Etcd::connect(config, limits::ETCD_START).await?;
        relocation::refuse_unfinished(&store).await?;
        fleet_config::initialise(&store).await?;
        // A store that has an id, and into which nobody is moving data now, will never be moved into again: what was read of
        // it at first holds if it still does.
        relocation::refuse_unfinished(&store).await?;
        if store.is_current().await? {
            return Ok(store);
        }
    }
}

/// Moves the embedded store's data in this directory to etcd. Returns the revision that it has there, too.
pub async fn move_to_etcd(
    directory: &Path,
    config: &EtcdConfig,
    progress: impl FnMut(Step, usize),
) -> Result<(Moved, u64), OpenError> {
    let path = directory.join(STORE_FILE);
    if !path.exists() {
        return Err(OpenError::NoStore(directory.to_owned()));
    }
    let source = Embedded::open(path).await?;
    let target = Etcd::connect(config, limits::ETCD_START).await?;
    let moved = relocation::relocate(&source, &target, &config.members.join(","), progress).await?;
    // Anew, since its revisions are counted from another base now.
    let revision = Etcd::connect(config, limits::ETCD_START).await?.revision().await?;
    Ok((moved, revision))
}
