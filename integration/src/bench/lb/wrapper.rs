//! Runs an XDP program many times on the same packet, and REF-XDP: see `bpf/bench/xdp.rs`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, HashMap, MapData, ProgramArray},
    programs::{ProgramFd, TestRun as _, TestRunOptions, Xdp, XdpMode},
};

use super::TURNS;
use crate::bench::datapath::{
    packets::{PEER, PORT, WORKLOAD, established},
    wrapper::put_beginning,
};

pub(super) const TX: u32 = 3;
/// `XdpTemplate` of the kernel program, word by word.
type Template = [u64; 10];

/// What takes turns in the packet, as it stands there.
#[derive(Clone, Debug)]
pub(super) enum Turns {
    Ports(Vec<u16>),
    Addresses(Vec<u32>),
    /// Bits 16 to 48 of addresses of IPv6.
    Words6(Vec<u32>),
}

/// How many flows take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flows {
    One,
    /// Caches miss, as they do on a node with work.
    Many,
}

impl Flows {
    pub(super) const ALL: [Self; 2] = [Self::One, Self::Many];

    pub(super) const fn number(self) -> u16 {
        match self {
            Self::One => 1,
            Self::Many => TURNS,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::One => "1_flows",
            Self::Many => "10k_flows",
        }
    }

    /// Source ports, as they stand in the packet.
    pub(super) fn ports(self) -> Vec<u16> {
        (0..self.number()).map(|turn| (2000 + turn).to_be()).collect()
    }

    /// The reference's figure.
    pub(super) fn reference(self) -> String {
        format!("ref.xdp.{}", self.name())
    }
}

/// The wrapper, aimed at one program.
pub(super) struct Wrapper {
    /// On which packets come in; `None`: on none of their own.
    device: Option<u32>,
    ebpf: Ebpf,
    template: Array<MapData, Template>,
    turns: Array<MapData, u32>,
    targets: ProgramArray<MapData>,
}

impl std::fmt::Debug for Wrapper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Wrapper").finish_non_exhaustive()
    }
}

impl Wrapper {
    pub(super) fn load(object: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            // The references' tables are of another instance.
            .map_max_entries("REF_FLOWS", 64)
            .map_max_entries("REF_CONNECTIONS", 64)
            .load_file(object)
            .with_context(|| format!("load {}", object.display()))?;
        program(&mut ebpf, "xdp_wrapper")?.load().context("load xdp_wrapper")?;
        let template = Array::try_from(ebpf.take_map("XDP_TEMPLATE").context("no map XDP_TEMPLATE")?)?;
        let turns = Array::try_from(ebpf.take_map("XDP_TURNS").context("no map XDP_TURNS")?)?;
        let targets = ProgramArray::try_from(ebpf.take_map("XDP_TARGET").context("no map XDP_TARGET")?)?;
        Ok(Self { device: None, ebpf, template, turns, targets })
    }

    /// The same for packets that come in on a device, on which some program must be.
    pub(super) fn on_device(self, ifindex: u32) -> Self {
        Self { device: Some(ifindex), ..self }
    }

    /// Puts the wrapper on a device, where it does nothing.
    pub(super) fn attach(mut self, ifindex: u32, mode: XdpMode) -> Result<()> {
        program(&mut self.ebpf, "xdp_wrapper")?.attach_to_if_index(ifindex, mode)?;
        // It stays as long as the device.
        std::mem::forget(self.ebpf);
        Ok(())
    }

    /// Puts a program where the wrapper calls it.
    pub(super) fn aim(&mut self, program: &ProgramFd) -> Result<()> {
        self.targets.set(0, program, 0).context("put the program under test behind the wrapper")
    }

    /// What the next runs do.
    pub(super) fn prepare(&mut self, packet: &[u8], turns: &Turns) -> Result<()> {
        let mut template = [0; 10];
        let length = put_beginning(&mut template, packet)?;
        let words: Vec<u32> = match turns {
            Turns::Ports(ports) => ports.iter().map(|port| u32::from(*port)).collect(),
            Turns::Addresses(words) | Turns::Words6(words) => words.clone(),
        };
        for (index, word) in (0..).zip(&words) {
            self.turns.set(index, word, 0)?;
        }
        let kind = match turns {
            Turns::Ports(_) => 0,
            Turns::Addresses(_) => 1,
            Turns::Words6(_) => 2,
        };
        template[8] = length | kind << 32;
        template[9] = u64::try_from(words.len())?;
        Ok(self.template.set(0, template, 0)?)
    }

    /// The last verdict, and the nanoseconds of one run.
    pub(super) fn run(&mut self, packet: &[u8], repeat: u32) -> Result<(u32, f64)> {
        let wrapper = program(&mut self.ebpf, "xdp_wrapper")?;
        let context = self.device.map(|device| context(packet.len(), device)).transpose()?;
        let options = TestRunOptions {
            data_in: Some(packet),
            ctx_in: context.as_ref().map(<[u8; 24]>::as_slice),
            repeat,
            ..TestRunOptions::default()
        };
        let result = wrapper.test_run(options)?;
        Ok((result.return_value, result.duration.as_secs_f64() * 1e9))
    }
}

/// `struct xdp_md`: data, its end, no metadata, and the device with its first queue.
fn context(length: usize, ifindex: u32) -> Result<[u8; 24]> {
    let words = [0, u32::try_from(length)?, 0, ifindex, 0, 0];
    let mut context = [0; 24];
    for (bytes, word) in context.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    Ok(context)
}

/// REF-XDP with its table, behind a wrapper.
pub(super) struct Reference {
    wrapper: Wrapper,
    /// Keeps the program and its maps.
    _ebpf: Ebpf,
}

impl std::fmt::Debug for Reference {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reference").finish_non_exhaustive()
    }
}

impl Reference {
    pub(super) fn load(object: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().map_max_entries("REF_FLOWS", 64).load_file(object)?;
        program(&mut ebpf, "xdp_reference")?.load().context("load xdp_reference")?;
        let mut wrapper = Wrapper::load(object)?;
        wrapper.aim(program(&mut ebpf, "xdp_reference")?.fd()?)?;
        let table = ebpf.take_map("REF_CONNECTIONS").context("no map REF_CONNECTIONS")?;
        let mut connections: HashMap<_, [u32; 4], [u32; 4]> = HashMap::try_from(table)?;
        let wire = |address: std::net::Ipv4Addr| u32::from(address).to_be();
        for port in Flows::Many.ports() {
            let both = u32::from(port) | u32::from(PORT.to_be()) << 16;
            connections.insert([wire(WORKLOAD), wire(PEER), both, 6], [1, 0, 0, 0], 0)?;
        }
        Ok(Self { wrapper, _ebpf: ebpf })
    }

    pub(super) fn run(&mut self, flows: Flows, repeat: u32) -> Result<f64> {
        self.wrapper.prepare(&established(), &Turns::Ports(flows.ports()))?;
        let (verdict, nanoseconds) = self.wrapper.run(&established(), repeat)?;
        ensure!(verdict == TX, "the reference's last packet got verdict {verdict}");
        Ok(nanoseconds)
    }
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}
