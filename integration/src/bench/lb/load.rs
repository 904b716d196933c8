//! Ten thousand services of a hundred backends each, from what the controllers send to tables in the kernel: how long it takes on
//! all processors, how much of them, and what the maps take.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Result, bail, ensure};
use nix::time::{ClockId, clock_gettime};
use prost::Message as _;
use tokio::time::Instant;
use weft_noded::{
    balance::{Balancer, Desired, tables::Services, view::Here},
    desired::{Key, Resource},
    kernel::{
        Datapath as _,
        object::{Object, Options as Load},
    },
    plan::diff::Sweep,
};
use weft_proto::v1::{self, ResourceType};
use weft_shared::layout::Config;

use super::Options;
use crate::bench::Figure;

const BACKENDS: u32 = 100;
const SLOTS: u32 = 16_381;
const TCP: u32 = 6;
const MEBIBYTE: f64 = 1_048_576.0;

pub(super) fn measure(options: &Options, say: impl Fn(&str)) -> Result<Vec<Figure>> {
    let services = options.services;
    let name = format!("services.load.{services}x{BACKENDS}");
    if !options.wants(&name) {
        return Ok(Vec::new());
    }
    say(&format!("{services} services of {BACKENDS} backends"));
    let mut object = Object::load(&Load { directory: None, config: Config::DEFAULT, flows_max: Some(1024) })?;
    let messages: Vec<(Key, Vec<u8>)> = (0..services).map(message).collect();
    let (wall, processors) = (Instant::now(), processor_time()?);
    load(&mut object, &messages)?;
    let (wall, processors) = (wall.elapsed(), processor_time()?.saturating_sub(processors));
    let there = object.read_services()?;
    let wanted = messages.len();
    ensure!((there.frontends.len(), there.tables.len()) == (wanted, wanted), "not all services are there");
    #[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^52")]
    let mebibytes = object.map_bytes()? as f64 / MEBIBYTE;
    Ok(vec![
        Figure::plain(&name, "s", &[wall.as_secs_f64()]),
        Figure::plain(format!("{name}.processors"), "s", &[processors.as_secs_f64()]),
        Figure::plain(format!("{name}.maps"), "MiB", &[mebibytes]),
    ])
}

/// As a daemon does it: parse, plan, write.
fn load(object: &mut Object, messages: &[(Key, Vec<u8>)]) -> Result<()> {
    let mut desired = Desired::new();
    for (key, bytes) in messages {
        let Resource::Service(service) = Resource::parse(key, bytes, 1)? else { bail!("no service") };
        desired.insert(key.name.clone(), service.into());
    }
    let plan = Balancer::new(Here::default()).plan(&desired, &Services::default(), Sweep::Remove);
    ensure!(plan.unrealised.is_empty(), "{:?}", plan.unrealised.first());
    Ok(object.write_services(&plan.steps)?)
}

/// Of this process, with all its threads.
fn processor_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// What a controller sends of a service. No two have a backend in common.
fn message(number: u32) -> (Key, Vec<u8>) {
    let address = |first, index| Ipv4Addr::from(u32::from(first) + index).to_string();
    let frontend = v1::NodeFrontend {
        address: address(Ipv4Addr::new(10, 96, 0, 0), number),
        port: 80,
        protocol: TCP,
        r#type: v1::FrontendType::Cluster.into(),
    };
    let backend = |index| v1::NodeBackend {
        address: address(Ipv4Addr::new(10, 128, 0, 0), number * BACKENDS + index),
        port: 8080,
        weight: 1,
        state: v1::BackendState::Active.into(),
        node: format!("n{}", index % 10),
        topology: String::new(),
        probed_by: Vec::new(),
    };
    let service = v1::NodeService {
        frontends: vec![frontend],
        backends: (0..BACKENDS).map(backend).collect(),
        algorithm: v1::Algorithm::Maglev.into(),
        internal_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        external_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        forwarding_mode: v1::ForwardingMode::Snat.into(),
        slots: SLOTS,
        ..v1::NodeService::default()
    };
    (Key { kind: ResourceType::Service, name: format!("service-{number}") }, service.encode_to_vec())
}
