//! One peer at a time: what the whole table would say of it, without the others.

use std::sync::Arc;

use super::{
    Compiler, Kind, NodePolicy, Rulebook, Surroundings, merged,
    peers::{Peers, Whom},
};
use crate::{layout::FIRST_LOCAL_IDENTITY, policy::model::Direction};

/// The policies that select a subject, ready to say of any single peer what [`table`](super::table) would. It takes as long
/// as there are rules, however many members their sets have.
pub struct PeerCompiler<'a> {
    surroundings: Surroundings<'a>,
    directions: [Compiler<'a>; Direction::ALL.len()],
}

impl<'a> PeerCompiler<'a> {
    /// The policies in any order.
    pub fn new(kind: Kind, policies: &[&'a NodePolicy], surroundings: Surroundings<'a>) -> Self {
        let directions = Direction::ALL
            .map(|direction| Compiler::new(kind, policies, surroundings, direction, Whom::Nobody));
        Self { surroundings, directions }
    }

    /// The peer's own rulebook; `None`: it has its class's. The identity is one of endpoints or nodes: prefixes have theirs
    /// by [`table`](super::table) alone.
    pub fn rulebook(&mut self, direction: Direction, identity: u32) -> Option<Arc<Rulebook>> {
        debug_assert!(identity < FIRST_LOCAL_IDENTITY, "{identity} is a prefix's");
        let compiler = self.directions.iter_mut().find(|compiler| compiler.direction == direction)?;
        let named = Peers::of(&compiler.rules, self.surroundings, Whom::One(identity)).named;
        let (class, own) = named.get(&identity)?;
        let book = compiler.book(*class, merged(own, compiler.peers.of_class(*class)));
        (book != compiler.of_class(*class)).then_some(book)
    }
}
