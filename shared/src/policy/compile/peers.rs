//! Which rules speak of whom.

use std::collections::BTreeMap;

use super::{
    super::model::{Class, Entity, NodePeer, Peer},
    Surroundings,
    rulebook::Rules,
};

/// Whose rules are looked for, beside those of the classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    Everybody,
    /// An identity of endpoints or nodes alone.
    One(u32),
    Nobody,
}

/// Places of rules, ascending.
type Places = Vec<u32>;

/// Who is named by which rules of a subject in one direction.
#[derive(Debug, Default)]
pub(super) struct Peers {
    classes: [Places; Class::ALL.len()],
    /// Identity → its class, and the rules that name it. Rules that name its class are not among them.
    pub(super) named: BTreeMap<u32, (Class, Places)>,
}

impl Peers {
    pub(super) fn of(rules: &Rules<'_>, surroundings: Surroundings<'_>, whom: Whom) -> Self {
        let mut peers = Self::default();
        for (place, rule) in (0..).zip(rules.list()) {
            match &rule.peers {
                None => peers.add_classes(Entity::All, place),
                Some(named) => named.iter().for_each(|peer| peers.add(peer, place, surroundings, whom)),
            }
        }
        peers
    }

    /// The rules that speak of a class as a whole.
    pub(super) fn of_class(&self, class: Class) -> &[u32] {
        &self.classes[index(class)]
    }

    fn add(&mut self, peer: &NodePeer, place: u32, surroundings: Surroundings<'_>, whom: Whom) {
        match peer {
            Peer::Endpoints(set) => self.add_members(set, Class::Fleet, place, surroundings, whom),
            Peer::Nodes(set) => {
                self.add_members(set, Class::RemoteNode, place, surroundings, whom);
                let members = surroundings.sets.get(set);
                if surroundings.own_node.is_some_and(|own| members.is_some_and(|set| set.contains(&own))) {
                    self.add_class(Class::Host, place);
                }
            }
            // Prefixes are neither endpoints nor nodes.
            Peer::Cidr { .. } | Peer::CidrSet(_) if whom != Whom::Everybody => {}
            Peer::Cidr { cidr, except } => {
                self.add_all(surroundings.prefixes.within(cidr, except), Class::World, place);
            }
            Peer::CidrSet(names) => {
                for cidr in names.iter().filter_map(|name| surroundings.cidr_sets.get(name)).flatten() {
                    self.add_all(surroundings.prefixes.within(cidr, &[]), Class::World, place);
                }
            }
            Peer::Entity(entity) => self.add_classes(*entity, place),
        }
    }

    fn add_members(
        &mut self,
        set: &str,
        class: Class,
        place: u32,
        surroundings: Surroundings<'_>,
        whom: Whom,
    ) {
        let Some(members) = surroundings.sets.get(set) else { return };
        match whom {
            Whom::Everybody => self.add_all(members.iter().copied(), class, place),
            Whom::One(identity) => self.add_all(members.get(&identity).copied().into_iter(), class, place),
            Whom::Nobody => {}
        }
    }

    fn add_classes(&mut self, entity: Entity, place: u32) {
        for class in Class::ALL.into_iter().filter(|class| entity.contains(*class)) {
            self.add_class(class, place);
        }
    }

    fn add_class(&mut self, class: Class, place: u32) {
        push(&mut self.classes[index(class)], place);
    }

    fn add_all(&mut self, identities: impl Iterator<Item = u32>, class: Class, place: u32) {
        for identity in identities {
            push(&mut self.named.entry(identity).or_insert_with(|| (class, Places::new())).1, place);
        }
    }
}

/// Rules are walked in their order, so that a place that is there already is the last.
fn push(places: &mut Places, place: u32) {
    if places.last() != Some(&place) {
        places.push(place);
    }
}

fn index(class: Class) -> usize {
    class as usize - 1
}
