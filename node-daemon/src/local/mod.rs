//! The node-local service on a UNIX socket that only root may open.

mod attach;
mod judge;
mod monitor;
mod service;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use weft_proto::{FILE_DESCRIPTOR_SET, v1::node_local_service_server::NodeLocalServiceServer};

use crate::{
    daemon::Core,
    kernel::probe::Probe,
    limits::{KEEPALIVE_SECONDS, LOCAL_CONCURRENCY_MAX, LOCAL_MESSAGE_BYTES},
    observe::events::Events,
};

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("{}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("{}: another daemon listens here", path.display())]
    InUse { path: PathBuf },
    #[error("gRPC reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the local service stopped: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Opens the socket; one that nobody listens on any more is replaced.
pub fn listen(path: &Path) -> Result<UnixListener, LocalError> {
    let failed = |source| LocalError::Socket { path: path.to_owned(), source };
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(LocalError::InUse { path: path.to_owned() });
    }
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    // Made under another name with the right mode, so that nobody can connect in between.
    let beside = path.with_extension("new");
    drop(fs::remove_file(&beside));
    let listener = UnixListener::bind(&beside).map_err(failed)?;
    fs::set_permissions(&beside, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)?;
    Ok(listener)
}

/// Serves until cancelled. `probe`: the kernel's programs, where there are any.
pub async fn serve(
    core: Core,
    events: Events,
    probe: Option<Probe>,
    listener: UnixListener,
    cancel: CancellationToken,
) -> Result<(), LocalError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<NodeLocalServiceServer<service::Local>>().await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let local = NodeLocalServiceServer::new(service::Local::new(core, events, probe))
        .max_decoding_message_size(LOCAL_MESSAGE_BYTES)
        .max_encoding_message_size(LOCAL_MESSAGE_BYTES);
    Server::builder()
        .concurrency_limit_per_connection(LOCAL_CONCURRENCY_MAX)
        .http2_keepalive_interval(Some(Duration::from_secs(KEEPALIVE_SECONDS)))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        // What many clients of other languages still ask for.
        .add_service(reflection().build_v1alpha()?)
        .add_service(local)
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), cancel.cancelled_owned())
        .await?;
    Ok(())
}
