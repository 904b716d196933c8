//! `weft node`: the fleet's nodes, for people who look after them.
mod local;
mod remove;
mod service;
mod view;

use serde_json::json;
use weft_proto::v1::{self, object::Kind as K};

use super::{Global, get};
use crate::{
    client::{self, Operator, request},
    failure::Failure,
    manifest,
    output::{endpoints, note},
};
use remove::Remove;
use view::View;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Node {
    /// List all nodes, and how far each has come
    ///
    /// JSON: {revision, items: [NODE…]}, NODE: {name, connected, controller, version, features, capabilities, bootId,
    /// addresses, endpointCidrs, identity, labels, endpoints, endpointsReady, realisedRevision, behind, lastSeen,
    /// lastApplyMilliseconds, rejections, expiresInMilliseconds}; behind: revisions that are not realised yet;
    /// expiresInMilliseconds: until a node that stays away is removed, where the fleet has nodeExpirySeconds.
    List,
    /// Show one node, with its endpoints and what it has rejected
    ///
    /// JSON: {revision, node: NODE, endpoints: [ENDPOINT…]}, NODE as of `weft node list`, ENDPOINT in the form of
    /// `weft get endpoint NAME`.
    Show {
        name: String,
    },
    Rm(Remove),
    Status(local::Status),
    Map(local::Map),
    Service(service::Service),
}

impl Node {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::List => list(global).await,
            Self::Show { name } => show(global, name).await,
            Self::Rm(remove) => remove.run(global).await,
            Self::Status(status) => status.run(global).await,
            Self::Map(map) => map.run(global).await,
            Self::Service(service) => service.run(global).await,
        }
    }
}

async fn list(global: &Global) -> Result<(), Failure> {
    let mut operator = client::operator(&global.server).await?;
    let kind = v1::Kind::Node.into();
    let (objects, _) =
        get::list(&mut operator, v1::ListRequest { kind, ..v1::ListRequest::default() }).await?;
    let fleet = fleet(&mut operator).await?;
    let nodes: Vec<View> = objects.into_iter().filter_map(|object| View::new(object, &fleet)).collect();
    if nodes.is_empty() {
        note("no nodes found");
    }
    let value =
        || json!({"revision": fleet.revision, "items": nodes.iter().map(View::value).collect::<Vec<_>>()});
    global.output.write(|| view::table(&nodes), value)
}

async fn show(global: &Global, name: String) -> Result<(), Failure> {
    let mut operator = client::operator(&global.server).await?;
    let message = v1::GetRequest { kind: v1::Kind::Node.into(), name: name.clone() };
    let answer = operator.client.get(request(message)).await;
    let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
    let of_node =
        v1::ListRequest { kind: v1::Kind::Endpoint.into(), node: name, ..v1::ListRequest::default() };
    let (attached, _) = get::list(&mut operator, of_node).await?;
    let fleet = fleet(&mut operator).await?;
    let node = answer.object.and_then(|object| View::new(object, &fleet));
    let node = node.ok_or_else(|| Failure::Failed("the server answered without the node".to_owned()))?;
    let text = || {
        let mut text = node.text();
        let shown = attached.iter().filter_map(|object| match &object.kind {
            Some(K::Endpoint(endpoint)) => Some(endpoint),
            _ => None,
        });
        if !attached.is_empty() {
            text.push('\n');
            text.push_str(&endpoints(shown));
        }
        text + &node.rejections()
    };
    let value = || {
        let attached: Vec<_> = attached.iter().map(manifest::object).collect();
        json!({"revision": fleet.revision, "node": node.value(), "endpoints": attached})
    };
    global.output.write(text, value)
}

async fn fleet(operator: &mut Operator) -> Result<v1::FleetStatusResponse, Failure> {
    let answer = operator.client.fleet_status(request(v1::FleetStatusRequest {})).await;
    Ok(answer.map_err(|status| operator.remote.failure(&status))?.into_inner())
}
