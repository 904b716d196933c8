//! Packets that were right and are spoilt, and noise: what programs must not be led astray by. The same ones in each run. They are many, so
//! nothing is allocated for one.

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use crate::world::{self, WEB};

/// As many as tests send through each program; `WEFT_SPOILT_PACKETS` sets another number for all of them.
pub(crate) fn packets(usual: u32) -> u32 {
    std::env::var("WEFT_SPOILT_PACKETS")
        .map_or(usual, |text| text.parse().expect("WEFT_SPOILT_PACKETS is a number"))
}

const ETHERNET: usize = 14;
/// Of what is spoilt: as far as headers go, but for those that are quoted.
const CHANGED: usize = 80;
const CHANGES: usize = 3;
const CUT: usize = 120;
const NOISE: usize = 200;
const TYPES: [[u8; 2]; 5] = [[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00], [0x12, 0x34]];

/// Makes them.
pub(crate) struct Spoiler {
    seeds: Vec<Vec<u8>>,
    random: SmallRng,
    packet: Vec<u8>,
}

impl Spoiler {
    /// Of packets that are right.
    pub(crate) fn new(seeds: Vec<Vec<u8>>) -> Self {
        Self { seeds, random: SmallRng::seed_from_u64(1), packet: Vec::with_capacity(2048) }
    }

    /// The next one, as it may come by a wire.
    pub(crate) fn frame(&mut self) -> &[u8] {
        if self.random.random_ratio(1, 5) {
            self.noise();
        } else {
            self.spoil();
        }
        &self.packet
    }

    /// The next one that is long enough for a test run of tc's programs: those refuse an IP type without an IP header.
    pub(crate) fn packet(&mut self) -> &[u8] {
        while !is_long_enough(self.frame()) {}
        &self.packet
    }

    /// Right headers, with some bytes changed and some cut off.
    fn spoil(&mut self) {
        let Self { seeds, random, packet } = self;
        packet.clone_from(&seeds[random.random_range(0..seeds.len())]);
        for _ in 0..random.random_range(0..=CHANGES) {
            if let Some(byte) = packet.get_mut(random.random_range(0..CHANGED)) {
                *byte = random.random();
            }
        }
        if random.random_ratio(3, 10) {
            packet.truncate(random.random_range(ETHERNET..CUT));
        }
    }

    /// Nothing that is right behind a type that is looked at, from who may send.
    fn noise(&mut self) {
        let Self { random, packet, .. } = self;
        packet.resize(random.random_range(ETHERNET..NOISE), 0);
        random.fill(packet.as_mut_slice());
        packet[6..12].copy_from_slice(&world::mac(WEB));
        packet[12..14].copy_from_slice(&TYPES[random.random_range(0..TYPES.len())]);
    }
}

fn is_long_enough(packet: &[u8]) -> bool {
    match packet[12..14] {
        [0x08, 0x00] => packet.len() >= 34,
        [0x86, 0xdd] => packet.len() >= 54,
        _ => true,
    }
}
