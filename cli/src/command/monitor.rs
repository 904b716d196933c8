//! `weft monitor`: what this node's kernel drops and allows, as it happens.
mod identities;
mod line;

pub(super) use line::rule;

use clap::builder::PossibleValuesParser;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Request};
use weft_proto::v1::{self, monitor_response::Item};
use weft_shared::layout::{Point, Reason};

use super::Global;
use crate::{
    arguments::{Socket, parse_duration, parse_monitor_party, parse_monitor_port},
    client,
    failure::Failure,
    output::{note, print},
};

use identities::Identities;

/// Show what this node drops, with --verdicts what policy says of flows, and with --audit what audited policies would
/// decide otherwise, as it happens
///
/// Drops (and audits) that look alike (all but the source's port) are shown at most once a second, with their number. An event is shown
/// if it passes every filter that is given; of a filter that is given several times, any value will do. Labels of
/// endpoints of other nodes are asked of the controller, if it can be reached.
///
/// JSON: one line for each event, {at, verdict: dropped|allowed, reason, point, endpoint, source: {address, identity,
/// endpoint, labels, entity}, destination, protocolNumber, sourcePort, destinationPort, rules: [{direction, policy,
/// rule}], lengthBytes, packets, audit: {verdict, rule}}; and {lost: {inKernel, inStream}} where events were lost.
#[derive(Debug, clap::Args)]
pub(crate) struct Monitor {
    /// Dropped packets, whatever the reason (the default)
    #[arg(long)]
    drops: bool,
    /// What policy says of flows: new ones that are allowed, and packets that it drops
    #[arg(long)]
    verdicts: bool,
    /// Packets on which policies in audit mode would decide otherwise: dropped ones that they would allow, and flows that pass
    /// and that they would drop
    #[arg(long = "audit")]
    audits: bool,
    /// Events of this endpoint of this node, at either end
    #[arg(long = "endpoint", value_name = "NAME")]
    endpoints: Vec<String>,
    /// Sent by an endpoint of this node, labels, an address or prefix, identity:N, or a class such as world
    #[arg(long, value_name = "X", value_parser = parse_monitor_party)]
    from: Vec<v1::MonitorParty>,
    /// Sent to, as --from
    #[arg(long, value_name = "Y", value_parser = parse_monitor_party)]
    to: Vec<v1::MonitorParty>,
    /// tcp, tcp/443, udp/53, icmp/8, proto/47…; the port at either end
    #[arg(long = "port", value_name = "PROTOCOL[/PORT]", value_parser = parse_monitor_port)]
    ports: Vec<v1::MonitorPort>,
    /// Dropped for this reason
    #[arg(long = "reason", value_name = "REASON", value_parser = reasons(), hide_possible_values = true)]
    reasons: Vec<String>,
    /// Seen by this kernel program
    #[arg(long = "point", value_name = "PROGRAM", value_parser = points())]
    points: Vec<String>,
    /// With this identity at either end
    #[arg(long = "identity", value_name = "NUMBER")]
    identities: Vec<u32>,
    /// Decided by a rule of this policy
    #[arg(long = "policy", value_name = "NAME")]
    policies: Vec<String>,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after this time, such as 30s or 5m; with --count, exit 3 if there were not as many
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    duration: Option<std::time::Duration>,
    #[command(flatten)]
    socket: Socket,
}

fn reasons() -> PossibleValuesParser {
    let drops = Reason::ALL.iter().filter(|reason| reason.is_drop());
    PossibleValuesParser::new(drops.map(|reason| reason.name()).collect::<Vec<_>>())
}

fn points() -> PossibleValuesParser {
    PossibleValuesParser::new(Point::ALL.iter().map(|point| point.name()).collect::<Vec<_>>())
}

impl Monitor {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let mut node = client::node_local(&self.socket.path).await?;
        let mut identities = Identities::new(&global.server);
        let until = self.duration.map(|duration| Instant::now() + duration);
        let count = self.count;
        let request = self.request(&mut identities).await;
        // Without a deadline: it ends when the operator ends it.
        let mut answers = match node.client.monitor(Request::new(request)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) => return Err(node.remote.failure(&status)),
        };
        note("monitoring");
        let mut shown = 0;
        while count.is_none_or(|count| shown < count) {
            let answer = tokio::select! {
                answer = answers.message() => answer,
                () = at(until) => return in_time(count, shown),
            };
            match answer {
                Ok(Some(answer)) => match answer.item {
                    Some(Item::Event(mut event)) => {
                        identities.label(&mut event).await;
                        print(&line::event(global.output, &event))?;
                        shown += 1;
                    }
                    Some(Item::Lost(lost)) => line::lost(global.output, &lost)?,
                    None => {}
                },
                Ok(None) => return Err(Failure::Failed("the daemon ended the stream: it stops".to_owned())),
                Err(status) if status.code() == Code::Unavailable => {
                    return Err(Failure::Failed(format!("the daemon is gone: {}", status.message())));
                }
                Err(status) => return Err(node.remote.failure(&status)),
            }
        }
        Ok(())
    }

    async fn request(self, identities: &mut Identities) -> v1::MonitorRequest {
        v1::MonitorRequest {
            endpoints: self.endpoints,
            drops: self.drops,
            verdicts: self.verdicts,
            audits: self.audits,
            from: identities.with_selected(self.from).await,
            to: identities.with_selected(self.to).await,
            ports: self.ports,
            reasons: self.reasons,
            points: self.points,
            identities: self.identities,
            policies: self.policies,
        }
    }
}

async fn at(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => std::future::pending().await,
    }
}

/// The time is over: fine, unless a number of events was waited for.
fn in_time(count: Option<u64>, shown: u64) -> Result<(), Failure> {
    match count {
        None => Ok(()),
        Some(count) => Err(Failure::TimedOut(format!("{shown} of {count} events in that time"))),
    }
}
