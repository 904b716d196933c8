//! Connections from one network namespace to another one by way of a third, the node: nftables translates their destination
//! there, as on hosts that have a rule for each service; Weft does so at the client's socket, or in its program of tc on the
//! client's interface. Beside the same way without any translation.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use weft_noded::kernel::{object::Object, sysctl};

use super::{
    Options,
    client::{Cgroup, Route, compare, ip, listen},
    connect::{Balanced, CALLED},
    endpoints, nft,
    packets::SERVICES,
};
use crate::{
    bench::{
        Figure,
        datapath::packets::{GATEWAY_MAC, PORT},
    },
    traffic::Namespace,
};

const RULES: [u32; 3] = [1, 100, 10_000];
const REFERENCE: &str = "ref.connect.routed";

/// The server's place.
pub(super) const BACKEND: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 202, 0, 2), PORT);

/// Who translates.
#[derive(Clone, Copy, Debug)]
enum Translation {
    None,
    /// One rule for each service, of which the last is called.
    Rules(u32),
    /// One rule with a map.
    Map(u32),
    /// Weft, at the client's socket.
    Socket(u32),
    /// Weft, at the client's interface.
    Packets(u32),
}

impl Translation {
    fn all() -> Vec<Self> {
        let nft = RULES.map(Self::Rules).into_iter().chain(RULES.map(Self::Map));
        let weft = SERVICES.map(Self::Socket).into_iter().chain(SERVICES.map(Self::Packets));
        nft.chain(weft).collect()
    }

    fn name(self) -> String {
        match self {
            Self::None => REFERENCE.to_owned(),
            Self::Rules(number) => format!("nft.dnat.rules_{number}"),
            Self::Map(number) => format!("nft.dnat.map_{number}"),
            Self::Socket(services) => format!("sock.connect.routed.services_{services}"),
            Self::Packets(services) => format!("tc.connect.services_{services}"),
        }
    }
}

/// A client, a node, and a server.
struct World {
    client: Namespace,
    node: Namespace,
    server: Namespace,
}

/// What translates, as long as this is held.
#[derive(Debug)]
enum Held {
    Kernel,
    Socket(Box<Balanced>),
    Packets { _programs: Box<Object> },
}

pub(super) fn measure(options: &Options, say: impl Fn(&str)) -> Result<Vec<Figure>> {
    let mut wanted = Translation::all();
    wanted.retain(|translation| options.wants(&translation.name()));
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    say("clients, nodes and servers, and what translates between them");
    let without = Cgroup::create("routed")?;
    let (_held, mut reference) = route(Translation::None, &without)?;
    let mut held = Vec::new();
    let mut routes = Vec::new();
    for translation in wanted {
        let (one, route) = route(translation, &without)?;
        held.push(one);
        routes.push(route);
    }
    let figures = compare(&mut reference, &mut routes, options, say);
    // Processes end before the cgroups that they are in.
    drop(routes);
    figures
}

fn route(translation: Translation, without: &Cgroup) -> Result<((Namespace, Held), Route)> {
    let world = World::make()?;
    let held = world.translate(translation)?;
    let to = if matches!(translation, Translation::None) { BACKEND } else { CALLED };
    let cgroup = if let Held::Socket(balanced) = &held { balanced.cgroup() } else { without };
    let server = listen(&world.server, BACKEND)?;
    let route = Route::new(translation.name(), (&world.client, cgroup.path()), to, server)?;
    // The client's and the server's live as long as their sockets.
    Ok(((world.node, held), route))
}

impl World {
    fn make() -> Result<Self> {
        let [client, node, server] = ["client", "node", "server"].map(Namespace::unnamed);
        let world = Self { client: client?, node: node?, server: server? };
        world.node.within(|| Ok(sysctl::set("net/ipv4/ip_forward", "1")?))?;
        for (place, namespace) in [(Place::Client, &world.client), (Place::Server, &world.server)] {
            world.plug(place, namespace)?;
        }
        Ok(world)
    }

    /// A veth between the node and somebody who has it as gateway.
    fn plug(&self, place: Place, namespace: &Namespace) -> Result<()> {
        let (name, index, gateway) = (place.interface(), place.ifindex(), place.gateway());
        let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        ip(
            &self.node,
            &[
                format!("link add {name} index {index} type veth peer name eth0 netns {}", namespace.path()),
                format!("link set {name} address {} up", mac(GATEWAY_MAC)),
                format!("address add {gateway}/24 dev {name}"),
            ],
        )?;
        ip(
            namespace,
            &[
                format!("link set eth0 address {} up", mac(place.mac())),
                format!("address add {}/24 dev eth0", place.address()),
                format!("route add default via {gateway}"),
            ],
        )
    }

    fn translate(&self, translation: Translation) -> Result<Held> {
        match translation {
            Translation::None => {}
            Translation::Rules(number) => self.node.within(move || nft::apply(&nft::rules(number)))?,
            Translation::Map(number) => self.node.within(move || nft::apply(&nft::map(number)))?,
            Translation::Socket(services) => {
                let load = move || Balanced::load(&format!("routed-{services}"), services, BACKEND.into());
                return Ok(Held::Socket(Box::new(self.client.within(load)?)));
            }
            Translation::Packets(services) => {
                let programs = self.node.within(move || endpoints::attach(services))?;
                return Ok(Held::Packets { _programs: Box::new(programs) });
            }
        }
        Ok(Held::Kernel)
    }
}

/// Who is plugged into a node.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Client = 1,
    Server = 2,
}

impl Place {
    pub(super) const ALL: [Self; 2] = [Self::Client, Self::Server];

    fn number(self) -> u8 {
        self as u8
    }

    /// On the node.
    pub(super) fn interface(self) -> String {
        format!("to{}", self.number())
    }

    pub(super) fn ifindex(self) -> u32 {
        10 + u32::from(self.number())
    }

    pub(super) fn identity(self) -> u32 {
        256 + u32::from(self.number())
    }

    pub(super) fn mac(self) -> [u8; 6] {
        [2, 1, 1, 1, 1, self.number()]
    }

    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200 + self.number(), 0, 2)
    }

    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200 + self.number(), 0, 1)
    }
}
