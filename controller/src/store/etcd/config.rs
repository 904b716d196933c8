//! How etcd is reached.
use std::fmt;

use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};

use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// URLs of members, `http://` or `https://`. Not all have to be named; those that are named have to be of one cluster.
    pub members: Vec<String>,
    pub tls: Option<EtcdTls>,
    pub user: Option<EtcdUser>,
}

/// All in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// The authority of the members' certificates.
    pub ca: Vec<u8>,
    /// Our own certificate and its key, where members want one.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUser {
    pub name: String,
    pub password: String,
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EtcdTls")
            .field("with_identity", &self.identity.is_some())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for EtcdUser {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EtcdUser").field("name", &self.name).finish_non_exhaustive()
    }
}

impl EtcdConfig {
    pub(super) fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(limits::ETCD_CONNECT)
            .with_keep_alive(limits::ETCD_KEEPALIVE, limits::ETCD_KEEPALIVE_TIMEOUT)
            .with_keep_alive_while_idle(true)
            // A member that has lost the others says so instead of waiting for them.
            .with_require_leader(true);
        if let Some(tls) = &self.tls {
            let mut with = TlsOptions::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((certificate, key)) = &tls.identity {
                with = with.identity(Identity::from_pem(certificate, key));
            }
            options = options.with_tls(with);
        }
        if let Some(user) = &self.user {
            options = options.with_user(&user.name, &user.password);
        }
        options
    }
}
