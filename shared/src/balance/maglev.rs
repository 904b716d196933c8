//! Maglev hashing (Eisenbud et al.: "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, §3.4), with
//! weights. Frozen: all nodes of a fleet, of whatever version, have the same table for the same backends.
//!
//! Each backend has a permutation of the slots of its own, from `SipHash` 2-4 with 128 bits under the key [`KEY`] of its address
//! (16 bytes as it reads, IPv4 as a mapped address) and its port (two bytes, the higher first): with the hash's lower
//! and upper half, little endian, the permutation begins at *lower mod size* and goes on by *upper mod (size − 1) + 1*. In
//! rounds, and in the order in which they are given, backends take the next slot of their permutation that is free. In
//! each round a backend is credited its weight, and takes a slot for as much credit as the greatest weight is.

use siphasher::sip128::{Hasher128 as _, SipHasher24};
use std::hash::Hasher as _;

/// The key of the hash: no secret, it only sets this use apart.
pub const KEY: [u8; 16] = *b"weft maglev v1\0\0";

/// The largest table.
pub const SLOTS_MAX: u16 = 65_521;

/// One of those who share the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// As it reads.
    pub address: [u8; 16],
    /// 0: whatever the frontend's is.
    pub port: u16,
    /// 1 to [`WEIGHT_MAX`](crate::service::shares::WEIGHT_MAX).
    pub weight: u16,
}

/// Whether a table can have so many slots: a prime, so that every step leads through all of them.
pub fn is_size(slots: u32) -> bool {
    let divides = |divisor: &u32| slots.is_multiple_of(*divisor);
    (2..=SLOTS_MAX.into()).contains(&slots)
        && !(2..slots).take_while(|divisor| divisor * divisor <= slots).any(|divisor| divides(&divisor))
}

/// A backend's way through the slots.
struct Walk {
    next: u32,
    step: u32,
    weight: u32,
    credit: u32,
}

impl Walk {
    fn of(member: &Member, size: u32) -> Self {
        let mut hasher = SipHasher24::new_with_key(&KEY);
        hasher.write(&member.address);
        hasher.write(&member.port.to_be_bytes());
        let hash = hasher.finish128();
        let below = |value: u64, bound: u32| {
            u32::try_from(value % u64::from(bound)).expect("a remainder is less than its divisor")
        };
        Self {
            next: below(hash.h1, size),
            step: below(hash.h2, size - 1) + 1,
            weight: member.weight.into(),
            credit: 0,
        }
    }

    fn advance(&mut self, size: u32) {
        self.next += self.step;
        if self.next >= size {
            self.next -= size;
        }
    }
}

const FREE: u16 = u16::MAX;

/// The number of the member that has each slot. `size` is as [`is_size`] wants it, and no weight is 0; none where there are no
/// members. One that is alone has one slot.
pub fn slots(members: &[Member], size: u16) -> Vec<u16> {
    if members.len() < 2 {
        return vec![0; members.len()];
    }
    let count = u32::from(size);
    let heaviest = members.iter().map(|member| u32::from(member.weight)).max().unwrap_or(1).max(1);
    let mut walks: Vec<Walk> = members.iter().map(|member| Walk::of(member, count)).collect();
    let mut slots = vec![FREE; size.into()];
    let mut free = slots.len();
    loop {
        for (number, walk) in (0..FREE).zip(&mut walks) {
            walk.credit += walk.weight;
            if walk.credit < heaviest {
                continue;
            }
            walk.credit -= heaviest;
            while slots[walk.next as usize] != FREE {
                walk.advance(count);
            }
            slots[walk.next as usize] = number;
            free -= 1;
            if free == 0 {
                return slots;
            }
        }
    }
}

#[cfg(test)]
mod tests;
