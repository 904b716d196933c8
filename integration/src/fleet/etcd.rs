//! etcd beside a fleet's controller, on its host.
use anyhow::{Context, Result};
use weft_test_etcd::{Cluster, Options};

use super::{Home, Host};
use crate::traffic::Namespace;

/// Members of one cluster on the loopback address of a host.
#[derive(Debug)]
pub struct Etcd {
    // Away only while something happens to it.
    cluster: Option<Cluster>,
    namespace: Namespace,
}

impl Etcd {
    /// Returns once all members serve.
    pub fn start(home: &Home, host: &Host, members: usize) -> Result<Self> {
        let options = Options { directory: Some(home.path().join("etcd")), ..Options::default() };
        let namespace = host.namespace()?;
        let cluster = namespace.within(move || Cluster::start(members, &options))?;
        Ok(Self { cluster: Some(cluster), namespace })
    }

    /// For `weft-controller --etcd`.
    pub fn urls(&self) -> Result<String> {
        Ok(self.cluster()?.urls().join(","))
    }

    /// Which member leads; waits until one does.
    pub fn leader(&mut self) -> Result<usize> {
        self.within(|cluster| cluster.leader())
    }

    /// SIGKILL, and gone when this returns.
    pub fn kill(&mut self, member: usize) -> Result<()> {
        self.within(move |cluster| cluster.member(member).kill())
    }

    /// Starts one again that was killed, with its data, and returns once it serves.
    pub fn restart(&mut self, member: usize) -> Result<()> {
        self.within(move |cluster| cluster.member(member).start())
    }

    /// SIGSTOP to all: connections stay, and nothing is answered.
    pub fn freeze(&self) -> Result<()> {
        self.cluster()?.members().iter().try_for_each(weft_test_etcd::Member::freeze)
    }

    pub fn thaw(&self) -> Result<()> {
        self.cluster()?.members().iter().try_for_each(weft_test_etcd::Member::thaw)
    }

    fn cluster(&self) -> Result<&Cluster> {
        self.cluster.as_ref().context("etcd is gone")
    }

    /// On a thread in the host's network: members are started and asked there.
    fn within<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Cluster) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let mut cluster = self.cluster.take().context("etcd is gone")?;
        let (cluster, result) = self.namespace.within(move || {
            let result = work(&mut cluster);
            Ok((cluster, result))
        })?;
        self.cluster = Some(cluster);
        result
    }
}
