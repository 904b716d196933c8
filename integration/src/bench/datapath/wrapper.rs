//! Runs a program many times on the same packet: see the wrapper's own words in `bpf/bench/wrapper.rs`.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions},
};

use weft_noded::kernel::probe;

/// Bytes at the packet's beginning that are put back, and that a packet must have.
pub(super) const RESTORED_BYTES: usize = 64;
/// `Template` of the kernel program, word by word.
type Template = [u64; 9];

/// A packet, and how its runs differ.
#[derive(Clone, Debug)]
pub(in crate::bench) struct Packet {
    pub(super) bytes: Vec<u8>,
    /// Source ports that take turns.
    pub(super) first_port: u16,
    pub(super) ports: u16,
    /// The interface whose program runs, and the one by which the packet came into the node.
    pub(super) ifindex: u32,
    pub(super) ingress_ifindex: u32,
}

/// The wrapper, aimed at one program.
pub(in crate::bench) struct Wrapper {
    ebpf: Ebpf,
    template: Array<MapData, Template>,
    targets: ProgramArray<MapData>,
}

impl std::fmt::Debug for Wrapper {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Wrapper").finish_non_exhaustive()
    }
}

impl Wrapper {
    /// `object` is that of the benches' own kernel programs.
    pub(in crate::bench) fn load(object: &Path) -> Result<Self> {
        let mut ebpf = EbpfLoader::new()
            // The reference's tables are of another instance.
            .map_max_entries("REF_FLOWS", 64)
            .load_file(object)
            .with_context(|| format!("load {}", object.display()))?;
        program(&mut ebpf, "tc_wrapper")?.load().context("load tc_wrapper")?;
        let template = Array::try_from(ebpf.take_map("TEMPLATE").context("no map TEMPLATE")?)?;
        let targets = ProgramArray::try_from(ebpf.take_map("TARGET").context("no map TARGET")?)?;
        Ok(Self { ebpf, template, targets })
    }

    /// Puts a program where the wrapper calls it.
    pub(in crate::bench) fn aim(&mut self, program: &ProgramFd) -> Result<()> {
        self.targets.set(0, program, 0).context("put the program under test behind the wrapper")
    }

    /// Runs the program; the last verdict, and the nanoseconds of one run.
    pub(in crate::bench) fn run(&mut self, packet: &Packet, repeat: u32) -> Result<Run> {
        self.template.set(0, template(packet)?, 0)?;
        let context = probe::context(packet.ifindex, packet.ingress_ifindex);
        let wrapper = program(&mut self.ebpf, "tc_wrapper")?;
        let result = wrapper.test_run(TestRunOptions {
            data_in: Some(&packet.bytes),
            ctx_in: Some(&context),
            repeat,
            ..TestRunOptions::default()
        })?;
        Ok(Run { verdict: result.return_value, nanoseconds: nanoseconds(result.duration) })
    }
}

/// What came of a run.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Run {
    /// Of the last packet.
    pub(super) verdict: u32,
    /// The mean of one packet.
    pub(in crate::bench) nanoseconds: f64,
}

fn nanoseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e9
}

fn template(packet: &Packet) -> Result<Template> {
    let mut template = [0; 9];
    let length = put_beginning(&mut template, &packet.bytes)?;
    template[8] = length | u64::from(packet.first_port) << 16 | u64::from(packet.ports) << 32;
    Ok(template)
}

/// Puts what a wrapper restores of the packet into the first words of its template. The packet's length.
pub(in crate::bench) fn put_beginning(template: &mut [u64], packet: &[u8]) -> Result<u64> {
    let length = u64::try_from(packet.len())?;
    ensure!(packet.len() >= RESTORED_BYTES && length < 1500, "a packet of {length} bytes");
    for (word, bytes) in template.iter_mut().zip(packet[..RESTORED_BYTES].chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into()?);
    }
    Ok(length)
}

/// A classifier of an object.
pub(super) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}
