//! Promise: a connection to a service works from an endpoint, from a machine behind a tap, from the node itself and from outside, over
//! each transport and family, in each mode, to backends of the node, of another node, and outside of the fleet. The client is told
//! that the service answered; the backend sees who called, or its node, as the mode has it, and policy judges that one.
mod setting;
mod sheet;
mod table;

use anyhow::{Result, ensure};
use weft_integration::fleet::{Fleet, scenario};

use self::{
    setting::{Setting, host_policy},
    sheet::Sheet,
    table::Mode,
};

#[test]
fn whoever_calls_a_service_reaches_its_backend_in_each_mode_or_is_denied_as_policy_says() -> Result<()> {
    scenario("matrix", 2, |fleet| {
        let setting = Setting::build(fleet)?;
        let mut sheet = Sheet::new();
        let filled = fill(fleet, &setting, &mut sheet);
        println!("{sheet}");
        filled?;
        sheet.is_as_expected()?;
        setting.heard()
    })
}

fn fill(fleet: &Fleet, setting: &Setting, sheet: &mut Sheet) -> Result<()> {
    // Of sockets that this process makes meanwhile, and of no others, the node's programs hear.
    fleet.node(1).cgroup().enter()?;
    sheet.fill(setting, |row| row.client.is_seen())?;
    fleet.node(1).cgroup().leave()?;
    for (mode, at_xdp) in [(Mode::Packet, false), (Mode::XdpSnat, true), (Mode::XdpDsr, true)] {
        let before = forwarded(fleet)?;
        let cells = sheet.fill(setting, |row| row.mode == mode && !row.client.is_seen())?;
        let sent_on = forwarded(fleet)? - before;
        ensure!(
            (sent_on > 2 * cells) == at_xdp,
            "of {cells} cells, XDP sent on {sent_on} packets in {mode:?}"
        );
    }
    fleet.apply(&host_policy(fleet.party("world")?)?)?;
    sheet.fill(setting, |row| matches!(row.mode, Mode::HostAllows | Mode::HostDenies))?;
    Ok(())
}

/// Packets that the first node sent on at XDP.
fn forwarded(fleet: &Fleet) -> Result<u64> {
    let counts = fleet.node(1).status()?.drops;
    let own =
        counts.iter().filter(|count| count.reason == "service_forwarded" && count.point == "xdp_uplink");
    Ok(own.map(|count| count.packets).sum())
}
