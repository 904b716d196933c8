//! Promise: a daemon whose desired state on disk is not whole says where and ends with exit code 1; the kernel goes on
//! enforcing what it has.
use std::fs::{self, File};

use anyhow::Result;
use weft_integration::{
    fleet::{Fleet, scenario},
    traffic::{
        Flow,
        Outcome::{self, Allow, Deny},
        Protocol::Tcp,
        TcpServer, try_all,
    },
};

const STATE: &str = "/var/lib/weft/noded/desired";
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

fn verdicts(fleet: &Fleet) -> Result<Vec<Outcome>> {
    let from = &fleet.party("client")?.namespace;
    let mut flows = Vec::new();
    for port in [1000, 1001] {
        for family in [4, 6] {
            let to = fleet.party("server")?.address(family)?;
            flows.push(Flow { from: from.clone(), to, protocol: Tcp(port) });
        }
    }
    try_all(&flows)
}

#[test]
fn a_truncated_desired_state_is_refused_by_name_and_the_kernel_keeps_enforcing() -> Result<()> {
    scenario("truncated", 2, |fleet| {
        let server = fleet.attach(1, "server", &[("app", "server")])?.namespace;
        fleet.attach(2, "client", &[("app", "client")])?;
        let _servers =
            [TcpServer::start(&server, 1000, "server")?, TcpServer::start(&server, 1001, "server")?];
        fleet.apply(POLICY)?;
        let expected = [Allow, Allow, Deny, Deny];
        assert_eq!(verdicts(fleet)?, expected);

        let state = fleet.node(1).host().path(STATE);
        let whole = fs::read(&state)?;
        fleet.node_mut(1).kill()?;
        let half = u64::try_from(whole.len() / 2)?;
        for length in [half, 10, 0] {
            File::options().write(true).open(&state)?.set_len(length)?;
            fleet.node_mut(1).run()?;
            let daemon = fleet.node_mut(1).process_mut()?;
            let status = daemon.wait()?;
            assert_eq!(status.code(), Some(1), "cut to {length} bytes: {}", daemon.log_tail());
            assert!(daemon.log_tail().contains(STATE), "{}", daemon.log_tail());
            assert_eq!(verdicts(fleet)?, expected, "cut to {length} bytes");
        }

        // Whole again, it starts as if nothing had been.
        fs::write(&state, whole)?;
        fleet.node_mut(1).run()?;
        fleet.wait_for_nodes()?;
        assert_eq!(verdicts(fleet)?, expected);
        Ok(())
    })
}
