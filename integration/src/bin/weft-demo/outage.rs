//! Live: a part of Weft is ended under traffic and started again; the kernel goes on judging.
use anyhow::{Context, Result};
use serde::Serialize;
use weft_integration::{
    fleet::Fleet,
    traffic::{Conversation, DeniedProbes, EchoStream, Flow, Outcome, Protocol, try_all},
};

use crate::say;

/// Of `api` and `db`.
const NODE: usize = 2;
const STATISTICS: u16 = 8125;
const CONVERSATION: u16 = 8082;
/// No policy opens it, and the front is denied all of `db`.
const DENIED: u16 = 9125;
/// Echoes on each stream while the part is gone, and again after it is back.
const ECHOES: u64 = 300;

/// What is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Daemon,
    Controller,
    Etcd,
}

#[derive(Debug, Serialize)]
pub(crate) struct Outage {
    pub(crate) established_survived: bool,
    pub(crate) packets_lost: u64,
    pub(crate) denied_stayed_denied: bool,
}

impl Outage {
    pub(crate) fn as_expected(&self) -> bool {
        self.established_survived && self.packets_lost == 0 && self.denied_stayed_denied
    }
}

impl Part {
    fn what_happens(self) -> &'static str {
        match self {
            Self::Daemon => "n2's daemon is killed with SIGKILL",
            Self::Controller => "the controller is stopped",
            Self::Etcd => "etcd is killed with SIGKILL",
        }
    }

    fn end(self, fleet: &mut Fleet) -> Result<()> {
        match self {
            Self::Daemon => fleet.node_mut(NODE).kill(),
            Self::Controller => {
                let status = fleet.controller_mut().terminate()?;
                anyhow::ensure!(status.success(), "the controller ended with {status}");
                Ok(())
            }
            Self::Etcd => fleet.controller_mut().etcd()?.kill(0),
        }
    }

    /// Starts it again, and returns when it is back.
    fn start(self, fleet: &mut Fleet) -> Result<()> {
        match self {
            Self::Daemon => fleet.node_mut(NODE).run()?,
            Self::Controller => fleet.controller_mut().run()?,
            Self::Etcd => fleet.controller_mut().etcd()?.restart(0)?,
        }
        fleet.wait_for_controller()?;
        fleet.wait_for_nodes()
    }
}

pub(crate) fn show(fleet: &mut Fleet, part: Part) -> Result<Outage> {
    let traffic = if part == Part::Daemon {
        ", while web talks to api over TCP, bare and api send db statistics over UDP, and web tries db, which denies it"
    } else {
        ", under the same traffic"
    };
    say(&format!("{}{traffic}", part.what_happens()));
    let talks = conversations(fleet)?;
    let streams = streams(fleet)?;
    let probes = probes(fleet)?;
    EchoStream::all_more(&streams, ECHOES / 3)?;
    part.end(fleet)?;
    let dead = talks.each_ref().map(Conversation::mark);
    EchoStream::all_more(&streams, ECHOES)?;
    for (talk, mark) in talks.iter().zip(dead) {
        talk.passes_after(mark)?;
    }
    let new_flows_judged = new_flows_are_judged(fleet)?;
    say("  it is gone: everything goes on, and new flows are judged; it is started again");
    part.start(fleet)?;
    let alive = talks.each_ref().map(Conversation::mark);
    EchoStream::all_more(&streams, ECHOES)?;
    let survived =
        talks.iter().zip(alive).map(|(talk, mark)| talk.passes_after(mark)).collect::<Result<Vec<_>>>();
    count(survived.is_ok(), new_flows_judged, streams, probes)
}

fn count(
    survived: bool,
    judged: bool,
    streams: Vec<EchoStream>,
    probes: Vec<DeniedProbes>,
) -> Result<Outage> {
    let echoes = streams.into_iter().map(EchoStream::stop).collect::<Result<Vec<_>>>()?;
    let denied = probes.into_iter().map(DeniedProbes::stop).collect::<Result<Vec<_>>>()?;
    let sent: u64 = echoes.iter().map(|echoes| echoes.sent).sum();
    let packets_lost = echoes.iter().map(weft_integration::traffic::Echoes::lost).sum();
    let gap = echoes.iter().map(|echoes| echoes.longest_gap).max().context("no stream")?;
    let (tried, arrived) =
        denied.iter().fold((0, 0), |(tried, arrived), probe| (tried + probe.0, arrived + probe.1));
    say(&format!(
        "  {packets_lost} of {sent} packets lost, longest gap {:.1} ms; {arrived} of {tried} denied packets arrived",
        gap.as_secs_f64() * 1e3
    ));
    Ok(Outage {
        established_survived: survived,
        packets_lost,
        denied_stayed_denied: arrived == 0 && tried > 0 && judged,
    })
}

fn conversations(fleet: &Fleet) -> Result<[Conversation; 2]> {
    let (web, api) = (fleet.party("web")?, fleet.party("api")?);
    let talk =
        |family| Conversation::establish(&web.namespace, &api.namespace, api.address(family)?, CONVERSATION);
    let talks = [talk(4)?, talk(6)?];
    for talk in &talks {
        talk.passes_after(talk.mark())?;
    }
    Ok(talks)
}

/// From another node and on the same one, both families.
fn streams(fleet: &Fleet) -> Result<Vec<EchoStream>> {
    let db = fleet.party("db")?;
    let mut streams = Vec::new();
    for from in ["bare", "api"] {
        for family in [4, 6] {
            let to = (db.address(family)?, STATISTICS).into();
            streams.push(EchoStream::start(&fleet.party(from)?.namespace, to));
        }
    }
    Ok(streams)
}

fn probes(fleet: &Fleet) -> Result<Vec<DeniedProbes>> {
    let (web, db) = (fleet.party("web")?, fleet.party("db")?);
    let families = [(4, DENIED), (6, DENIED + 1)];
    let start = |(family, port)| {
        DeniedProbes::start(&web.namespace, &db.namespace, (db.address(family)?, port).into())
    };
    families.into_iter().map(start).collect()
}

/// While the part is gone, a new allowed connection is made and a denied one is not.
fn new_flows_are_judged(fleet: &Fleet) -> Result<bool> {
    let api = fleet.party("api")?;
    let flow = |from, family| {
        let from = fleet.party(from)?.namespace.clone();
        Ok::<_, anyhow::Error>(Flow { from, to: api.address(family)?, protocol: Protocol::Http(8080) })
    };
    let outcomes = try_all(&[flow("web", 4)?, flow("web", 6)?, flow("bare", 4)?, flow("bare", 6)?])?;
    Ok(outcomes == [Outcome::Allow, Outcome::Allow, Outcome::Deny, Outcome::Deny])
}
