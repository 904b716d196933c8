//! Promise: killing the controller under traffic, and starting it again, loses no packet of an allowed flow and opens no
//! denied one; what was applied before is still there, and what is applied after it is back is realised.
use anyhow::Result;
use weft_integration::{fleet::scenario, traffic::Vigil};

const ANOTHER: &str = "
kind: Policy
name: client
subject: {endpoints: {matchLabels: {app: client}}}
ingress: []
";

#[test]
fn sigkill_of_the_controller_is_not_noticed_by_packets() -> Result<()> {
    scenario("ctlkill", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let near = fleet.attach(1, "near", &[("app", "client")])?;
        let far = fleet.attach(2, "far", &[("app", "client")])?;
        fleet.apply(Vigil::POLICY)?;
        let vigil = Vigil::start(&server, &[&near, &far])?;

        fleet.controller_mut().kill()?;
        vigil.goes_on()?;
        fleet.controller_mut().run()?;
        fleet.wait_for_controller()?;
        fleet.wait_for_nodes()?;
        vigil.goes_on()?;
        fleet.apply(ANOTHER)?;
        vigil.goes_on()?;
        let policies = fleet.weft(&["get", "policies", "-o", "json"])?.success()?.json()?;
        assert_eq!(policies["items"].as_array().map(Vec::len), Some(2), "{policies}");
        vigil.end()
    })
}
