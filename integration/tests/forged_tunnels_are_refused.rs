//! Promise: an endpoint that sends VXLAN, ESP or IPIP to a node's address reaches nobody with it.
use anyhow::Result;
use weft_integration::{
    fleet::{Place, scenario},
    limits::READY,
    traffic::Forged,
    wait,
};

const PACKETS: u32 = 5;

#[test]
fn vxlan_esp_and_ipip_to_any_node_address_are_dropped_and_counted_as_forged() -> Result<()> {
    scenario("forged", 2, |fleet| {
        let workload = fleet.attach(1, "workload", &[("app", "workload")])?;
        let node = fleet.node(1);
        let mut expected = node.dropped("forged_encapsulation")?;
        for place in [Place::node(1), Place::node(2)] {
            for to in [place.v4().into(), place.v6().into()] {
                for forged in Forged::ALL {
                    forged.send(&workload.namespace, to, PACKETS)?;
                    expected += u64::from(PACKETS);
                    let what = format!("{forged:?} to {to} is counted as forged");
                    wait::until_true(&what, READY, || Ok(node.dropped("forged_encapsulation")? >= expected))?;
                    assert_eq!(node.dropped("forged_encapsulation")?, expected, "{forged:?} to {to}");
                }
            }
        }
        Ok(())
    })
}
