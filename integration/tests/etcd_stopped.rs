//! Promise: an etcd that hangs or is killed under traffic loses no packet of an allowed flow and opens no denied one;
//! operators are told, and once it is back changes are realised as before.
use anyhow::Result;
use weft_integration::{
    fleet::{Fleet, Store, scenario_on},
    limits::READY,
    traffic::Vigil,
    wait,
};

/// `weft`: the server cannot be reached. `EX_UNAVAILABLE` of sysexits.h.
const UNREACHABLE: i32 = 69;

fn another(number: u8) -> String {
    format!(
        "kind: Policy\nname: another-{number}\nsubject: {{endpoints: {{matchLabels: {{app: client}}}}}}\ningress: []\n"
    )
}

/// An apply is refused, and nothing of it is there later.
fn refused(fleet: &Fleet) -> Result<()> {
    let file = fleet.home().path().join("refused.yaml");
    std::fs::write(&file, another(0))?;
    let answer = fleet.weft(&["apply", "-f", &file.to_string_lossy()])?;
    assert_eq!(answer.code, Some(UNREACHABLE), "{}{}", answer.stdout, answer.stderr);
    Ok(())
}

/// The controller follows its store again without being touched.
fn back(fleet: &mut Fleet, number: u8) -> Result<()> {
    wait::until_true("the store answers", READY, || {
        Ok(fleet.weft(&["get", "policy", "server"])?.code == Some(0))
    })?;
    fleet.wait_for_nodes()?;
    fleet.apply(&another(number))?;
    Ok(())
}

#[test]
fn a_hung_and_a_killed_etcd_are_not_noticed_by_packets() -> Result<()> {
    scenario_on(Store::Etcd { members: 1 }, "etcdstop", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let near = fleet.attach(1, "near", &[("app", "client")])?;
        let far = fleet.attach(2, "far", &[("app", "client")])?;
        fleet.apply(Vigil::POLICY)?;
        let vigil = Vigil::start(&server, &[&near, &far])?;

        fleet.controller_mut().etcd()?.freeze()?;
        refused(fleet)?;
        vigil.goes_on()?;
        fleet.controller_mut().etcd()?.thaw()?;
        back(fleet, 1)?;
        vigil.goes_on()?;

        fleet.controller_mut().etcd()?.kill(0)?;
        refused(fleet)?;
        vigil.goes_on()?;
        fleet.controller_mut().etcd()?.restart(0)?;
        back(fleet, 2)?;
        vigil.goes_on()?;
        vigil.end()
    })
}
