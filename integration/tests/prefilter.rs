//! Promise: what a listed source sends ends at the uplinks of the nodes that a prefilter selects, from the moment it is applied
//! until it is deleted, and nobody else's traffic; ssh goes on whatever is listed.

use anyhow::{Context as _, Result};
use weft_integration::{
    fleet::{Fleet, UPLINK, scenario},
    limits::READY,
    traffic::{
        Flow,
        Outcome::{self, Allow, Deny},
        Protocol::{Echo, Tcp},
        TcpServer, try_all,
    },
    wait,
};
use weft_proto::v1::{PrefilterDrops, XdpMode};

/// For the first node alone.
fn prefilter(cidrs: &[String]) -> String {
    format!(
        "\nkind: Prefilter\nname: scanners\nnodes: {{matchLabels: {{role: gateway}}}}\ncidrs: {cidrs:?}\narpSenders: [192.0.2.66]\n"
    )
}

/// From the world, by both families: to each node's port 1000, to each node's ssh, and an echo to the first node.
fn world(fleet: &Fleet) -> Result<Vec<Outcome>> {
    let from = &fleet.party("world")?.namespace;
    let mut flows = Vec::new();
    for family in [4, 6] {
        for (number, protocol) in [(1, Tcp(1000)), (2, Tcp(1000)), (1, Tcp(22)), (1, Echo)] {
            let place = fleet.node(number).place();
            let to = if family == 4 { place.v4().into() } else { place.v6().into() };
            flows.push(Flow { from: from.clone(), to, protocol });
        }
    }
    try_all(&flows)
}

fn mode(fleet: &Fleet, number: usize) -> Result<XdpMode> {
    let capabilities = fleet.node(number).status()?.capabilities.context("capabilities")?;
    let uplink = capabilities.devices.iter().find(|device| device.name == UPLINK).context("the uplink")?;
    Ok(uplink.xdp())
}

fn list(fleet: &Fleet) -> Result<PrefilterDrops> {
    fleet.node(1).status()?.prefilters.into_iter().next().context("a prefilter is in force")
}

const OPEN: [Outcome; 8] = [Allow, Allow, Allow, Allow, Allow, Allow, Allow, Allow];
const FILTERED: [Outcome; 8] = [Deny, Allow, Allow, Deny, Deny, Allow, Allow, Deny];

#[test]
fn listed_sources_are_dropped_at_the_uplinks_of_selected_nodes_until_the_list_goes() -> Result<()> {
    scenario("prefilter", 2, |fleet| {
        fleet.node_mut(1).terminate()?;
        fleet.node_mut(1).set_labels(&["role=gateway"]);
        fleet.node_mut(1).run()?;
        fleet.wait_for_nodes()?;
        let mut servers = Vec::new();
        for (number, ports) in [(1, &[22, 1000][..]), (2, &[1000])] {
            let host = fleet.node(number).host().namespace()?;
            for port in ports {
                servers.push(TcpServer::start(&host, *port, "node")?);
            }
        }
        let own: Vec<String> = [4, 6]
            .into_iter()
            .map(|family| {
                let address = fleet.party("world")?.address(family)?;
                Ok(format!("{address}/{}", if family == 4 { 32 } else { 128 }))
            })
            .collect::<Result<_>>()?;
        assert_eq!(world(fleet)?, OPEN);
        assert_eq!(mode(fleet, 1)?, XdpMode::None, "what is off has no program");

        fleet.apply(&prefilter(&["198.18.0.0/15".to_owned()]))?;
        wait::until_true("the program is there", READY, || Ok(mode(fleet, 1)? != XdpMode::None))?;
        assert_eq!((mode(fleet, 1)?, mode(fleet, 2)?), (XdpMode::Native, XdpMode::None));
        assert_eq!(world(fleet)?, OPEN, "somebody else is listed");

        fleet.apply(&prefilter(&own))?;
        wait::until_true("the list has changed", READY, || Ok(list(fleet)?.prefixes == 2))?;
        assert_eq!(world(fleet)?, FILTERED);
        let before = list(fleet)?;
        assert!(before.packets >= 4, "{before:?}");
        assert!(fleet.node(1).dropped("prefiltered")? >= before.packets);

        // The program outlives the daemon, and the next one finds it and its counters.
        fleet.node_mut(1).kill()?;
        assert_eq!(world(fleet)?, FILTERED, "without a daemon");
        fleet.node_mut(1).run()?;
        fleet.wait_for_nodes()?;
        assert_eq!(world(fleet)?, FILTERED, "with another daemon");
        assert!(list(fleet)?.packets > before.packets);
        assert_eq!(fleet.node(1).status()?.repairs, []);

        // A link goes with its pin.
        for link in std::fs::read_dir(fleet.node(1).host().path("/sys/fs/bpf/weft/uplinks"))? {
            std::fs::remove_file(link?.path())?;
        }
        wait::until_true("the program is attached again", READY, || {
            let repairs = fleet.node(1).status()?.repairs;
            Ok(repairs.iter().any(|repair| repair.what == "programs"))
        })?;
        assert_eq!(world(fleet)?, FILTERED, "after the program was taken off");

        fleet.weft(&["delete", "prefilter", "scanners"])?.success()?;
        wait::until_true("the program is gone", READY, || Ok(mode(fleet, 1)? == XdpMode::None))?;
        assert_eq!(world(fleet)?, OPEN);
        Ok(())
    })
}
