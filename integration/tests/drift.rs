//! Promise: what somebody else changes in a node's kernel is mended by itself, and said.
use std::fs;

use anyhow::{Context, Result};
use weft_integration::{
    fleet::{Fleet, Node, scenario},
    limits::READY,
    traffic::{
        Flow,
        Outcome::{Allow, Deny},
        Protocol::Tcp,
        TcpServer, try_all,
    },
    wait,
};

const POLICY: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - name: client
    action: allow
    peers: [{endpoints: {matchLabels: {app: client}}}]
    ports: [{protocol: TCP, port: 1000}]
";

fn repairs(node: &Node, what: &str) -> Result<u64> {
    let repairs = node.status()?.repairs;
    Ok(repairs.iter().filter(|repair| repair.what == what).map(|repair| repair.times).sum())
}

/// To the server's two ports, by both families.
fn flows(fleet: &Fleet) -> Result<Vec<Flow>> {
    let from = &fleet.party("client")?.namespace;
    let mut flows = Vec::new();
    for family in [4, 6] {
        for port in [1000, 1001] {
            let to = fleet.party("server")?.address(family)?;
            flows.push(Flow { from: from.clone(), to, protocol: Tcp(port) });
        }
    }
    Ok(flows)
}

#[test]
fn programs_devices_and_routes_that_were_taken_away_are_back_by_themselves() -> Result<()> {
    scenario("drift", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?.namespace;
        fleet.attach(2, "client", &[("app", "client")])?;
        let _servers =
            [TcpServer::start(&server, 1000, "server")?, TcpServer::start(&server, 1001, "server")?];
        fleet.apply(POLICY)?;
        let flows = flows(fleet)?;
        let expected = [Allow, Deny, Allow, Deny];
        assert_eq!(try_all(&flows)?, expected);
        let node = fleet.node(1);
        let after_start = node.status()?.enforced_after.context("it is said when the start was over")?;
        println!("enforcing {after_start} after the daemon's start");

        // A link goes with its pin.
        for link in fs::read_dir(node.host().path("/sys/fs/bpf/weft/links"))? {
            fs::remove_file(link?.path())?;
        }
        wait::until_true("programs are attached again", READY, || Ok(repairs(node, "programs")? >= 3))?;
        assert_eq!(try_all(&flows)?, expected, "after programs were taken off");

        node.host().run("ip", &["link", "del", "weft-vxlan"])?;
        wait::until_true("the overlay's device is back", READY, || Ok(repairs(node, "overlay")? >= 1))?;
        assert_eq!(try_all(&flows)?, expected, "after the overlay's device was deleted");

        let interface = node.host().run("ip", &["-br", "link"])?;
        let interface = interface.lines().filter_map(|line| line.split([' ', '@']).next());
        let interface = interface.into_iter().find(|name| is_endpoint(name));
        let interface = interface.context("the server's interface")?.to_owned();
        node.host().run("ip", &["link", "set", &interface, "down"])?;
        wait::until_true("the endpoint is connected again", READY, || Ok(repairs(node, "routes")? >= 1))?;
        assert_eq!(try_all(&flows)?, expected, "after its interface was set down");
        Ok(())
    })
}

fn is_endpoint(interface: &str) -> bool {
    interface.starts_with("weft") && interface != "weft-vxlan"
}
