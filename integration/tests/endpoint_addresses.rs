//! Promise: an endpoint gets an address of its own out of its node's prefixes, or a refusal that says why.
use anyhow::Result;
use weft_integration::fleet::{Fleet, scenario};

/// Asks for an address; what `weft` said and its exit code.
fn ask(fleet: &Fleet, name: &str, address: &str) -> Result<(Option<i32>, String)> {
    let namespace = fleet.bare_namespace(name)?;
    let netns = format!("/run/netns/{}", namespace.name());
    let arguments = [
        "endpoint",
        "add",
        name,
        "--netns",
        &netns,
        "--address",
        address,
        "--label",
        "app=any",
        "--timeout",
        "20s",
    ];
    let answer = fleet.node(1).weft(&arguments)?;
    Ok((answer.code, answer.stderr))
}

#[test]
fn an_address_outside_the_nodes_prefixes_or_already_taken_is_refused_with_its_reason() -> Result<()> {
    scenario("addresses", 1, |fleet| {
        let first = fleet.attach(1, "first", &[("app", "any")])?;
        for (number, address) in ["10.99.0.1", "fd00:99::1", "192.0.2.11"].into_iter().enumerate() {
            let (code, said) = ask(fleet, &format!("outside{number}"), address)?;
            assert_eq!(code, Some(1), "{address}: {said}");
            assert!(said.contains(address), "{said}");
        }
        for (number, address) in first.addresses.iter().enumerate() {
            let (code, said) = ask(fleet, &format!("taken{number}"), &address.to_string())?;
            assert_eq!(code, Some(1), "{address}: {said}");
            assert!(said.contains(&address.to_string()), "{said}");
            assert!(said.contains("taken") || said.contains("first"), "{said}");
        }
        // Nothing of the refused ones stayed.
        let list = fleet.node(1).weft(&["endpoint", "list", "--output", "json"])?.success()?.json()?;
        assert_eq!(list["items"].as_array().map(Vec::len), Some(1), "{list}");
        Ok(())
    })
}

#[test]
fn a_name_that_another_node_has_is_refused() -> Result<()> {
    scenario("names", 2, |fleet| {
        fleet.attach(1, "only", &[("app", "any")])?;
        let namespace = fleet.bare_namespace("second")?;
        let netns = format!("/run/netns/{}", namespace.name());
        let answer =
            fleet.node(2).weft(&["endpoint", "add", "only", "--netns", &netns, "--timeout", "20s"])?;
        assert_eq!(answer.code, Some(1), "{}", answer.stderr);
        assert!(answer.stderr.contains("only"), "{}", answer.stderr);
        Ok(())
    })
}
