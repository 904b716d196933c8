//! The flags that say which store it is and how etcd is reached, and what they mean. Passwords are never flags: every user of a machine sees those.
use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use weft_controller::store::{EtcdConfig, EtcdTls, EtcdUser};

const PASSWORD_VARIABLE: &str = "WEFT_ETCD_PASSWORD";

/// The flags do not say what is needed.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

#[derive(Debug, clap::Args)]
pub(crate) struct StoreFlags {
    /// Where the embedded store is kept (weft.redb)
    #[arg(long, env = "WEFT_DATA_DIR", value_name = "DIR", default_value = "/var/lib/weft/controller")]
    pub(crate) data_dir: PathBuf,

    #[command(flatten)]
    pub(crate) etcd: EtcdFlags,

    /// Serve on an address that is not loopback, and use etcd on one without TLS: with neither encryption nor
    /// authentication, whoever reaches it controls the fleet
    #[arg(long, env = "WEFT_INSECURE")]
    pub(crate) insecure: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EtcdFlags {
    /// Keep the state in etcd and not in the data directory: members of one cluster, http://HOST:PORT or https://HOST:PORT
    #[arg(long, env = "WEFT_ETCD", value_name = "URL", value_delimiter = ',')]
    etcd: Vec<String>,

    /// The certificate authority of etcd's members (PEM)
    #[arg(long, env = "WEFT_ETCD_CA", value_name = "FILE")]
    etcd_ca: Option<PathBuf>,

    /// The controller's own certificate for etcd (PEM)
    #[arg(long, env = "WEFT_ETCD_CERT", value_name = "FILE", requires = "etcd_key", requires = "etcd_ca")]
    etcd_cert: Option<PathBuf>,

    /// The key of that certificate (PEM)
    #[arg(long, env = "WEFT_ETCD_KEY", value_name = "FILE", requires = "etcd_cert")]
    etcd_key: Option<PathBuf>,

    /// The user of etcd. The password is in the file of --etcd-password-file or in the variable `WEFT_ETCD_PASSWORD`
    #[arg(long, env = "WEFT_ETCD_USER", value_name = "NAME")]
    etcd_user: Option<String>,

    /// The password of that user
    #[arg(long, env = "WEFT_ETCD_PASSWORD_FILE", value_name = "FILE", requires = "etcd_user")]
    etcd_password_file: Option<PathBuf>,
}

impl EtcdFlags {
    /// `None`: no etcd.
    pub(crate) fn config(&self) -> Result<Option<EtcdConfig>> {
        // An empty variable says no more than none.
        let members: Vec<String> = self.etcd.iter().filter(|url| !url.is_empty()).cloned().collect();
        if members.is_empty() {
            return Ok(None);
        }
        Ok(Some(EtcdConfig { members, tls: self.tls()?, user: self.user()? }))
    }

    fn tls(&self) -> Result<Option<EtcdTls>> {
        let Some(ca) = &self.etcd_ca else { return Ok(None) };
        let identity = match (&self.etcd_cert, &self.etcd_key) {
            (Some(certificate), Some(key)) => Some((read(certificate)?, read(key)?)),
            _ => None,
        };
        Ok(Some(EtcdTls { ca: read(ca)?, identity }))
    }

    fn user(&self) -> Result<Option<EtcdUser>> {
        let Some(name) = self.etcd_user.clone() else { return Ok(None) };
        let password = match &self.etcd_password_file {
            Some(path) => {
                let text = String::from_utf8(read(path)?);
                text.with_context(|| format!("{} is not text", path.display()))?.trim_end().to_owned()
            }
            None => env::var(PASSWORD_VARIABLE).unwrap_or_default(),
        };
        if password.is_empty() {
            let expected = format!("--etcd-password-file or the variable {PASSWORD_VARIABLE}");
            return Err(Usage(format!("no password for etcd's user {name}: expected {expected}")).into());
        }
        Ok(Some(EtcdUser { name, password }))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
