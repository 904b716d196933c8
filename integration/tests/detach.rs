//! Promise: what is detached is gone: no traffic, no object, and its addresses are free again.
use anyhow::Result;
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
