//! Rules of nftables that translate services' addresses, as on hosts that have one for each service, and as a map.

use std::{io::Write as _, net::Ipv4Addr, process::Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{packets::FRONTEND, routed::BACKEND};
use crate::{bench::datapath::packets::PORT, fleet::tool};

/// In the thread's network namespace.
pub(super) fn apply(ruleset: &str) -> Result<()> {
    let mut nft = tool("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped());
    let mut nft = nft.spawn().context("start nft (nftables)")?;
    nft.stdin.take().context("its input is a pipe")?.write_all(ruleset.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft did not take the rules");
    Ok(())
}

/// Services' addresses, the one that is called last.
fn called_last(number: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..number).rev().map(|index| Ipv4Addr::from(u32::from(FRONTEND) + index))
}

/// A rule for each.
pub(super) fn rules(number: u32) -> String {
    let rule = |address| format!("ip daddr {address} tcp dport {PORT} dnat to {BACKEND}\n");
    chain("", &called_last(number).map(rule).collect::<String>())
}

/// One rule.
pub(super) fn map(number: u32) -> String {
    let element = |address| format!("{address} . {PORT} : {} . {}", BACKEND.ip(), BACKEND.port());
    let elements: Vec<String> = called_last(number).map(element).collect();
    let types = "ipv4_addr . inet_service : ipv4_addr . inet_service";
    let map = format!("map services {{\ntype {types}\nelements = {{ {} }}\n}}\n", elements.join(", "));
    chain(&map, "dnat ip to ip daddr . tcp dport map @services\n")
}

fn chain(map: &str, rules: &str) -> String {
    let hook = "type nat hook prerouting priority dstnat";
    format!("table ip weft-bench {{\n{map}chain prerouting {{\n{hook}\n{rules}}}\n}}\n")
}
