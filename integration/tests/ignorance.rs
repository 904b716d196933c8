//! Promise: never open by ignorance. A node that hears nothing from its controller lets nobody through whom it has not
//! classified, where a rule might deny them; those it knows go on as before.
use anyhow::Result;
use weft_integration::{
    fleet::{Fleet, Place, scenario},
    limits::READY,
    traffic::{
        DeniedProbes, Flow,
        Outcome::{self, Allow, Deny},
        Protocol, Vigil, try_all,
    },
    wait,
};

/// All but one kind may.
const POLICY: &str = "
kind: Policy
name: server
subject: {endpoints: {matchLabels: {app: server}}}
ingress:
  - name: everybody
    action: allow
    ports: [{protocol: UDP, port: 1000, endPort: 1002}, {protocol: TCP, port: 1001}]
  - name: but-not-these
    action: deny
    peers: [{endpoints: {matchLabels: {class: bad}}}]
";
/// Of the server's node, which hears nothing.
const DEAF: usize = 1;

fn may_reach(fleet: &Fleet, names: &[&str]) -> Result<Vec<Outcome>> {
    let server = fleet.party("server")?.address(4)?;
    let flow = |name: &&str| {
        let from = fleet.party(name)?.namespace.clone();
        Ok(Flow { from, to: server, protocol: Protocol::Udp(1000) })
    };
    try_all(&names.iter().map(flow).collect::<Result<Vec<_>>>()?)
}

fn newcomers_stay_out_until_they_are_known(
    name: &str,
    deafen: impl FnOnce(&mut Fleet) -> Result<()>,
    hear: impl FnOnce(&mut Fleet) -> Result<()>,
) -> Result<()> {
    scenario(name, 2, |fleet| {
        let server = fleet.attach(DEAF, "server", &[("app", "server")])?;
        let known = fleet.attach(2, "known", &[("app", "client")])?;
        fleet.apply(POLICY)?;
        let vigil = Vigil::start(&server, &[&known])?;

        deafen(fleet)?;
        let bad = fleet.attach(2, "bad", &[("app", "client"), ("class", "bad")])?;
        fleet.attach(2, "good", &[("app", "client"), ("class", "good")])?;
        let probes =
            DeniedProbes::start(&bad.namespace, &server.namespace, (server.address(6)?, 1002).into())?;
        assert_eq!(may_reach(fleet, &["known", "bad", "good"])?, [Allow, Deny, Deny]);
        vigil.goes_on()?;

        hear(fleet)?;
        fleet.wait_for_nodes()?;
        wait::until_true("the newcomer that may is let in", READY, || {
            Ok(may_reach(fleet, &["good"])? == [Allow])
        })?;
        assert_eq!(may_reach(fleet, &["known", "bad", "good"])?, [Allow, Deny, Allow]);
        let (sent, arrived) = probes.stop()?;
        assert!(sent > 0 && arrived == 0, "{arrived} of {sent} arrived");
        vigil.end()
    })
}

#[test]
fn a_node_that_is_cut_off_from_its_controller_lets_no_unknown_identity_in() -> Result<()> {
    let controller = [Place::CONTROLLER.v4().to_string(), Place::CONTROLLER.v6().to_string()];
    let route = move |fleet: &Fleet, action: &str| -> Result<()> {
        for address in &controller {
            fleet.node(DEAF).host().run("ip", &["route", action, "blackhole", address])?;
        }
        Ok(())
    };
    newcomers_stay_out_until_they_are_known(
        "cutoff",
        |fleet| route(fleet, "add"),
        |fleet| route(fleet, "delete"),
    )
}

#[test]
fn a_node_whose_daemon_hangs_lets_no_unknown_identity_in() -> Result<()> {
    newcomers_stay_out_until_they_are_known(
        "hung",
        |fleet| fleet.node(DEAF).process()?.freeze(),
        |fleet| fleet.node(DEAF).process()?.thaw(),
    )
}
