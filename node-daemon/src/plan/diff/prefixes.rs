//! Prefixes: those that policies name, and those that say which class an address inside the pools is in.

use std::collections::BTreeMap;

use weft_shared::layout::{Class, FIRST_LOCAL_IDENTITY, Peer, PrefixKey};

use super::{Planner, Sweep};
use crate::plan::{tables::Step, who::Who};

const FLEET: u32 = Class::Fleet as u32;
const UNMANAGED: u32 = Class::Unmanaged as u32;
const WORLD: u32 = Class::World as u32;

impl Planner<'_> {
    /// Prefixes that policies name. A new one first gets the rulebooks of the prefix around it, so that it changes no verdict
    /// until the policies change; one that goes has by now those of the prefix around it.
    pub(super) fn policy_prefixes(&mut self) {
        let of_policy = |prefixes: &BTreeMap<PrefixKey, Peer>| -> Vec<(PrefixKey, Peer)> {
            let local = prefixes.iter().filter(|(_, peer)| peer.identity >= FIRST_LOCAL_IDENTITY);
            local.map(|(key, peer)| (*key, *peer)).collect()
        };
        let mut wanted = of_policy(&self.desired.prefixes);
        wanted.sort_by_key(|(key, _)| u32::MAX - key.bits);
        let mut new = false;
        for (key, peer) in wanted {
            let had = self.before.prefixes.get(&key).copied();
            if had == Some(peer) {
                continue;
            }
            let around =
                had.unwrap_or_else(|| Who::new(&self.now, &self.lengths).within(key.address, key.bits));
            if around.identity >= FIRST_LOCAL_IDENTITY {
                self.copy_peer(around.identity, peer.identity);
            }
            self.push(Step::Prefix { prefix: key, peer: Some(peer) });
            self.changed_peer(around, peer);
            new = true;
        }
        if self.sweep == Sweep::Remove {
            for (key, peer) in of_policy(&self.before.prefixes) {
                if !self.desired.prefixes.contains_key(&key) {
                    self.push(Step::Prefix { prefix: key, peer: None });
                    let around = Who::new(&self.now, &self.lengths).within(key.address, key.bits);
                    self.changed_peer(peer, around);
                }
            }
        }
        self.bump();
        if new {
            // Whoever took an address for one of the prefix around it must not meet what the policies will say of that.
            self.push(Step::Settle);
        }
    }

    pub(super) fn pools(
        prefixes: &BTreeMap<PrefixKey, Peer>,
    ) -> impl Iterator<Item = (PrefixKey, Peer)> + '_ {
        prefixes
            .iter()
            .filter(|(_, peer)| peer.identity < FIRST_LOCAL_IDENTITY)
            .map(|(key, peer)| (*key, *peer))
    }

    /// Sets the pool prefixes that `which` picks by what the prefix is now and what it shall be.
    pub(super) fn set_pools_where(&mut self, which: impl Fn(Peer, Peer) -> bool) {
        // Longest first: the addresses inside change once.
        let mut wanted: Vec<_> = Self::pools(&self.desired.prefixes).collect();
        wanted.sort_by_key(|(key, _)| u32::MAX - key.bits);
        for (key, peer) in wanted {
            let had = self.now.prefixes.get(&key).copied();
            let was = had.unwrap_or_else(|| Who::new(&self.now, &self.lengths).within(key.address, key.bits));
            if had != Some(peer) && which(was, peer) {
                self.push(Step::Prefix { prefix: key, peer: Some(peer) });
                self.changed_peer(was, peer);
            }
        }
        self.bump();
    }

    pub(super) fn tighten_pools(&mut self) {
        // What is the world's again goes before the tables, as all prefixes of policies do.
        self.set_pools_where(|was, shall| {
            shall.class == WORLD || (was.class == FLEET && shall.class == UNMANAGED)
        });
    }

    pub(super) fn set_pools(&mut self) {
        self.set_pools_where(|was, shall| !(was.class == UNMANAGED && shall.class == FLEET));
    }

    pub(super) fn loosen_pools(&mut self) {
        self.set_pools_where(|_, _| true);
    }

    pub(super) fn remove_pools(&mut self) {
        let gone: Vec<_> = Self::pools(&self.before.prefixes)
            .filter(|(key, _)| !self.desired.prefixes.contains_key(key))
            .collect();
        for (key, peer) in gone {
            self.push(Step::Prefix { prefix: key, peer: None });
            let around = Who::new(&self.now, &self.lengths).within(key.address, key.bits);
            self.changed_peer(peer, around);
        }
        self.bump();
    }
}
