//! Promise: killing or stopping a daemon under traffic loses no packet of an allowed flow and opens no denied one.
use anyhow::Result;
use weft_integration::{
    fleet::scenario,
    limits::READY,
    traffic::{Conversation, DeniedProbes, EchoStream, UdpServer},
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
    ports: [{protocol: UDP, port: 1000}, {protocol: TCP, port: 1001}]
";
const ECHOES: u64 = 200;

#[test]
fn sigkill_sigterm_and_restart_lose_no_packet_and_open_nothing() -> Result<()> {
    scenario("kill", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?;
        let near = fleet.attach(1, "near", &[("app", "client")])?;
        let far = fleet.attach(2, "far", &[("app", "client")])?;
        fleet.apply(POLICY)?;
        let _udp = UdpServer::start(&server.namespace, 1000)?;
        let mut streams = Vec::new();
        let mut probes = Vec::new();
        for (number, client) in [&near, &far].into_iter().enumerate() {
            for family in [4, 6] {
                let address = server.address(family)?;
                streams.push(EchoStream::start(&client.namespace, (address, 1000).into()));
                let denied = 2000 + u16::try_from(number)? * 10 + u16::from(family);
                let to = (address, denied).into();
                probes.push(DeniedProbes::start(&client.namespace, &server.namespace, to)?);
            }
        }
        let talk = Conversation::establish(&far.namespace, &server.namespace, server.address(4)?, 1001)?;

        // The server's and the far client's daemon, each killed and, after it is back, told to end.
        for (node, kill) in [(1, true), (2, true), (1, false), (2, false)] {
            if kill {
                fleet.node_mut(node).kill()?;
            } else {
                let status = fleet.node_mut(node).terminate()?;
                assert!(status.success(), "{status}");
            }
            let dead = talk.mark();
            EchoStream::all_more(&streams, ECHOES)?;
            talk.passes_after(dead)?;
            fleet.node_mut(node).run()?;
            fleet.wait_for_nodes()?;
            let back = talk.mark();
            EchoStream::all_more(&streams, ECHOES)?;
            talk.passes_after(back)?;
        }
        for stream in streams {
            let echoes = stream.stop()?;
            assert_eq!(echoes.lost(), 0, "{echoes:?}");
        }
        for probe in probes {
            wait::until_true("probes were sent", READY, || Ok(probe.sent() > 0))?;
            let (_, arrived) = probe.stop()?;
            assert_eq!(arrived, 0);
        }
        Ok(())
    })
}
