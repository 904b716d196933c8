//! What happens to a fleet: operators and workloads come and go, machines, processes and connections fail.
use std::{io, net::IpAddr};

use tonic::Request;
use weft_noded::{daemon::Core, health::targets::targets};
use weft_proto::v1::{self, operator_service_server::OperatorService};

use crate::{
    kernel::Mishap,
    node, operator,
    world::{Controller, Due, World},
};

/// How long an operator waits.
const OPERATOR_PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// One event, by chance.
pub(crate) async fn something_happens(world: &mut World) -> io::Result<()> {
    match world.chance.within(0..100) {
        0..14 => apply(world),
        14..22 => submit(world, operator::ways(&world.chance)),
        22..28 => delete(world),
        28..46 => attach(world),
        46..55 => detach(world),
        55..61 => relabel(world),
        61..64 => probe(world),
        64..70 => part_link(world),
        70..74 => cut(world),
        74..77 => part_store(world),
        77..81 => kill_controller(world),
        81..86 => kill_daemon(world),
        86..89 => fall_behind(world),
        89..92 => slow(world),
        92..94 => world.compact().await,
        94..95 => change_config(world),
        95..97 => world.add_node().await?,
        97..98 => reboot(world).await,
        _ => kernel_error(world),
    }
    Ok(())
}

// ---- What operators do ----

fn some_operator(world: &World) -> Option<weft_controller::api::Operator> {
    let serving: Vec<_> = world.controllers.iter().filter_map(Controller::operator).collect();
    world.chance.pick(&serving).cloned()
}

fn apply(world: &mut World) {
    submit(world, operator::objects(&world.chance));
}

fn submit(world: &World, objects: Vec<v1::Object>) {
    let Some(operator) = some_operator(world) else { return };
    let history = world.history.clone();
    let texts: Vec<String> = objects.iter().map(text).collect();
    tokio::spawn(async move {
        let request = v1::ApplyRequest { objects, ..v1::ApplyRequest::default() };
        let applied = tokio::time::timeout(OPERATOR_PATIENCE, operator.apply(Request::new(request))).await;
        let outcome = match applied {
            Ok(Ok(response)) => format!("applied at revision {}", response.into_inner().revision),
            Ok(Err(status)) => format!("not applied ({})", status.message()),
            Err(_) => "no answer".to_owned(),
        };
        history.note("operator", format!("{outcome}: {}", texts.join("; ")));
    });
}

fn text(object: &v1::Object) -> String {
    match &object.kind {
        Some(v1::object::Kind::Policy(policy)) => weft_shared::policy::parse::policy(policy)
            .map_or_else(|_| "wrong".to_owned(), |policy| format!("{policy:?}")),
        other => format!("{other:?}"),
    }
}

/// A CIDR set that a policy means by its name is not deleted.
fn delete(world: &mut World) {
    let Some(operator) = some_operator(world) else { return };
    let (kind, name) = operator::some_name(&world.chance);
    let history = world.history.clone();
    tokio::spawn(async move {
        let request = v1::DeleteRequest { kind: kind.into(), name: name.clone(), if_revision: None };
        let deleted = tokio::time::timeout(OPERATOR_PATIENCE, operator.delete(Request::new(request))).await;
        let outcome = deleted.map(|deleted| deleted.map(|response| response.into_inner().revision));
        history.note("operator", format!("deletes {name}: {}", short(&outcome)));
    });
}

fn short(outcome: &Result<Result<u64, tonic::Status>, tokio::time::error::Elapsed>) -> String {
    match outcome {
        Ok(Ok(revision)) => format!("revision {revision}"),
        Ok(Err(status)) => status.message().to_owned(),
        Err(_) => "no answer".to_owned(),
    }
}

fn change_config(world: &mut World) {
    let mut config = weft_controller::fleet_config::default();
    if let Some(metadata) = &mut config.metadata {
        metadata.uid.clear();
    }
    operator::change_config(&world.chance, &mut config);
    submit(world, vec![v1::Object { kind: Some(v1::object::Kind::FleetConfig(config)) }]);
}

// ---- What workloads do ----

/// A node whose daemon runs.
fn some_core(world: &World) -> Option<(String, Core)> {
    let running =
        world.nodes.iter().filter_map(|node| Some((node.name.clone(), node.daemon.as_ref()?.core.clone())));
    world.chance.pick(&running.collect::<Vec<_>>()).cloned()
}

fn some_name(world: &World) -> String {
    format!("workload-{}", world.chance.within(0..8))
}

fn attach(world: &mut World) {
    let Some((node, core)) = some_core(world) else { return };
    let (name, labels, history) = (some_name(world), operator::labels(&world.chance), world.history.clone());
    // At times one asks for the address that another has just left.
    let left =
        world.shared.ledger().addresses(|_| true).map(|(address, _)| address.to_string()).collect::<Vec<_>>();
    let asked = if world.chance.percent(15) { world.chance.pick(&left).cloned() } else { None };
    tokio::spawn(async move {
        let spec = node::workload(&name, &labels, asked.into_iter().collect());
        let outcome = match core.attach(spec).await {
            Ok(Ok(endpoint)) => format!("attaches {name} {labels:?} at {}", endpoint.addresses.join(", ")),
            Ok(Err(error)) => format!("does not attach {name}: {error}"),
            Err(gone) => gone.to_string(),
        };
        history.note(node, outcome);
    });
}

fn detach(world: &mut World) {
    let Some((node, core)) = some_core(world) else { return };
    let (name, history) = (some_name(world), world.history.clone());
    tokio::spawn(async move {
        if let Ok(outcome) = core.detach(name.clone()).await
            && outcome != Ok(false)
        {
            history.note(node, format!("detaches {name}: {outcome:?}"));
        }
    });
}

/// The same name comes again at once, as another workload.
fn relabel(world: &mut World) {
    let Some((node, core)) = some_core(world) else { return };
    let (name, labels, history) = (some_name(world), operator::labels(&world.chance), world.history.clone());
    tokio::spawn(async move {
        if core.detach(name.clone()).await == Ok(Ok(true)) {
            let again = core.attach(node::workload(&name, &labels, Vec::new())).await;
            history.note(
                node,
                format!(
                    "{name} is {labels:?} now ({})",
                    if matches!(again, Ok(Ok(_))) { "attached" } else { "failed" }
                ),
            );
        }
    });
}

/// A node's probes find each backend of a service as chance has it.
fn probe(world: &mut World) {
    let mut probed = Vec::new();
    for node in &world.nodes {
        let Some(daemon) = &node.daemon else { continue };
        let services = daemon.core.probed().borrow().clone();
        probed.extend(services.iter().map(|(name, service)| {
            (node.name.clone(), daemon.core.clone(), name.clone(), targets(service, &node.name))
        }));
    }
    let Some((node, core, service, targets)) = world.chance.pick(&probed).cloned() else { return };
    let found = |(address, port): &(IpAddr, u16)| v1::BackendHealth {
        address: address.to_string(),
        port: (*port).into(),
        health: if world.chance.percent(50) { v1::Health::Healthy } else { v1::Health::Unhealthy }.into(),
        ..v1::BackendHealth::default()
    };
    let health = v1::ServiceHealth { service, backends: targets.keys().map(found).collect() };
    world.history.note(node, format!("finds {health:?}"));
    tokio::spawn(async move { core.found(vec![health]).await });
}

// ---- Faults ----

fn some_link(world: &World) -> Option<(String, String)> {
    let node = world.chance.pick(&world.nodes)?.name.clone();
    Some((node, world.chance.pick(&world.controllers)?.name.clone()))
}

fn part_link(world: &mut World) {
    let Some((node, controller)) = some_link(world) else { return };
    world.history.note(&node, format!("cannot reach {controller}"));
    world.network.set_link(&node, &controller, false);
    world.after(world.chance.milliseconds(100..12_000), Due::Link { node, controller });
}

fn cut(world: &mut World) {
    let Some((node, controller)) = some_link(world) else { return };
    world.history.note(&node, format!("its connection to {controller} is reset"));
    world.network.cut(&node, &controller);
}

fn part_store(world: &mut World) {
    let index = world.chance.below(world.controllers.len());
    world.part_from_store(index, true);
    world.after(world.chance.milliseconds(100..8000), Due::StoreOf(index));
}

/// A controller hears nothing of what is stored, until history is cut past it.
fn fall_behind(world: &mut World) {
    let index = world.chance.below(world.controllers.len());
    world.stall_watch(index);
    world.after(world.chance.milliseconds(200..6000), Due::WatchOf(index));
}

fn kill_controller(world: &mut World) {
    let index = world.chance.below(world.controllers.len());
    if world.controllers[index].runs() {
        world.kill_controller(index);
        world.after(world.chance.milliseconds(50..5000), Due::Controller(index));
    }
}

/// At once, or in the middle of the next write of the kernel; with its disk, at times without.
fn kill_daemon(world: &mut World) {
    let index = world.chance.below(world.nodes.len());
    let node = &mut world.nodes[index];
    let Some(daemon) = &node.daemon else { return };
    if world.chance.percent(60) {
        let after = u32::try_from(world.chance.within(0..12)).unwrap_or_default();
        world.history.note(&node.name, format!("its daemon will die after {after} more steps"));
        daemon.power.expect(Some(Mishap::Crash { after }));
        return;
    }
    let name = node.name.clone();
    world.kill_daemon(index);
    if world.chance.percent(25) {
        world.history.note(&name, "its desired state is lost");
        if let Err(error) = world.nodes[index].lose_disk() {
            world.history.violated(error);
        }
    }
    world.after(world.chance.milliseconds(0..4000), Due::Daemon(name));
}

async fn reboot(world: &mut World) {
    let index = world.chance.below(world.nodes.len());
    let name = world.nodes[index].name.clone();
    world.history.note(&name, "reboots");
    world.nodes[index].reboot();
    world.network.node_died(&name);
    world.start_daemon(index).await;
}

fn kernel_error(world: &mut World) {
    let after = u32::try_from(world.chance.within(0..12)).unwrap_or_default();
    let Some(node) = world.chance.pick(&world.nodes) else { return };
    if let Some(daemon) = &node.daemon {
        world.history.note(&node.name, format!("its kernel will refuse once after {after} more steps"));
        daemon.power.expect(Some(Mishap::Error { after }));
    }
}

fn slow(world: &mut World) {
    let Some(node) = world.chance.pick(&world.nodes).map(|node| node.name.clone()) else { return };
    let by = world.chance.milliseconds(100..1500);
    world.history.note(&node, format!("everything takes it {by:?} longer"));
    world.network.set_slow(&node, by);
    world.after(world.chance.milliseconds(1000..10_000), Due::Quick(node));
}
