//! How etcd is reached.
use std::{fmt, net::IpAddr};

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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdConfigError {
    #[error("{0:?} is not the URL of an etcd member: expected http://HOST:PORT or https://HOST:PORT")]
    Url(String),
    #[error("{0} is https, and the certificate authority of etcd is not given")]
    NoAuthority(String),
    #[error("{0} is http, and certificates for etcd are given: expected https://")]
    NotTls(String),
    #[error(
        "{0} is neither https nor a loopback address: whoever is on the way to it controls the fleet. Use https, or say \
         --insecure if the network itself is trusted"
    )]
    InClear(String),
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
    /// `insecure`: the network may be trusted.
    pub fn check(&self, insecure: bool) -> Result<(), EtcdConfigError> {
        for member in &self.members {
            let wrong = || EtcdConfigError::Url(member.clone());
            let url: http::Uri = member.parse().map_err(|_| wrong())?;
            let host =
                url.host().filter(|_| url.port().is_some() && url.path() == "/" && url.query().is_none());
            let host = host.ok_or_else(wrong)?;
            match url.scheme_str() {
                Some("https") if self.tls.is_none() => {
                    return Err(EtcdConfigError::NoAuthority(member.clone()));
                }
                Some("http") if self.tls.is_some() => return Err(EtcdConfigError::NotTls(member.clone())),
                Some("http") if !insecure && !is_loopback(host) => {
                    return Err(EtcdConfigError::InClear(member.clone()));
                }
                Some("http" | "https") => {}
                _ => return Err(wrong()),
            }
        }
        Ok(())
    }

    pub(super) fn lacks_identity(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.identity.is_none())
    }

    pub(super) fn options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new()
            .with_connect_timeout(limits::ETCD_CONNECT)
            .with_keep_alive(limits::ETCD_KEEPALIVE, limits::ETCD_KEEPALIVE_TIMEOUT)
            .with_keep_alive_while_idle(false)
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

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str, tls: bool, insecure: bool) -> Result<(), EtcdConfigError> {
        let tls = tls.then(|| EtcdTls { ca: Vec::new(), identity: None });
        EtcdConfig { members: vec![url.to_owned()], tls, user: None }.check(insecure)
    }

    #[test]
    fn what_is_no_url_of_a_member_is_refused() {
        for url in [
            "",
            "etcd",
            "127.0.0.1:2379",
            "http://127.0.0.1",
            "ftp://127.0.0.1:2379",
            "http://127.0.0.1:2379/v3",
        ] {
            assert_eq!(check(url, false, true), Err(EtcdConfigError::Url(url.to_owned())));
        }
        assert_eq!(check("http://localhost:2379/", false, false), Ok(()));
    }

    #[test]
    fn a_store_is_not_reached_in_clear_over_a_network_that_is_not_said_to_be_trusted() {
        assert_eq!(check("http://[::1]:2379", false, false), Ok(()));
        for url in ["http://192.0.2.1:2379", "http://etcd.example:2379"] {
            assert_eq!(check(url, false, false), Err(EtcdConfigError::InClear(url.to_owned())));
            assert_eq!(check(url, false, true), Ok(()));
        }
    }

    #[test]
    fn certificates_and_https_go_together() {
        assert_eq!(check("https://etcd.example:2379", true, false), Ok(()));
        assert!(matches!(
            check("https://etcd.example:2379", false, true),
            Err(EtcdConfigError::NoAuthority(_))
        ));
        assert!(matches!(check("http://127.0.0.1:2379", true, true), Err(EtcdConfigError::NotTls(_))));
    }

    #[test]
    fn secrets_are_not_printed() {
        let tls =
            Some(EtcdTls { ca: b"ca".to_vec(), identity: Some((b"cert".to_vec(), b"hush-key".to_vec())) });
        let user = Some(EtcdUser { name: "weft".to_owned(), password: "hush-word".to_owned() });
        let printed = format!("{:?}", EtcdConfig { members: Vec::new(), tls, user });
        assert!(printed.contains("weft") && !printed.contains("hush"), "{printed}");
        assert!(!printed.contains(&format!("{:?}", b"hush-key")), "{printed}");
    }
}
