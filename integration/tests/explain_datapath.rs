//! Promise: `weft explain --datapath` says what this node's kernel programs do with a flow, and leaves nothing behind.
use anyhow::{Context as _, Result};
use serde_json::Value;
use weft_integration::fleet::{API_POLICY, Fleet, scenario};

fn explain(fleet: &Fleet, (from, to): (&str, &str), port: &str, family: u8) -> Result<Value> {
    let family = family.to_string();
    let flow = ["explain", "--datapath", "--from", from, "--to", to, "--port", port, "--family", &family];
    fleet.node(1).weft(&[&flow[..], &["--output", "json"]].concat())?.success()?.json()
}

#[test]
fn the_programs_say_what_the_rules_say_and_keep_nothing_of_it() -> Result<()> {
    scenario("datapath", 2, |fleet| {
        fleet.attach(1, "web", &[("app", "web")])?;
        fleet.attach(1, "api", &[("app", "api")])?;
        fleet.attach(2, "far", &[("app", "far")])?;
        fleet.apply(API_POLICY)?;
        // Others may be of what endpoints send by themselves.
        let denied = || -> Result<u64> {
            let drops = fleet.node(1).status()?.drops;
            Ok(drops.iter().filter(|drop| drop.reason == "policy_denied").map(|drop| drop.packets).sum())
        };
        let before = denied()?;
        for family in [4, 6] {
            for (ends, port, verdict, outcome, rule) in [
                (("web", "api"), "tcp/8080", "allow", "delivered_local", "web"),
                (("web", "api"), "tcp/22", "deny", "policy_denied", "not-ssh"),
                (("web", "api"), "udp/53", "deny", "policy_denied", ""),
                (("far", "api"), "tcp/8080", "deny", "policy_denied", ""),
                (("api", "far"), "sctp/7", "allow", "delivered_overlay", ""),
            ] {
                let said = explain(fleet, ends, port, family)?;
                let what = format!("{ends:?} {port}: {said:#}");
                assert_eq!(said["verdict"], verdict, "{what}");
                assert_eq!(said["datapath"]["outcome"], outcome, "{what}");
                let rules = said["datapath"]["event"]["rules"].as_array().cloned().unwrap_or_default();
                let last = rules.last().with_context(|| what.clone())?;
                assert_eq!(last["rule"].as_str().unwrap_or_default(), rule, "{what}");
            }
        }
        assert_eq!(denied()?, before, "nothing was counted");
        Ok(())
    })
}

#[test]
fn who_is_not_here_is_said() -> Result<()> {
    scenario("datapathaway", 1, |fleet| {
        fleet.attach(1, "web", &[("app", "web")])?;
        let flow =
            ["explain", "--datapath", "--from", "203.0.113.1", "--to", "203.0.113.2", "--port", "tcp/1"];
        let answer = fleet.node(1).weft(&flow)?;
        assert!(answer.stderr.contains("is an endpoint of this node"), "{}", answer.stderr);
        let labels = ["explain", "--datapath", "--from", "web", "--to", "app=api", "--port", "tcp/1"];
        let answer = fleet.node(1).weft(&labels)?;
        assert!(answer.stderr.contains("app=api has no address"), "{}", answer.stderr);
        Ok(())
    })
}
