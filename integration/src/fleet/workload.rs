//! A workload: a network namespace attached to a node as an endpoint.
use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Home, Node,
    system::{run, tool},
};
use crate::traffic::Namespace;

/// An attached endpoint, or a host of the world, as traffic sees it: a namespace and addresses.
#[derive(Debug, Clone)]
pub struct Party {
    pub name: String,
    pub namespace: Namespace,
    pub addresses: Vec<IpAddr>,
}

impl Party {
    /// Its address of a family, 4 or 6.
    pub fn address(&self, family: u8) -> Result<IpAddr> {
        let found = self.addresses.iter().find(|address| address.is_ipv4() == (family == 4));
        found.copied().with_context(|| format!("{} has no IPv{family} address", self.name))
    }
}

/// Makes a namespace for a workload, with nothing in it.
pub(super) fn namespace(home: &Home, name: &str) -> Result<Namespace> {
    let netns = home.netns(name);
    run(tool("ip").args(["netns", "add", &netns]))?;
    Namespace::open(&netns)
}

/// Attaches it with `weft endpoint add`, and returns when it is ready.
pub(super) fn attach(
    node: &Node,
    name: &str,
    namespace: Namespace,
    labels: &[(&str, &str)],
) -> Result<Party> {
    let path = format!("/run/netns/{}", namespace.name());
    add(node, name, namespace, &["--netns", &path], labels)
}

/// The same, where `target` says what is attached.
pub(super) fn add(
    node: &Node,
    name: &str,
    namespace: Namespace,
    target: &[&str],
    labels: &[(&str, &str)],
) -> Result<Party> {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut arguments = vec!["endpoint", "add", name, "--wait", "--output", "json"];
    arguments.extend(target);
    for label in &labels {
        arguments.extend(["--label", label]);
    }
    let answer = node.weft(&arguments)?.success()?.json()?;
    let addresses = addresses(&answer["endpoint"]["addresses"])?;
    Ok(Party { name: name.to_owned(), namespace, addresses })
}

fn addresses(list: &Value) -> Result<Vec<IpAddr>> {
    let texts = list.as_array().with_context(|| format!("no addresses: {list}"))?;
    texts.iter().map(|text| Ok(text.as_str().unwrap_or_default().parse()?)).collect()
}
