//! What veths need so that uplinks can send back what has come by them, as network cards do.
use std::{env, path::PathBuf};

use anyhow::{Context as _, Result};
use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use weft_proto::v1::XdpMode as Mode;

use super::{Fleet, Party, UPLINK, system::run, tool};
use crate::{limits::READY, traffic::Namespace, wait};

/// The benches' own kernel programs.
fn object() -> PathBuf {
    let built = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/bpf/weft-bench.o");
    env::var_os("WEFT_BENCH_OBJECT").map_or_else(built, PathBuf::from)
}

impl Fleet {
    /// A veth takes what XDP sends back only where its other end has a program, too; the fabric is the other end of every uplink.
    pub fn let_nodes_send_back(&self) -> Result<()> {
        let nodes: Vec<_> = self.nodes().iter().map(|node| node.name().to_owned()).collect();
        Namespace::open(&self.home().netns("fabric"))?.within(move || {
            let mut ebpf = Ebpf::load_file(object())?;
            let pass: &mut Xdp = ebpf.program_mut("xdp_pass").context("no program xdp_pass")?.try_into()?;
            pass.load()?;
            for node in &nodes {
                pass.attach(node, XdpMode::Driver)?;
            }
            // As long as the devices.
            std::mem::forget(ebpf);
            Ok(())
        })
    }

    /// Until the program at a node's uplink runs in its driver.
    pub fn wait_for_xdp(&self, node: usize) -> Result<()> {
        wait::until_true("the program is at the uplink", READY, || {
            let capabilities = self.node(node).status()?.capabilities.context("capabilities")?;
            let is_native = |name: &str, mode| name == UPLINK && mode == Mode::Native;
            Ok(capabilities.devices.iter().any(|device| is_native(&device.name, device.xdp())))
        })
    }
}

impl Party {
    /// What the kernel leaves for devices to sum up nobody sums up once XDP has sent it on.
    pub fn send_whole_checksums(&self) -> Result<()> {
        let netns = self.namespace.name();
        run(tool("ip").args(["netns", "exec", netns, "ethtool", "-K", UPLINK, "tx", "off"])).map(drop)
    }
}
