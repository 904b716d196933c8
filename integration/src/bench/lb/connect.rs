//! What `connect()` costs through the socket programs, over the loopback device: to a service, and to what is none, beside a
//! process without programs that names the backend itself.

use std::{
    fs::File,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
};

use anyhow::Result;
use aya::programs::CgroupAttachMode;
use weft_noded::kernel::{
    cgroup::SOCKET_PROGRAMS,
    netns,
    object::{Object, Options as Load},
};
use weft_shared::layout::Config;

use super::{
    Options,
    client::{Cgroup, Route, compare, ip, listen},
    packets::{FRONTEND, SERVICES, serve},
};
use crate::{
    bench::{Figure, datapath::packets::PORT},
    traffic::Namespace,
};

const REFERENCE: &str = "ref.connect";

/// Where processes that call services are: socket programs with services, on a cgroup.
#[derive(Debug)]
pub(super) struct Balanced {
    /// Keeps the programs where they are.
    _object: Object,
    cgroup: Cgroup,
}

impl Balanced {
    /// [`FRONTEND`] is the service that leads to the backend.
    pub(super) fn load(name: &str, services: u32, backend: SocketAddr) -> Result<Self> {
        let cgroup = Cgroup::create(name)?;
        let config = Config { namespace_cookie: netns::cookie()?, ..Config::DEFAULT };
        let mut object = Object::load(&Load { directory: None, config, flows_max: Some(1024) })?;
        serve(&mut object, services, backend)?;
        let directory = File::open(cgroup.path())?;
        for name in SOCKET_PROGRAMS {
            object.socket_program(name)?.attach(&directory, CgroupAttachMode::Single)?;
        }
        Ok(Self { _object: object, cgroup })
    }

    pub(super) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }
}

/// The service's address.
pub(super) const CALLED: SocketAddrV4 = SocketAddrV4::new(FRONTEND, PORT);

pub(super) fn measure(options: &Options, say: impl Fn(&str)) -> Result<Vec<Figure>> {
    let wanted: Vec<_> = SERVICES
        .into_iter()
        .flat_map(|services| ["service", "other"].map(|called| (services, called)))
        .map(|(services, called)| (services, called, format!("sock.connect.{called}.services_{services}")))
        .filter(|(_, _, name)| options.wants(name))
        .collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    say("a loopback device and socket programs");
    let room = Namespace::unnamed("loopback")?;
    ip(&room, &["link set lo up".to_owned()])?;
    let mut ports = PORT + 1..;
    let mut backend = || SocketAddrV4::new(Ipv4Addr::LOCALHOST, ports.next().unwrap_or(PORT));
    let without = Cgroup::create("without")?;
    let at = backend();
    let mut reference = Route::new(REFERENCE, (&room, without.path()), at, listen(&room, at)?)?;
    // Routes go before the cgroups that they are in.
    let mut balanced = Vec::new();
    let mut routes = Vec::new();
    for (services, called, name) in wanted {
        let at = backend();
        let cgroup = format!("{called}-{services}");
        let programs = room.within(move || Balanced::load(&cgroup, services, at.into()))?;
        let to = if called == "service" { CALLED } else { at };
        routes.push(Route::new(name, (&room, programs.cgroup().path()), to, listen(&room, at)?)?);
        balanced.push(programs);
    }
    compare(&mut reference, &mut routes, options, say)
}
