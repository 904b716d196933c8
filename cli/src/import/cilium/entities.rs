//! Entities: classes of parties. Those of Cilium that are not here are made of parts that Weft does not have.
use weft_proto::v1::{self, Action, Entity, LabelOperator, LabelRequirement};

use crate::import::{
    blocks::entity,
    view::{Item, View},
};

/// The class of a `reserved:` label, where the requirement says no more than that.
pub(super) fn reserved(name: &str, requirement: &LabelRequirement) -> Option<Entity> {
    let bare = match requirement.operator() {
        LabelOperator::Exists => true,
        LabelOperator::In => requirement.values == [""],
        _ => false,
    };
    match name {
        _ if !bare => None,
        "host" => Some(Entity::Host),
        "remote-node" => Some(Entity::RemoteNode),
        "world" => Some(Entity::World),
        "all" => Some(Entity::All),
        _ => None,
    }
}

/// The peers of a class that an action is for. An address inside the pools that no endpoint has is of the world for
/// Cilium: a deny takes it along, an allow does not open for what may yet become an endpoint.
pub(super) fn peers(class: Entity, action: Action) -> Vec<v1::Peer> {
    let mut peers = vec![entity(class)];
    if class == Entity::World && action == Action::Deny {
        peers.push(entity(Entity::Unmanaged));
    }
    peers
}

pub(super) fn read<'a>(view: &mut View<'a>, item: Item<'a>, action: Action) -> Vec<v1::Peer> {
    let word = view.text(item);
    let of_cidr = |cidr: &str| vec![v1::Peer { cidr: Some(cidr.to_owned()), ..v1::Peer::default() }];
    match word.as_str() {
        "all" => peers(Entity::All, action),
        "host" => peers(Entity::Host, action),
        "remote-node" => peers(Entity::RemoteNode, action),
        "world" => peers(Entity::World, action),
        "cluster" => {
            [Entity::Fleet, Entity::Unmanaged, Entity::Host, Entity::RemoteNode].map(entity).to_vec()
        }
        // The classes have no family, so a deny could not take along what it must.
        "world-ipv4" if action == Action::Allow => of_cidr("0.0.0.0/0"),
        "world-ipv6" if action == Action::Allow => of_cidr("::/0"),
        _ => {
            let message = format!("the entity `{word}` has no equivalent");
            let help = "import knows world, host, remote-node, cluster and all; of rules that allow, also world-ipv4 \
                        and world-ipv6";
            view.refuse(item, message, help);
            Vec::new()
        }
    }
}
