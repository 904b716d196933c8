//! Which store a controller serves, and opening it.
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    fleet_config,
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
    Ok(Embedded::open(directory.join(STORE_FILE)).await?)
}

async fn open_etcd(config: &EtcdConfig) -> Result<Etcd, StoreError> {
    loop {
        let store = Etcd::connect(config).await?;
        // Once it is initialised nobody moves data into it, and what was read of it before holds if it still does now.
        fleet_config::initialise(&store).await?;
        if store.is_current().await? {
            return Ok(store);
        }
    }
}
