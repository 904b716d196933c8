//! Promise: killing or stopping a daemon under traffic loses no packet of an allowed flow and opens no denied one.
use anyhow::Result;
use weft_integration::{fleet::scenario, traffic::Vigil};

#[test]
fn sigkill_sigterm_and_restart_lose_no_packet_and_open_nothing() -> Result<()> {
    scenario("kill", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let near = fleet.attach(1, "near", &[("app", "client")])?;
        let far = fleet.attach(2, "far", &[("app", "client")])?;
        fleet.apply(Vigil::POLICY)?;
        let vigil = Vigil::start(&server, &[&near, &far])?;

        // The server's and the far client's daemon, each killed and, after it is back, told to end.
        for (node, kill) in [(1, true), (2, true), (1, false), (2, false)] {
            if kill {
                fleet.node_mut(node).kill()?;
            } else {
                let status = fleet.node_mut(node).terminate()?;
                assert!(status.success(), "{status}");
            }
            vigil.goes_on()?;
            fleet.node_mut(node).run()?;
            fleet.wait_for_nodes()?;
            vigil.goes_on()?;
        }
        vigil.end()
    })
}
