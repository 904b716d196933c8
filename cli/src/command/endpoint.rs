//! `weft endpoint`: workloads attached to this node, through the daemon's own socket.
use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use weft_proto::v1::{self, attach_request::Target, object::Kind as K};

use super::Global;
use crate::{
    arguments::{Timeout, parse_label},
    client::{self, NodeLocal, request, timed_out, with_deadline},
    failure::Failure,
    limits::DEADLINE_GRACE,
    manifest,
    output::{Format, note, objects, pretty, print},
};

/// Attach workloads to this node, list and detach them
#[derive(Debug, clap::Args)]
pub(crate) struct Endpoint {
    /// The socket of this node's daemon
    #[arg(
        long,
        env = "WEFT_SOCKET",
        value_name = "PATH",
        default_value = "/run/weft/noded.sock",
        global = true
    )]
    socket: PathBuf,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    Add(Box<Add>),
    /// List the endpoints of this node
    ///
    /// JSON: {items: [ENDPOINT…]}, each in the form of `weft get endpoint NAME`.
    List,
    /// Show one endpoint of this node
    Show {
        name: String,
    },
    /// Detach an endpoint: its addresses are free again
    ///
    /// An interface that was given by --interface stays, and is set down: without policy nothing should pass.
    Rm {
        name: String,
    },
}

/// Attach a network namespace or an interface as an endpoint, and wait until its policy is realised
///
/// JSON: {endpoint: ENDPOINT, tookMilliseconds}.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("target").required(true).args(["netns", "interface"])))]
#[command(group(clap::ArgGroup::new("who").required(true).args(["name", "named"])))]
struct Add {
    /// Unique in the whole fleet
    name: Option<String>,
    /// The same as a flag
    #[arg(long = "name", value_name = "NAME")]
    named: Option<String>,
    /// A label that policy can select by; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// The workload's network namespace: a path, or a name below /run/netns
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<String>,
    /// An existing interface of the host: a tap, or the host's side of a veth
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// The interface's name inside the namespace [default: eth0]
    #[arg(long, value_name = "NAME", requires = "netns")]
    interface_name: Option<String>,
    /// With --interface: the workload's MAC
    #[arg(long, requires = "interface")]
    mac: Option<String>,
    /// An address out of the node's prefixes, one of a family; without, the daemon gives them
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<String>,
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
    /// Answer once it is attached, in state init
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
    /// Wait until it is ready (the default): exit 3 if that takes too long
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    #[command(flatten)]
    limit: Timeout,
}

impl Endpoint {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut node = client::node_local(&self.socket).await?;
        let format = global.output;
        match self.action {
            Action::Add(add) => add.run(&mut node, format).await,
            Action::List => list(&mut node, format).await,
            Action::Show { name } => show(&mut node, format, &name).await,
            Action::Rm { name } => remove(&mut node, format, name).await,
        }
    }
}

impl Add {
    async fn run(self, node: &mut NodeLocal, format: Format) -> Result<(), Failure> {
        let timeout = self.limit.timeout;
        let message = self.message()?;
        let name = message.name.clone();
        // The daemon keeps the deadline and says what it waited for; the grace is for one that hangs.
        let attach = node.client.attach(with_deadline(message, timeout));
        let answer = match tokio::time::timeout(timeout + DEADLINE_GRACE, attach).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) if !timed_out(&status) => return Err(node.remote.failure(&status)),
            late => {
                let said = late.ok().and_then(Result::err).map(|status| status.message().to_owned());
                return Err(not_ready(node, &name, timeout, said).await);
            }
        };
        let took = answer.took.and_then(|took| Duration::try_from(took).ok()).unwrap_or_default();
        let milliseconds = took.as_secs_f64() * 1e3;
        let object = object(answer.endpoint.unwrap_or_default());
        let text =
            || format!("{}\nattached in {milliseconds:.1} ms\n", objects(std::slice::from_ref(&object)));
        let value = || json!({"endpoint": manifest::object(&object), "tookMilliseconds": milliseconds});
        format.write(text, value)
    }

    fn message(self) -> Result<v1::AttachRequest, Failure> {
        let mut labels = std::collections::BTreeMap::new();
        for (key, value) in self.labels {
            if labels.insert(key.clone(), value).is_some() {
                return Err(Failure::Usage(format!("--label {key}: given twice")));
            }
        }
        let target = self.netns.map(Target::Netns).or(self.interface.map(Target::Interface));
        Ok(v1::AttachRequest {
            name: self.name.or(self.named).unwrap_or_default(),
            labels,
            target,
            addresses: self.addresses,
            interface_name: self.interface_name.unwrap_or_default(),
            container_id: self.container_id.unwrap_or_default(),
            limits: None,
            wait: !self.no_wait,
            mac: self.mac.unwrap_or_default(),
        })
    }
}

/// It stays attached: say how far it came.
async fn not_ready(node: &mut NodeLocal, name: &str, timeout: Duration, said: Option<String>) -> Failure {
    let said = said.filter(|said| !said.is_empty() && !said.contains("Timeout expired"));
    let known = if said.is_none() { endpoints(node).await.unwrap_or_default() } else { Vec::new() };
    let known = known.into_iter().find(|endpoint| named(endpoint) == name);
    let reason =
        said.or_else(|| known?.status.map(|status| status.reason)).filter(|reason| !reason.is_empty());
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    Failure::TimedOut(format!("endpoint {name} is not ready after {timeout:?}{reason}"))
}

async fn endpoints(node: &mut NodeLocal) -> Result<Vec<v1::Endpoint>, Failure> {
    let answer = node.client.list_endpoints(request(v1::ListEndpointsRequest {})).await;
    let mut endpoints = answer.map_err(|status| node.remote.failure(&status))?.into_inner().endpoints;
    endpoints.sort_by(|a, b| named(a).cmp(named(b)));
    Ok(endpoints)
}

async fn list(node: &mut NodeLocal, format: Format) -> Result<(), Failure> {
    let found: Vec<_> = endpoints(node).await?.into_iter().map(object).collect();
    if found.is_empty() {
        note("no endpoints on this node");
    }
    let values = || found.iter().map(manifest::object).collect::<Vec<Value>>();
    match format {
        Format::Table => print(&objects(&found)),
        Format::Json => print(&pretty(&json!({"items": values()}))),
        Format::Yaml => print(&manifest::documents(&values())),
    }
}

async fn show(node: &mut NodeLocal, format: Format, name: &str) -> Result<(), Failure> {
    let found = endpoints(node).await?.into_iter().find(|endpoint| named(endpoint) == name);
    let found = found.ok_or_else(|| Failure::Failed(format!("no endpoint `{name}` on this node")))?;
    let object = object(found);
    format.write(|| manifest::document(&manifest::object(&object)), || manifest::object(&object))
}

async fn remove(node: &mut NodeLocal, format: Format, name: String) -> Result<(), Failure> {
    let answer = node.client.detach(request(v1::DetachRequest { name: name.clone() })).await;
    answer.map_err(|status| node.remote.failure(&status))?;
    format.write(|| format!("endpoint {name} detached\n"), || json!({"name": name}))
}

fn named(endpoint: &v1::Endpoint) -> &str {
    endpoint.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

fn object(endpoint: v1::Endpoint) -> v1::Object {
    v1::Object { kind: Some(K::Endpoint(endpoint)) }
}
