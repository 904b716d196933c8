//! REF-TC: what every packet's cost is told against (see `bpf/bench/reference.rs`).

use std::{net::Ipv4Addr, path::Path};

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, MapData,
        lpm_trie::{Key, LpmTrie},
    },
};

use super::{
    packets::{PEER, PORT, WORKLOAD, established},
    wrapper::{Packet, Run, Wrapper, program},
};

/// Addresses with an identity.
const IDENTITIES: u32 = 10_000;
const PEER_IDENTITY: u32 = 300;
const TCP: u32 = 6;
const TC_ACT_OK: u32 = 0;

/// The reference with its tables, behind a wrapper.
pub(in crate::bench) struct Reference {
    wrapper: Wrapper,
    /// Keeps the program and its maps.
    _ebpf: Ebpf,
    misses: Array<MapData, u64>,
}

impl std::fmt::Debug for Reference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reference").finish_non_exhaustive()
    }
}

impl Reference {
    /// Knows the flows of a workload from these source ports.
    pub(in crate::bench) fn load(object: &Path, first_port: u16, ports: u16) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load_file(object)?;
        program(&mut ebpf, "tc_reference")?.load().context("load tc_reference")?;
        let mut wrapper = Wrapper::load(object)?;
        wrapper.aim(program(&mut ebpf, "tc_reference")?.fd()?)?;
        let mut flows: HashMap<_, [u32; 4], [u32; 4]> = map(&mut ebpf, "REF_FLOWS")?;
        let wire = |address: Ipv4Addr| u32::from(address).to_be();
        for source_port in first_port..first_port + ports {
            let ports = u32::from(source_port.to_be()) | u32::from(PORT.to_be()) << 16;
            flows.insert([wire(WORKLOAD), wire(PEER), ports, TCP], [1, 0, 0, 0], 0)?;
        }
        let mut identities = LpmTrie::try_from(ebpf.take_map("REF_IDENTITIES").context("no such map")?)?;
        for number in 0..IDENTITIES {
            identities.insert(&Key::new(32, wire(neighbour(number))), PEER_IDENTITY + number, 0)?;
        }
        let mut policy: HashMap<_, [u32; 2], u32> = map(&mut ebpf, "REF_POLICY")?;
        for number in 0..IDENTITIES {
            policy.insert([PEER_IDENTITY + number, TCP << 16 | u32::from(PORT.to_be())], 1, 0)?;
        }
        let misses = Array::try_from(ebpf.take_map("REF_MISSES").context("no such map")?)?;
        Ok(Self { wrapper, _ebpf: ebpf, misses })
    }

    /// Runs established packets, every one of which must have passed.
    pub(in crate::bench) fn run(&mut self, first_port: u16, ports: u16, repeat: u32) -> Result<Run> {
        let packet = Packet { bytes: established(), first_port, ports, ifindex: 1, ingress_ifindex: 1 };
        let run = self.wrapper.run(&packet, repeat)?;
        let misses = self.misses.get(&0, 0)?;
        ensure!(
            run.verdict == TC_ACT_OK && misses == 0,
            "{misses} packets of the reference missed ({run:?})"
        );
        Ok(run)
    }
}

/// Addresses from the peer's on: as a fleet's are, in blocks.
pub(super) fn neighbour(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(PEER) + number)
}

fn map<K: aya::Pod, V: aya::Pod>(ebpf: &mut Ebpf, name: &str) -> Result<HashMap<MapData, K, V>> {
    Ok(HashMap::try_from(ebpf.take_map(name).with_context(|| format!("no map {name}"))?)?)
}
