//! Promise: what a node drops and allows is seen as it happens, with who, why and by which rule; and what is not seen is
//! counted.
use std::net::{IpAddr, UdpSocket};

use anyhow::Result;
use serde_json::Value;
use weft_integration::{
    fleet::{API_POLICY, Fleet, Monitor, scenario},
    traffic::{Flow, Outcome, Protocol, TcpServer},
};

/// More than the kernel's buffer has room for.
const FLOOD: u16 = 20_000;

fn attempt(fleet: &Fleet, from: &str, to: &str, family: u8, port: u16) -> Result<Outcome> {
    let from = fleet.party(from)?.namespace.clone();
    Flow { from, to: fleet.party(to)?.address(family)?, protocol: Protocol::Tcp(port) }.attempt()
}

#[test]
fn a_denied_connection_and_an_allowed_one_are_shown_with_names_labels_and_rules() -> Result<()> {
    scenario("monitor", 2, |fleet| {
        fleet.attach(1, "web", &[("app", "web")])?;
        let api = fleet.attach(1, "api", &[("app", "api")])?.namespace;
        fleet.attach(2, "far", &[("app", "far")])?;
        fleet.apply(API_POLICY)?;
        let _server = TcpServer::start(&api, 8080, "api")?;
        let everything = Monitor::start(fleet.node(1), &["--drops", "--verdicts"])?;
        let drops = Monitor::start(fleet.node(1), &["--from", "app=far"])?;
        for family in [4, 6] {
            let address: IpAddr = fleet.party("api")?.address(family)?;
            let to_api = |line: &Value, port: u16| {
                line["destination"]["address"] == address.to_string() && line["destinationPort"] == port
            };

            assert_eq!(attempt(fleet, "web", "api", family, 8080)?, Outcome::Allow);
            let allowed = everything.wait_for("the new flow is shown", |line| to_api(line, 8080))?;
            assert_eq!((&allowed["verdict"], &allowed["endpoint"]), (&"allowed".into(), &"web".into()));
            assert_eq!(allowed["source"]["endpoint"], "web");
            assert_eq!(allowed["source"]["labels"]["app"], "web");
            assert_eq!(allowed["destination"]["labels"]["app"], "api");
            // Of web no policy speaks.
            assert_eq!(
                (&allowed["rules"][0]["direction"], &allowed["rules"][0]["policy"]),
                (&"egress".into(), &"".into())
            );
            assert_eq!(
                (&allowed["rules"][1]["policy"], &allowed["rules"][1]["rule"]),
                (&"api".into(), &"web".into())
            );

            assert_eq!(attempt(fleet, "web", "api", family, 22)?, Outcome::Deny);
            let denied = everything.wait_for("the rule's drop is shown", |line| to_api(line, 22))?;
            assert_eq!((&denied["verdict"], &denied["reason"]), (&"dropped".into(), &"policy_denied".into()));
            assert_eq!(denied["rules"][0]["rule"], "not-ssh");

            // By default deny, from another node, whose endpoints' labels the controller knows.
            assert_eq!(attempt(fleet, "far", "api", family, 8080)?, Outcome::Deny);
            let far = drops.wait_for("the other node's packet is shown", |line| to_api(line, 8080))?;
            assert_eq!(far["source"]["labels"]["app"], "far");
            assert_eq!((&far["rules"][0]["policy"], &far["rules"][0]["rule"]), (&"api".into(), &"".into()));
            assert_eq!(far["point"], "tc_from_overlay");
        }
        assert!(
            drops.lines()?.iter().all(|line| line["source"]["labels"]["app"] == "far"),
            "{}",
            drops.output()
        );
        Ok(())
    })
}

#[test]
fn what_finds_the_kernels_buffer_full_is_said_to_be_lost() -> Result<()> {
    scenario("monlost", 1, |fleet| {
        let web = fleet.attach(1, "web", &[("app", "web")])?.namespace;
        fleet.attach(1, "api", &[("app", "api")])?;
        fleet.apply(API_POLICY)?;
        let monitor = Monitor::start(fleet.node(1), &["--endpoint", "api"])?;
        let api = fleet.party("api")?.address(4)?;
        // While the daemon reads nothing.
        fleet.node(1).process()?.freeze()?;
        let flood = web.within(move || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            for port in 1..=FLOOD {
                socket.send_to(b"denied", (api, port))?;
            }
            Ok(())
        });
        fleet.node(1).process()?.thaw()?;
        flood?;
        let lost =
            monitor.wait_for("the loss is said", |line| line["lost"]["inKernel"].as_u64() > Some(0))?;
        let lost = lost["lost"]["inKernel"].as_u64().unwrap_or_default();
        assert!(lost < u64::from(FLOOD), "{lost}");
        assert_eq!(fleet.node(1).status()?.events_lost, lost);
        Ok(())
    })
}
