//! Connections from one network namespace to another one by way of a third, the node: nftables translates their destination
//! there, as on hosts that have a rule for each service; Weft does so at the client's socket, or in its program of tc on the
//! client's interface. Beside the same way without any translation.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddrV4},
    process::Stdio,
    sync::Arc,
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{TcAttachType, tc::qdisc_add_clsact};
use weft_noded::{
    kernel::{
        Datapath as _,
        object::{Object, Options as Load, has_tcx},
        sysctl,
    },
    plan::tables::{Step, SubjectRow},
};
use weft_shared::{
    layout::{
        Action, Address, CLASS_RULEBOOKS, Class, Config, Endpoint, Peer, PolicyRow, PortKey, endpoint_flags,
    },
    policy::compile::Rulebook,
};

use super::{
    Options,
    client::{Cgroup, Route, compare, ip, listen},
    connect::{Balanced, CALLED},
    packets::{self, FRONTEND, serve},
};
use crate::{
    bench::{
        Figure,
        datapath::packets::{GATEWAY_MAC, PORT},
    },
    fleet::tool,
    traffic::Namespace,
};

const RULES: [u32; 3] = [1, 100, 10_000];
const REFERENCE: &str = "ref.connect.routed";

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 202, 0, 2);
const BACKEND: SocketAddrV4 = SocketAddrV4::new(SERVER, PORT);
const ALLOW_ALL: u32 = 1;

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
        let weft =
            packets::SERVICES.map(Self::Socket).into_iter().chain(packets::SERVICES.map(Self::Packets));
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
    Socket(Balanced),
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
    let (_reference, mut reference) = route(Translation::None, &without)?;
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
            Translation::Rules(number) => self.nft(rules(number))?,
            Translation::Map(number) => self.nft(map(number))?,
            Translation::Socket(services) => {
                let load = move || Balanced::load(&format!("routed-{services}"), services, BACKEND.into());
                return Ok(Held::Socket(self.client.within(load)?));
            }
            Translation::Packets(services) => {
                let programs = self.node.within(move || packets(services))?;
                return Ok(Held::Packets { _programs: Box::new(programs) });
            }
        }
        Ok(Held::Kernel)
    }

    fn nft(&self, rules: String) -> Result<()> {
        self.node.within(move || {
            let mut nft = tool("nft");
            nft.args(["-f", "-"]).stdin(Stdio::piped());
            let mut nft = nft.spawn().context("start nft (nftables)")?;
            nft.stdin.take().context("its input is a pipe")?.write_all(rules.as_bytes())?;
            ensure!(nft.wait()?.success(), "nft did not take the rules");
            Ok(())
        })
    }
}

/// Services' addresses, the one that is called last.
fn called_last(number: u32) -> impl Iterator<Item = Ipv4Addr> {
    (0..number).rev().map(|index| Ipv4Addr::from(u32::from(FRONTEND) + index))
}

fn rules(number: u32) -> String {
    let rule = |address| format!("ip daddr {address} tcp dport {PORT} dnat to {BACKEND}\n");
    chain("", &called_last(number).map(rule).collect::<String>())
}

fn map(number: u32) -> String {
    let element = |address| format!("{address} . {PORT} : {SERVER} . {PORT}");
    let elements: Vec<String> = called_last(number).map(element).collect();
    let types = "ipv4_addr . inet_service : ipv4_addr . inet_service";
    let map = format!("map services {{\ntype {types}\nelements = {{ {} }}\n}}\n", elements.join(", "));
    chain(&map, "dnat ip to ip daddr . tcp dport map @services\n")
}

fn chain(map: &str, rules: &str) -> String {
    let hook = "type nat hook prerouting priority dstnat";
    format!("table ip weft-bench {{\n{map}chain prerouting {{\n{hook}\n{rules}}}\n}}\n")
}

/// Who is plugged into a node.
#[derive(Clone, Copy, Debug)]
enum Place {
    Client = 1,
    Server = 2,
}

impl Place {
    const ALL: [Self; 2] = [Self::Client, Self::Server];

    fn number(self) -> u8 {
        self as u8
    }

    /// On the node.
    fn interface(self) -> String {
        format!("to{}", self.number())
    }

    fn ifindex(self) -> u32 {
        10 + u32::from(self.number())
    }

    fn identity(self) -> u32 {
        256 + u32::from(self.number())
    }

    fn mac(self) -> [u8; 6] {
        [2, 1, 1, 1, 1, self.number()]
    }

    fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200 + self.number(), 0, 2)
    }

    fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 200 + self.number(), 0, 1)
    }
}

/// Weft's programs on both interfaces of the node, whose namespace the thread is in.
fn packets(services: u32) -> Result<Object> {
    let mut object = Object::load(&Load { directory: None, config: Config::DEFAULT, flows_max: None })?;
    object.write(&tables())?;
    serve(&mut object, services, BACKEND.into())?;
    for place in Place::ALL {
        let interface = place.interface();
        if !has_tcx() {
            qdisc_add_clsact(&interface)?;
        }
        object.program("tc_from_endpoint")?.attach(&interface, TcAttachType::Ingress)?;
        object.program("tc_to_endpoint")?.attach(&interface, TcAttachType::Egress)?;
    }
    Ok(object)
}

/// Two endpoints of the node, which may do everything.
fn tables() -> Vec<Step> {
    let allow = Rulebook::from([(PortKey::EVERYTHING, PolicyRow::of(Action::Allow, 0))]);
    let rest = Place::ALL.into_iter().flat_map(endpoint);
    let node = vec![
        Step::IdentitiesThrough { identity: 1 << 20 },
        Step::Rulebook { number: ALLOW_ALL, rows: Some(Arc::new(allow)) },
    ];
    node.into_iter().chain(rest).collect()
}

fn endpoint(place: Place) -> [Step; 4] {
    let (identity, ifindex) = (place.identity(), place.ifindex());
    let address = IpAddr::V4(place.address()).into();
    let endpoint = Endpoint {
        address4: address,
        address6: Address::UNSPECIFIED,
        identity,
        subject: ifindex,
        flags: endpoint_flags::OPEN | endpoint_flags::PEER,
        mac: place.mac(),
        gateway_mac: GATEWAY_MAC,
        ingress_rate: 0,
        egress_rate: 0,
        connection_rate: 0,
        zero: 0,
    };
    let peer = Peer { identity, class: Class::Fleet as u32, node: 0, ifindex };
    let subject = SubjectRow { identity, rulebooks: [ALLOW_ALL; CLASS_RULEBOOKS] };
    [
        Step::Subject { slot: ifindex, subject: Some(subject) },
        Step::Bump { subjects: vec![ifindex], nodes: Vec::new() },
        Step::Ipcache { address, peer: Some(peer) },
        Step::Endpoint { ifindex, endpoint: Some(endpoint) },
    ]
}
