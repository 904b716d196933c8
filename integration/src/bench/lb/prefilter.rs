//! The prefilter, with lists of several lengths, on packets of listed and of other sources.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use weft_noded::{
    kernel::{
        Datapath as _,
        object::{Object, Options},
    },
    plan::diff::Sweep,
    prefilter::{self, LIMITS, Prefilter, lists::Lists},
};
use weft_shared::layout::Config;

use super::{
    TURNS,
    wrapper::{Turns, Wrapper},
};
use crate::bench::datapath::packets::{established, established6};

pub(super) const PREFIXES: [u32; 3] = [1, 10_000, 200_000];
const LIST: &str = "list";
const DROP: u32 = 1;
const PASS: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sources {
    Listed,
    Others,
}

impl Sources {
    pub(super) const ALL: [Self; 2] = [Self::Listed, Self::Others];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Listed => "hit",
            Self::Others => "miss",
        }
    }
}

/// Of the packets and the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Family {
    V4,
    /// Four bytes of the address, behind the first two, are as those of IPv4 are; all others are the same.
    V6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As figures are named.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "xdp.prefilter",
            Self::V6 => "xdp.prefilter6",
        }
    }

    /// Single addresses become networks of 48 bits.
    fn listed(self, net: Ipv4Net) -> Result<IpNet> {
        Ok(match self {
            Self::V4 => net.into(),
            Self::V6 => Ipv6Net::new(wide(net.network()), WORD_AT_BIT + net.prefix_len())?.into(),
        })
    }

    fn turns(self, words: Vec<u32>) -> Turns {
        match self {
            Self::V4 => Turns::Addresses(words),
            Self::V6 => Turns::Words6(words),
        }
    }

    fn packet(self) -> Vec<u8> {
        match self {
            Self::V4 => established(),
            Self::V6 => established6(wide(Ipv4Addr::UNSPECIFIED)),
        }
    }
}

/// Where those bytes are in an address of IPv6.
const WORD_AT_BIT: u8 = 16;

fn wide(word: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = word.octets();
    Ipv6Addr::new(0x2001, u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]), 0, 0, 0, 0, 0)
}

/// Programs with lists, a wrapper before each.
#[derive(Debug)]
pub(super) struct Prefilters {
    by_prefixes: BTreeMap<(Family, u32), Loaded>,
}

#[derive(Debug)]
struct Loaded {
    object: Object,
    family: Family,
    wrappers: BTreeMap<Sources, Wrapper>,
    slot: u32,
}

impl Prefilters {
    pub(super) fn load(object: &Path) -> Result<Self> {
        let each = Family::ALL.into_iter().flat_map(|family| PREFIXES.map(|prefixes| (family, prefixes)));
        let loaded = each.map(|each| Ok((each, Loaded::load(object, each)?)));
        Ok(Self { by_prefixes: loaded.collect::<Result<_>>()? })
    }

    /// Nanoseconds of a packet, every one of which was dropped, or none.
    pub(super) fn run(&mut self, of: (Family, u32), sources: Sources, repeat: u32) -> Result<f64> {
        let loaded = self.by_prefixes.get_mut(&of).context("no such list")?;
        let before = loaded.dropped()?;
        let wrapper = loaded.wrappers.get_mut(&sources).context("no such sources")?;
        let (verdict, nanoseconds) = wrapper.run(&loaded.family.packet(), repeat)?;
        let dropped = loaded.dropped()? - before;
        let expected = match sources {
            Sources::Listed => (DROP, u64::from(repeat)),
            Sources::Others => (PASS, 0),
        };
        ensure!(
            (verdict, dropped) == expected,
            "{sources:?}: verdict {verdict}, {dropped} dropped of {repeat}"
        );
        Ok(nanoseconds)
    }
}

impl Loaded {
    fn load(bench: &Path, (family, prefixes): (Family, u32)) -> Result<Self> {
        let options = Options { directory: None, config: Config::DEFAULT, flows_max: Some(1024) };
        let mut object = Object::load(&options)?;
        let mut random = Random(7);
        let listed: BTreeSet<Ipv4Net> = list(&mut random, prefixes);
        let nets = listed.iter().map(|net| family.listed(*net)).collect::<Result<_>>()?;
        let prefilter = Prefilter { prefixes: nets, senders: Vec::new() };
        let desired = [(LIST.to_owned(), Arc::new(prefilter))].into();
        let plan = prefilter::plan(&desired, &[], &Lists::default(), Sweep::Remove, LIMITS);
        object.write_prefilters(&plan.steps)?;
        let slot = *plan.slots.get(LIST).context("the list does not fit")?;
        let mut wrappers = BTreeMap::new();
        for sources in Sources::ALL {
            let mut wrapper = Wrapper::load(bench)?;
            wrapper.aim(object.uplink_program()?.fd()?)?;
            let turns = family.turns(addresses(&mut random, &listed, sources));
            wrapper.prepare(&family.packet(), &turns)?;
            wrappers.insert(sources, wrapper);
        }
        Ok(Self { object, family, wrappers, slot })
    }

    fn dropped(&mut self) -> Result<u64> {
        let counters = self.object.prefiltered(&[self.slot])?;
        Ok(counters.get(&self.slot).map_or(0, |counter| counter.packets))
    }
}

/// As public lists are: nine of ten are single addresses, the others networks, all over the address space.
fn list(random: &mut Random, prefixes: u32) -> BTreeSet<Ipv4Net> {
    let mut listed = BTreeSet::new();
    while listed.len() < prefixes as usize {
        let word = random.next();
        let bits = if word.is_multiple_of(10) { 20 + (word >> 8) % 9 } else { 32 };
        let net = u8::try_from(bits).ok().and_then(|bits| Ipv4Net::new(random.address(), bits).ok());
        listed.extend(net.map(|net| net.trunc()));
    }
    listed
}

/// Sources that are listed, or are not; as they stand in the packet.
fn addresses(random: &mut Random, listed: &BTreeSet<Ipv4Net>, sources: Sources) -> Vec<u32> {
    let nets: Vec<Ipv4Net> = listed.iter().copied().collect();
    let mut found = Vec::new();
    while found.len() < usize::from(TURNS) {
        let address = match sources {
            Sources::Listed => nets[random.next() as usize % nets.len()].network(),
            Sources::Others => random.address(),
        };
        let around = |bits: u8| Ipv4Net::new(address, bits).is_ok_and(|net| listed.contains(&net.trunc()));
        if (1..=32).any(around) == (sources == Sources::Listed) {
            found.push(u32::from(address).to_be());
        }
    }
    found
}

/// The same each time (xorshift32, Marsaglia 2003).
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn address(&mut self) -> Ipv4Addr {
        Ipv4Addr::from(self.next())
    }
}
