//! `weft import`: policies of Kubernetes and Cilium → manifests.
use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use serde_json::{Value, json};
use weft_proto::v1;
use weft_shared::policy::model::IdentityLabels;

use super::{Global, get};
use crate::{
    arguments::parse_prefix,
    client::{self, request},
    failure::Failure,
    import::{self, Imported, Namespaces, Network, Options},
    limits::APPLY_OBJECTS_MAX,
    manifest::{self, Problem},
    output::{Format, count, note, pretty, print},
};

const AFTER_HELP: &str = "\
Reads NetworkPolicy (networking.k8s.io/v1), ClusterNetworkPolicy, AdminNetworkPolicy and BaselineAdminNetworkPolicy
(policy.networking.k8s.io), CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2, without L7).
What cannot be carried over is refused with its line, and then nothing is printed. docs/import.md says what becomes of
what.

  kubectl get networkpolicies -A -o yaml | weft import -f - --pools 10.200.0.0/16 > policies.yaml
  weft apply -f policies.yaml --dry-run";

/// Turn policies of Kubernetes and Cilium into policies of Weft
///
/// Prints manifests for `weft apply`. JSON: {items: [POLICY…]}, each in the form of its manifest; with --output-dir
/// {files: [PATH…]}.
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Import {
    /// A file, a directory (its *.yaml and *.yml), or - for standard input; may be repeated
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    filenames: Vec<PathBuf>,
    /// The label of an endpoint that says in which namespace it is; KEY of the namespace's own labels is LABEL.KEY
    #[arg(long, value_name = "KEY", default_value = "namespace", value_parser = parse_key)]
    namespace_label: String,
    /// The namespace of policies that do not name theirs
    #[arg(long, value_name = "NAME", default_value = "default", value_parser = parse_name)]
    default_namespace: String,
    /// Every Namespace of the cluster: selectors of namespaces become the names of those that they select now
    #[arg(long, value_name = "FILE", num_args = 1..)]
    namespaces: Vec<PathBuf>,
    /// The fleet's endpoint pools, for blocks of addresses; asked of the controller without it
    #[arg(long, value_name = "CIDR", num_args = 1.., value_delimiter = ',', value_parser = parse_prefix)]
    pools: Vec<IpNet>,
    /// Prefixes that hold the addresses of every node, for blocks of addresses
    #[arg(long, value_name = "CIDR", num_args = 1.., value_delimiter = ',', value_parser = parse_prefix, requires = "pools")]
    nodes: Vec<IpNet>,
    /// Write a file for each policy into this directory, which is made if need be; no file is overwritten
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

fn parse_key(text: &str) -> Result<String, String> {
    let labels = [(text.to_owned(), String::new())].into();
    weft_shared::policy::parse::labels(&labels, "")
        .map_err(|errors| errors.into_iter().map(|error| error.message).collect::<Vec<_>>().join("; "))?;
    if IdentityLabels::VOLATILE.contains(&text) {
        return Err(format!("the label {text} makes no identity, so no selector sees it"));
    }
    Ok(text.to_owned())
}

fn parse_name(text: &str) -> Result<String, String> {
    weft_shared::policy::parse::name(text, "").map_err(|error| error.message)?;
    Ok(text.to_owned())
}

impl Import {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let sources = || manifest::sources(&self.filenames).map_err(Failure::from);
        let namespaces = if self.namespaces.is_empty() {
            None
        } else {
            Some(Namespaces::read(manifest::sources(&self.namespaces)?).map_err(Failure::Import)?)
        };
        let nodes = (!self.nodes.is_empty()).then(|| self.nodes.clone());
        let network = (!self.pools.is_empty()).then(|| Network { pools: self.pools.clone(), nodes });
        let mut options = Options {
            namespace_label: self.namespace_label.clone(),
            default_namespace: self.default_namespace.clone(),
            namespaces,
            network,
        };
        // Standard input can be read once only.
        let sources = sources()?;
        let mut imported = import::import(sources.clone(), &options);
        if let Some(place) = imported.needs_network.take() {
            match ask(&global.server).await {
                Ok(network) => {
                    options.network = Some(network);
                    imported = import::import(sources, &options);
                }
                Err(failure) => {
                    let message = format!("the fleet's pools must be known for this: {failure}");
                    let problem = Problem::new(place, message).label("may cover endpoints");
                    imported
                        .problems
                        .push(problem.help("name them with --pools, or the controller with --server"));
                }
            }
        }
        let Imported { policies, problems, .. } = imported;
        if !problems.is_empty() {
            return Err(Failure::Import(problems));
        }
        self.write(global.output, &policies)
    }

    fn write(&self, format: Format, policies: &[v1::Policy]) -> Result<(), Failure> {
        let value = |policy: &v1::Policy| {
            let kind = Some(v1::object::Kind::Policy(policy.clone()));
            manifest::object(&v1::Object { kind })
        };
        let values: Vec<Value> = policies.iter().map(value).collect();
        if policies.is_empty() {
            note("nothing to import: the files hold no policies");
        }
        if policies.len() > APPLY_OBJECTS_MAX {
            let many = count(policies.len(), "policy", "policies");
            note(&format!(
                "{many}: `weft apply` takes at most {APPLY_OBJECTS_MAX} objects at once, so apply them in parts (--output-dir)"
            ));
        }
        let Some(directory) = &self.output_dir else {
            return match format {
                Format::Table | Format::Yaml => print(&manifest::documents(&values)),
                Format::Json => print(&pretty(&json!({ "items": values }))),
            };
        };
        let files = write_files(directory, &values)?;
        let names: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
        format.write(|| names.join("\n") + "\n", || json!({ "files": names }))
    }
}

/// One file a policy, all or none as far as can be known before.
fn write_files(directory: &Path, values: &[Value]) -> Result<Vec<PathBuf>, Failure> {
    let failed = |path: &Path, error| Failure::Failed(format!("cannot write {}: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let files: Vec<_> = values.iter().map(|value| directory.join(name(value) + ".yaml")).collect();
    if let Some(there) = files.iter().find(|file| file.exists()) {
        return Err(Failure::Failed(format!("{} is there already: nothing was written", there.display())));
    }
    for (path, value) in files.iter().zip(values) {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        file.and_then(|mut file| file.write_all(manifest::document(value).as_bytes()))
            .map_err(|error| failed(path, error))?;
    }
    Ok(files)
}

/// The pools, and where the nodes are, as the controller knows them.
async fn ask(server: &str) -> Result<Network, Failure> {
    let mut operator = client::operator(server).await?;
    let message = v1::GetRequest { kind: v1::Kind::FleetConfig.into(), name: "fleet".to_owned() };
    let answer = operator.client.get(request(message)).await;
    let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
    let Some(v1::Object { kind: Some(v1::object::Kind::FleetConfig(config)) }) = answer.object else {
        return Err(Failure::Failed("the server answered without the fleet's configuration".to_owned()));
    };
    let pools = config.pools.iter().map(|pool| pool.cidr.parse::<IpNet>());
    let pools = pools.collect::<Result<Vec<_>, _>>();
    let pools =
        pools.map_err(|_| Failure::Failed("the server answered with a pool that is no prefix".to_owned()))?;
    let request = v1::ListRequest { kind: v1::Kind::Node.into(), ..v1::ListRequest::default() };
    let (objects, _) = get::list(&mut operator, request).await?;
    let addresses = objects.iter().flat_map(|object| match &object.kind {
        Some(v1::object::Kind::Node(node)) => node.addresses.as_slice(),
        _ => &[],
    });
    let nodes = addresses.filter_map(|text| text.parse::<std::net::IpAddr>().ok()).map(IpNet::from).collect();
    Ok(Network { pools, nodes: Some(nodes) })
}
