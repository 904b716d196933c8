//! Promise: what is detached is gone: no traffic, no object, and its addresses are free again.
use std::net::IpAddr;

use anyhow::{Context as _, Result};
use weft_integration::{
    fleet::scenario,
    limits::READY,
    traffic::{Flow, Outcome, Protocol, TcpServer},
    wait,
};

#[test]
fn a_detached_endpoint_is_unreachable_and_forgotten_and_its_address_can_be_given_again() -> Result<()> {
    scenario("detach", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let client = fleet.attach(2, "client", &[("app", "client")])?;
        let flow = |to| Flow { from: client.namespace.clone(), to, protocol: Protocol::Tcp(1000) };
        let listening = TcpServer::start(&server.namespace, 1000, "server")?;
        let address = server.address(4)?;
        assert_eq!(flow(address).attempt()?, Outcome::Allow);

        fleet.node(1).weft(&["endpoint", "rm", "server"])?.success()?;
        assert_ne!(flow(address).attempt()?, Outcome::Allow);
        drop(listening);
        wait::until_true("the controller forgets the endpoint", READY, || {
            Ok(fleet.weft(&["get", "endpoint", "server"])?.code == Some(1))
        })?;

        let next = fleet.bare_namespace("next")?;
        let netns = format!("/run/netns/{}", next.name());
        let text = address.to_string();
        let arguments =
            ["endpoint", "add", "next", "--netns", &netns, "--address", &text, "--label", "app=next"];
        fleet.node(1).weft(&arguments)?.success()?;
        let _listening = TcpServer::start(&next, 1000, "next")?;
        assert_eq!(flow(address).attempt()?, Outcome::Allow);
        Ok(())
    })
}

const MAC: &str = "02:00:00:00:00:77";

#[test]
fn an_interface_that_was_given_stays_and_is_down_once_its_endpoint_is_detached() -> Result<()> {
    scenario("given", 2, |fleet| {
        let client = fleet.attach(2, "client", &[("app", "client")])?;
        let workload = fleet.bare_namespace("workload")?;
        let node = fleet.node(1);
        let in_node = |command: &str| node.host().run("ip", &command.split(' ').collect::<Vec<_>>());
        in_node(&format!(
            "link add given0 type veth peer name eth0 address {MAC} netns {}",
            workload.name()
        ))?;
        let add = ["endpoint", "add", "server", "--interface", "given0", "--mac", MAC, "--output", "json"];
        let added = node.weft(&add)?.success()?.json()?;
        let address = added["endpoint"]["addresses"][0].as_str().context("an address")?;
        let to: IpAddr = address.parse()?;
        assert!(to.is_ipv4(), "{added}");
        fleet.ip(&workload, "link set lo up")?;
        fleet.ip(&workload, "link set eth0 up")?;
        fleet.ip(&workload, &format!("addr add {address}/32 dev eth0"))?;
        fleet.ip(&workload, "route add 169.254.1.1 dev eth0")?;
        fleet.ip(&workload, "route add default via 169.254.1.1")?;
        let _listening = TcpServer::start(&workload, 1000, "server")?;
        let flow = Flow { from: client.namespace.clone(), to, protocol: Protocol::Tcp(1000) };
        assert_eq!(flow.attempt()?, Outcome::Allow);
        assert!(in_node("link show given0")?.contains("state UP"));

        node.weft(&["endpoint", "rm", "server"])?.success()?;

        assert!(in_node("link show given0")?.contains("state DOWN"));
        assert_ne!(flow.attempt()?, Outcome::Allow);
        Ok(())
    })
}
