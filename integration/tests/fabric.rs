//! The ground that fleets stand on: hosts reach each other over the fabric, and nothing stays behind.
use std::{fs, net::IpAddr, process::Command};

use anyhow::Result;
use weft_integration::{
    fleet::{Fabric, Home, Host, Place, namespaces},
    traffic::{Conversation, EchoStream, Flow, Namespace, Outcome, Protocol, TcpServer, UdpServer, try_all},
};

fn two_hosts(test: &str) -> Result<(Host, Host, Home)> {
    let home = Home::create(test)?;
    let fabric = Fabric::create(&home)?;
    let first = fabric.plug(&home, "n1", Place::node(1))?;
    let second = fabric.plug(&home, "n2", Place::node(2))?;
    Ok((first, second, home))
}

fn addresses(place: Place) -> [IpAddr; 2] {
    [place.v4().into(), place.v6().into()]
}

fn flows(from: &Namespace, place: Place, protocols: &[Protocol]) -> Vec<Flow> {
    let each =
        addresses(place).into_iter().flat_map(|to| protocols.iter().map(move |protocol| (to, *protocol)));
    each.map(|(to, protocol)| Flow { from: from.clone(), to, protocol }).collect()
}

#[test]
fn every_protocol_passes_between_hosts_in_both_families() -> Result<()> {
    let (first, second, _home) = two_hosts("passes")?;
    let (from, to) = (first.namespace()?, second.namespace()?);
    let _tcp = TcpServer::start(&to, 8080, "n2")?;
    let _udp = UdpServer::start(&to, 5353)?;
    let protocols = [Protocol::Tcp(8080), Protocol::Http(8080), Protocol::Udp(5353), Protocol::Echo];
    let flows = flows(&from, Place::node(2), &protocols);
    let seen = try_all(&flows)?;
    assert!(seen.iter().all(|outcome| *outcome == Outcome::Allow), "{seen:?}");
    Ok(())
}

#[test]
fn what_nobody_answers_is_seen_as_denied_and_a_refusal_as_broken() -> Result<()> {
    let (first, _second, _home) = two_hosts("silence")?;
    let from = first.namespace()?;
    let refused = Flow { from: from.clone(), to: Place::node(2).v4().into(), protocol: Protocol::Tcp(9) };
    assert!(matches!(refused.attempt()?, Outcome::Broken(_)));
    // The neighbour is known, so nothing fails early; it just takes no packets.
    for to in addresses(Place::node(2)) {
        let to = to.to_string();
        first.run("ip", &["neigh", "replace", &to, "lladdr", "02:00:00:00:00:01", "dev", "uplink0"])?;
    }
    let seen =
        try_all(&flows(&from, Place::node(2), &[Protocol::Tcp(8080), Protocol::Udp(5353), Protocol::Echo]))?;
    assert!(seen.iter().all(|outcome| *outcome == Outcome::Deny), "{seen:?}");
    Ok(())
}

#[test]
fn a_stream_counts_the_echoes_that_a_cut_wire_swallows() -> Result<()> {
    let (first, second, _home) = two_hosts("stream")?;
    let (from, to) = (first.namespace()?, second.namespace()?);
    let _server = UdpServer::start(&to, 7000)?;
    let address: IpAddr = Place::node(2).v6().into();
    let whole = EchoStream::start(&from, (address, 7000).into());
    EchoStream::all_more(std::slice::from_ref(&whole), 50)?;
    let whole = whole.stop()?;
    assert!(whole.sent >= 50 && whole.lost() == 0, "{whole:?}");

    let cut = EchoStream::start(&from, (address, 7000).into());
    EchoStream::all_more(std::slice::from_ref(&cut), 10)?;
    let mac = "02:00:00:00:00:01";
    first.run("ip", &["neigh", "replace", &address.to_string(), "lladdr", mac, "dev", "uplink0"])?;
    let before = cut.sent();
    weft_integration::wait::until_true("the stream goes on", weft_integration::limits::READY, || {
        Ok(cut.sent() >= before + 20)
    })?;
    let cut = cut.stop()?;
    assert!(cut.lost() >= 19, "{cut:?}");
    Ok(())
}

#[test]
fn a_conversation_says_whether_messages_written_after_a_mark_arrived() -> Result<()> {
    let (first, second, _home) = two_hosts("talk")?;
    let (from, to) = (first.namespace()?, second.namespace()?);
    let talk = Conversation::establish(&from, &to, Place::node(2).v4().into(), 7001)?;
    talk.passes_after(talk.mark())?;
    first.run("ip", &["link", "set", "uplink0", "down"])?;
    let mark = talk.mark();
    talk.speaks_after(mark, 50)?;
    assert_eq!(talk.passed_since(mark), (false, false));
    Ok(())
}

#[test]
fn a_fleet_leaves_nothing_behind_and_a_killed_ones_leftovers_are_swept() -> Result<()> {
    let ours = |home: &str| Ok::<_, anyhow::Error>(namespaces()?.iter().any(|name| name.starts_with(home)));
    let (_first, _second, home) = two_hosts("clean")?;
    let (name, folder) = (home.name().to_owned(), home.path().to_path_buf());
    assert!(ours(&name)?);
    drop(home);
    assert!(!ours(&name)? && !folder.exists());

    // What a run leaves that was killed: a namespace, a process in it, and a lock that nobody holds.
    let left = folder.with_file_name("weft-killed-1-0");
    fs::create_dir_all(&left)?;
    fs::write(left.join("lock"), "")?;
    let run = |arguments: &[&str]| Command::new("ip").arg("netns").args(arguments).status();
    assert!(run(&["add", "weft-killed-1-0-n1"])?.success());
    let mut process =
        Command::new("ip").args(["netns", "exec", "weft-killed-1-0-n1", "sleep", "600"]).spawn()?;
    let _next = Home::create("next")?;
    assert!(!ours("weft-killed-1-0")? && !left.exists());
    assert!(!process.wait()?.success());
    Ok(())
}
