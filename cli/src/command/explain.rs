//! `weft explain`: the verdict on a flow, tier by tier, and the rule that decided.
use std::{
    fmt::Write,
    path::{Path, PathBuf},
};

use weft_proto::v1;

use super::{Global, monitor};
use crate::{
    arguments::{parse_labels, parse_port},
    client::{self, request},
    failure::Failure,
    manifest,
    output::{count, failsafe, frontends, place, table},
};

/// Say what policy makes of a flow, tier by tier, and which rule decides
///
/// Where it would be another verdict if all audit policies were enforced, that is said; and where a node is judged, what no
/// host policy can close.
///
/// With --datapath, on a node, the node's own kernel programs judge a made packet as well, the first of such a flow: by the
/// tables that they judge all packets by, and without leaving anything in flows, counters or events.
///
/// Where Y and the port are a service's frontend, the verdict is on each backend that may get the flow; with --datapath, the
/// backend that a packet of this client gets is said, from the table in this node's kernel.
///
/// JSON: {verdict: allow|deny|varies, directions: [{direction, verdict, steps: [{tier, policy, rule, text, decided}], audit:
/// {verdict, step}}], from, to, revision, failsafe, fromAddress, toAddress, service}; service, of a call to one: {name, frontend,
/// refusal: no-backends|source|outside, node, backends: [{address, port, text, shareBasisPoints, verdict, directions}]}, and then
/// no directions beside it; with --datapath also datapath: {event, outcome, service: {slot, sourcePort, backend, choice:
/// hash|affinity|connection, atSockets, backends}}, the event as of `weft monitor`, backends as of `weft node service`.
#[derive(Debug, clap::Args)]
pub(crate) struct Explain {
    /// An endpoint, a node, an address, or labels: app=web,env=prod of an endpoint, node:role=gateway of a node
    #[arg(long, value_name = "X", value_parser = parse_party)]
    from: v1::Party,
    /// An endpoint, a node, an address, or labels: app=web,env=prod of an endpoint, node:role=gateway of a node
    #[arg(long, value_name = "Y", value_parser = parse_party)]
    to: v1::Party,
    /// tcp/443, udp/53, sctp/7, icmp/8, icmpv6/128, icmp/TYPE/CODE or proto/NUMBER
    #[arg(long, value_name = "PROTOCOL/PORT", value_parser = parse_port)]
    port: v1::FlowPort,
    /// Address family, where both ends have two
    #[arg(long, value_parser = clap::value_parser!(u32).range(4..=6))]
    family: Option<u32>,
    /// Try it in the kernel programs of this node, too; one end is an endpoint of this node, both have addresses
    #[arg(long)]
    datapath: bool,
    /// Port with which the client calls, for --datapath: the backend of a service depends on it
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), requires = "datapath")]
    source_port: Option<u16>,
    /// The socket of this node's daemon, for --datapath
    #[arg(long, env = "WEFT_SOCKET", value_name = "PATH", default_value = "/run/weft/noded.sock")]
    socket: PathBuf,
}

fn parse_party(text: &str) -> Result<v1::Party, String> {
    use v1::party::Party as P;
    let party = match text {
        "" => return Err("expected an endpoint, a node, an address, or labels".to_owned()),
        text if text.contains('=') => {
            let (labels, node) = match text.strip_prefix("node:") {
                Some(labels) => (labels, true),
                None => (text, false),
            };
            P::Labels(v1::LabelSet { labels: parse_labels(labels)?, node })
        }
        name => P::Name(name.to_owned()),
    };
    Ok(v1::Party { party: Some(party) })
}

impl Explain {
    pub(super) async fn run(self, global: &Global) -> Result<(), Failure> {
        let family = self.family.unwrap_or_default();
        if family == 5 {
            return Err(Failure::Usage("--family 5: expected 4 or 6".to_owned()));
        }
        let mut operator = client::operator(&global.server).await?;
        let port = self.port;
        let message =
            v1::ExplainRequest { from: Some(self.from), to: Some(self.to), port: Some(port), family };
        let answer = operator.client.explain(request(message)).await;
        let answer = answer.map_err(|status| operator.remote.failure(&status))?.into_inner();
        let judged = if self.datapath {
            Some(judge(&self.socket, &answer, port, self.source_port).await?)
        } else {
            None
        };
        let calls = answer.service.is_some();
        let people =
            || text(&answer) + &judged.as_ref().map(|judged| datapath(judged, calls)).unwrap_or_default();
        global.output.write(people, || {
            let mut value = manifest::answer("ExplainResponse", &answer);
            if let Some(judged) = &judged {
                value["datapath"] = manifest::answer("JudgeResponse", judged);
            }
            value
        })
    }
}

/// Asks this node's daemon to try the flow in the kernel.
async fn judge(
    socket: &Path,
    flow: &v1::ExplainResponse,
    port: v1::FlowPort,
    source_port: Option<u16>,
) -> Result<v1::JudgeResponse, Failure> {
    for (flag, party, address) in
        [("--from", &flow.from, &flow.from_address), ("--to", &flow.to, &flow.to_address)]
    {
        if address.is_empty() {
            return Err(Failure::Usage(format!(
                "--datapath: {flag} {party} has no address: expected an endpoint, a node or an address"
            )));
        }
    }
    let mut local = client::node_local(socket).await?;
    let message = v1::JudgeRequest {
        source: flow.from_address.clone(),
        destination: flow.to_address.clone(),
        protocol_number: port.protocol_number,
        port: port.port,
        source_port: source_port.map(Into::into),
    };
    let answer = local.client.judge(request(message)).await;
    Ok(answer.map_err(|status| local.remote.failure(&status))?.into_inner())
}

fn datapath(judged: &v1::JudgeResponse, calls: bool) -> String {
    let mut text = match &judged.service {
        Some(service) => call(judged, service),
        None if calls => "\nthis node's kernel: no service is there for this client\n".to_owned(),
        None => String::new(),
    };
    if judged.outcome.is_empty() {
        return text;
    }
    let event = judged.event.as_ref();
    let word = match event.map(v1::FlowEvent::verdict) {
        Some(v1::FlowVerdict::Dropped) => "deny",
        _ => "allow",
    };
    let at = event.map(|event| format!(" at {}", event.point)).unwrap_or_default();
    // Writing to a String never fails.
    let _ = writeln!(text, "\nthis node's kernel programs: {word} ({}{at})", judged.outcome);
    for rule in event.into_iter().flat_map(|event| &event.rules) {
        let _ = writeln!(text, "→ {}", monitor::rule(rule));
    }
    text
}

/// Which backend the client gets, by this node's table.
fn call(judged: &v1::JudgeResponse, called: &v1::JudgedCall) -> String {
    let mut text = format!("\nthis node's kernel, table {}:\n", called.slot);
    if let Some(backend) = &called.backend {
        let why = match called.choice() {
            v1::BackendChoice::Unspecified => "",
            v1::BackendChoice::Hash => ", by the hash of its addresses and ports",
            v1::BackendChoice::Affinity => ", which the client has had before",
            v1::BackendChoice::Connection => ", to which its connection goes already",
        };
        let (place, port) = (place(&backend.address, backend.port), called.source_port);
        let _ = writeln!(text, "packets from port {port} go to {place}{why}");
        if judged.outcome.is_empty() {
            text.push_str("(sent on by the uplink's program: no policy of this node judges it)\n");
        }
    }
    if called.backends.is_empty() {
        text.push_str("nobody takes new connections: they are rejected\n");
    }
    if called.at_sockets && !called.backends.is_empty() {
        let shares = called
            .backends
            .iter()
            .map(|one| format!("{} {}", place(&one.address, one.port), share(one.share_basis_points)));
        let shares: Vec<String> = shares.collect();
        let _ = writeln!(
            text,
            "processes in this node's cgroups get one for each connection: {}",
            shares.join(", ")
        );
    }
    text
}

fn text(answer: &v1::ExplainResponse) -> String {
    let mut text = String::new();
    // Writing to a String never fails.
    let _ = writeln!(text, "{} → {}: {}", answer.from, answer.to, verdict(answer.verdict()));
    match &answer.service {
        Some(called) => text.push_str(&service(answer, called)),
        None => text.push_str(&directions(&answer.directions, &answer.from, &answer.to)),
    }
    if let Some(entries) = &answer.failsafe {
        text.push('\n');
        text.push_str(&failsafe("held open on every node, whatever host policies say", &entries.items));
    }
    let _ = writeln!(text, "\nrevision {}", answer.revision);
    text
}

fn directions(directions: &[v1::DirectionVerdict], from: &str, to: &str) -> String {
    let mut text = String::new();
    for judged in directions {
        let (name, who) = match judged.direction() {
            v1::Direction::Egress => ("egress", from),
            v1::Direction::Ingress | v1::Direction::Unspecified => ("ingress", to),
        };
        let who = if judged.subject.is_empty() { who } else { &judged.subject };
        let _ = writeln!(text, "\n{name} of {who}: {}", verdict(judged.verdict()));
        for step in &judged.steps {
            let _ = writeln!(text, "  {}", line(step));
        }
        if let Some(v1::AuditVerdict { step: Some(step), .. }) = &judged.audit {
            let audit = judged.audit.as_ref().map_or(v1::Verdict::Unspecified, v1::AuditVerdict::verdict);
            let _ = writeln!(text, "  if audit policies were enforced: {}", verdict(audit));
            let _ = writeln!(text, "  {}", line(step));
        }
    }
    if directions.is_empty() {
        text.push_str("\nno end of this flow is judged\n");
    }
    text
}

/// Which service is called, and the verdict on each backend; of backends that are judged alike, the walk once.
fn service(answer: &v1::ExplainResponse, called: &v1::ExplainedService) -> String {
    let frontend = called.frontend.as_ref().map(std::slice::from_ref).map(frontends).unwrap_or_default();
    let all = called.backends.len();
    let allowed = called.backends.iter().filter(|one| one.verdict() == v1::Verdict::Allow).count();
    let says = match called.refusal() {
        v1::ServiceRefusal::Unspecified => {
            format!("allowed to {allowed} of {}", count(all, "backend", "backends"))
        }
        v1::ServiceRefusal::NoBackends => "rejected, no backend takes new connections".to_owned(),
        v1::ServiceRefusal::Source => "dropped, the service's source ranges leave the client out".to_owned(),
        v1::ServiceRefusal::Outside => "the frontend is not for clients outside of the fleet".to_owned(),
    };
    let mut text = format!("\nservice {}, frontend {frontend}: {says}\n", called.name);
    let node = match called.node.as_str() {
        "" => {
            "balanced by the node that it comes to, by whose place fewer may answer; with snat it stands in for the client elsewhere"
        }
        node => &format!("balanced by {node}"),
    };
    let _ = writeln!(text, "{node}\n");
    let rows = called.backends.iter().map(|one| {
        let place = place(&one.address, one.port);
        [place, one.text.clone(), share(one.share_basis_points), verdict(one.verdict()).to_owned()]
    });
    if all > 0 {
        text.push_str(&table(["BACKEND", "WHO", "SHARE", "VERDICT"], rows));
    }
    let mut told: Vec<&[v1::DirectionVerdict]> = Vec::new();
    for one in &called.backends {
        if !told.contains(&one.directions.as_slice()) {
            told.push(&one.directions);
            text.push_str(&directions(&one.directions, &answer.from, &one.text));
        }
    }
    text
}

fn share(basis_points: u32) -> String {
    format!("{:.2}%", f64::from(basis_points) / 100.0)
}

fn line(step: &v1::VerdictStep) -> String {
    let mark = if step.decided { "→" } else { " " };
    let tier = match step.tier() {
        v1::Tier::Unspecified => "default",
        v1::Tier::Admin => "admin",
        v1::Tier::Application => "application",
        v1::Tier::Baseline => "baseline",
    };
    let rule = match (step.policy.as_str(), step.rule.as_str()) {
        ("", _) => String::new(),
        (policy, "") => format!("{policy}: "),
        (policy, rule) => format!("{policy} / {rule}: "),
    };
    format!("{mark} {tier:<11}  {rule}{}", step.text)
}

fn verdict(verdict: v1::Verdict) -> &'static str {
    match verdict {
        v1::Verdict::Allow => "allow",
        v1::Verdict::Deny => "deny",
        v1::Verdict::Varies => "varies",
        v1::Verdict::Unspecified => "no verdict",
    }
}
