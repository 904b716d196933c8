//! The kernel programs' object: loaded with its maps pinned, so that they outlive the daemon, and the daemon's door to it.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    thread,
};

use aya::{
    Ebpf, EbpfLoader, include_bytes_aligned,
    programs::{CgroupSock, CgroupSockAddr, Program, ProgramError, SchedClassifier, SockOps, Xdp},
};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use weft_shared::layout::{
    Config, Connection, ConnectionKey, Flow, FlowKey, Point, Reason,
    maps::{self as names, Counter},
    service::{Affinity, AffinityKey, Element, Frontend, FrontendKey, SocketPeer},
    shaping::{Pair, RoundTrips},
};

use super::{
    Attached, Counted, Datapath, Hook, KernelError, Mode, attach,
    cgroup::{self, Cgroup, PACING_PROGRAMS, SOCKET_PROGRAMS},
    connections::{FlowTable, Shape, is_alive, now},
    events::{Events, Switch},
    maps::{Maps, data, memory_bytes},
    pins,
    prefilters::PrefilterMaps,
    services::ServiceMaps,
    shaping::ShapingMaps,
    sockets,
    trusted::Plain,
    uplinks,
};
use crate::{
    balance::tables::{Services, Step as ServiceStep},
    limits::{FLOWS_SLICE_ROWS, LOAD_ATTEMPTS_MAX},
    plan::tables::{Step, Tables},
    prefilter::lists::{Lists, Step as PrefilterStep},
};

/// The object, as `build.rs` found it.
static OBJECT: &[u8] = include_bytes_aligned!(env!("WEFT_BPF_OBJECT"));

/// The programs of tc, by the names that they have in the object and in the kernel. Every node needs them from its start on; others
/// are loaded when something needs them.
pub const PROGRAMS: [&str; 6] = [
    "tc_from_endpoint",
    "tc_to_endpoint",
    "tc_from_overlay",
    "tc_to_overlay",
    "tc_from_uplink",
    "tc_to_uplink",
];

/// Where links of the XDP program are pinned.
const UPLINKS: &str = "uplinks";

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory on a bpffs for pins of maps and links; `None` leaves everything to the life of the [`Object`].
    pub directory: Option<PathBuf>,
    /// Load-time constants. A change takes a load anew.
    pub config: Config,
    /// Rows of the flow table, where not the layout's. A table that is pinned already keeps its size.
    pub flows_max: Option<u32>,
}

/// The programs and their maps.
pub struct Object {
    /// Programs that are not loaded yet name maps by its descriptors: it gives none of them away.
    ebpf: Ebpf,
    maps: Maps,
    /// Elsewhere, as the next: the object is moved about, and these are large.
    services: Box<ServiceMaps>,
    prefilters: Box<PrefilterMaps>,
    shaping: Box<ShapingMaps>,
    directory: Option<PathBuf>,
    config: Config,
    flows: FlowTable,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Object").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl Object {
    /// Loads the programs, with the maps that an earlier daemon pinned where there are any. Nothing is attached yet.
    pub fn load(options: &Options) -> Result<Self, KernelError> {
        let mut object = Self::load_with(options, &names::ALL)?;
        object.maps.own()?;
        Ok(object)
    }

    /// Loads them once more, beside those of a daemon that runs: they judge by its tables, and what packets leave behind
    /// (flows, counters, events) is their own, and goes with them.
    pub fn load_beside(options: &Options) -> Result<Self, KernelError> {
        let shared: Vec<_> =
            names::ALL.into_iter().filter(|map| !names::WRITTEN_BY_PACKETS.contains(map)).collect();
        Self::load_with(options, &shared)
    }

    fn load_with(options: &Options, pinned: &[names::MapName]) -> Result<Self, KernelError> {
        let mut loader = EbpfLoader::new();
        let mut pins = None;
        if let Some(directory) = &options.directory {
            let directory = directory.join("maps");
            fs::create_dir_all(&directory).map_err(|error| in_path("create", &directory, error))?;
            pins::check(&directory)?;
            for map in pinned {
                loader.map_pin_path(map.object, directory.join(map.pin));
            }
            pins = pinned.contains(&names::FLOWS).then_some(directory);
        }
        let flows = options.flows_max.unwrap_or(u32::try_from(names::FLOWS_MAX).unwrap_or(u32::MAX));
        let shape = Shape::of(pins.as_deref(), flows)?;
        loader.map_max_entries(names::FLOWS.object, shape.rows);
        loader.map_max_entries(names::FLOW_INDEX.object, shape.lines());
        let config = Config { seed: shape.seed, flow_rows_mask: shape.rows - 1, ..options.config };
        let config = Plain(config);
        loader.override_global("CONFIG", &config, true);
        let mut ebpf =
            loader.load(OBJECT).map_err(|error| KernelError::new("load the kernel programs", error))?;
        load_programs(&mut ebpf, &PROGRAMS)?;
        let maps = Maps::take(&ebpf)?;
        let services = Box::new(ServiceMaps::take(&ebpf, shape.seed)?);
        let prefilters = Box::new(PrefilterMaps::take(&ebpf)?);
        let shaping = Box::new(ShapingMaps::take(&ebpf)?);
        let flows = FlowTable::take(&ebpf, shape.seed)?;
        Ok(Self {
            ebpf,
            maps,
            services,
            prefilters,
            shaping,
            directory: options.directory.clone(),
            config: options.config,
            flows,
        })
    }

    /// The ring buffer's reader. An event goes to one: two would take them from each other.
    pub fn events(&self) -> Result<Events, KernelError> {
        Events::take(&self.ebpf)
    }

    /// What is told beside drops.
    pub fn switch(&self) -> Result<Switch, KernelError> {
        Switch::take(&self.ebpf)
    }

    /// The flow table: what is not over.
    pub fn flows(&self) -> Result<Vec<(FlowKey, Flow)>, KernelError> {
        let now = now()?;
        let rows = self.flows.rows()?.into_iter();
        Ok(rows.filter(|(key, flow)| is_alive(&self.config, key, flow, now)).collect())
    }

    /// Forgets a flow: its next packet is judged as the first.
    pub fn forget_flow(&mut self, key: &FlowKey) -> Result<(), KernelError> {
        self.flows.set(key, None)
    }

    /// The table of connections to services.
    pub fn connections(&self) -> Result<Vec<(ConnectionKey, Connection)>, KernelError> {
        self.services.connections()
    }

    /// Forgets a connection: its next packet gets a backend as the first.
    pub fn forget_connection(&mut self, key: &ConnectionKey) -> Result<(), KernelError> {
        self.services.forget_connection(key)
    }

    /// The row of a frontend.
    pub(super) fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, KernelError> {
        self.services.frontend(key)
    }

    /// Of programs loaded beside those of a daemon that runs: what those remember of who calls, which these then know, too.
    pub(super) fn recall(
        &mut self,
        connection: &ConnectionKey,
        client: &AffinityKey,
    ) -> Result<(Option<Connection>, Option<Affinity>), KernelError> {
        let maps = self.directory()?.join("maps");
        self.services.recall(&maps, connection, client)
    }

    /// A program of tc, for tests that run it on packets of their own.
    pub fn program(&mut self, name: &str) -> Result<&mut SchedClassifier, KernelError> {
        program(&mut self.ebpf, name)
    }

    /// A program on socket addresses, loaded with all others of them.
    pub fn socket_program(&mut self, name: &str) -> Result<&mut CgroupSockAddr, KernelError> {
        load_programs(&mut self.ebpf, &SOCKET_PROGRAMS)?;
        program(&mut self.ebpf, name)
    }

    /// The programs that pace: the one that notes sockets, and the one that sets their rates.
    pub fn pacing_programs(&mut self) -> Result<(&mut CgroupSock, &mut SockOps), KernelError> {
        load_programs(&mut self.ebpf, &PACING_PROGRAMS)?;
        let (mut noting, mut pacing) = (None, None);
        for (_, program) in self.ebpf.programs_mut() {
            match program {
                Program::CgroupSock(program) => noting = Some(program),
                Program::SockOps(program) => pacing = Some(program),
                _ => {}
            }
        }
        noting.zip(pacing).ok_or_else(|| KernelError::new("pace", "the object has no such programs"))
    }

    /// The XDP program, loaded.
    pub fn uplink_program(&mut self) -> Result<&mut Xdp, KernelError> {
        load_programs(&mut self.ebpf, &[uplinks::UPLINK_PROGRAM])?;
        program(&mut self.ebpf, uplinks::UPLINK_PROGRAM)
    }

    fn directory(&self) -> Result<&Path, KernelError> {
        self.directory
            .as_deref()
            .ok_or_else(|| KernelError::new("attach", "loaded without a directory for pins"))
    }
}

/// Loads those that are not loaded yet. The verifier takes a tenth of a second and more for one of them: it looks at them side
/// by side, so that a start takes no longer than it must.
fn load_programs(ebpf: &mut Ebpf, names: &[&str]) -> Result<(), KernelError> {
    if let Some(missing) = names.iter().find(|name| ebpf.program(name).is_none()) {
        return Err(KernelError::new(*missing, "the object has no such program"));
    }
    let unloaded = |program: &Program| matches!(program.fd(), Err(ProgramError::NotLoaded));
    let programs = ebpf.programs_mut().filter(|(name, program)| names.contains(name) && unloaded(program));
    thread::scope(|scope| {
        let loading: Vec<_> =
            programs.map(|(name, program)| (name, scope.spawn(move || load_program(program)))).collect();
        for (name, load) in loading {
            let failed = |error: ProgramError| KernelError::new(format!("load {name}"), error);
            let loaded =
                load.join().map_err(|_| KernelError::new(format!("load {name}"), "its thread panicked"))?;
            loaded.map_err(failed)?;
        }
        Ok(())
    })
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, KernelError>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program = program.ok_or_else(|| KernelError::new(name, "the object has no such program"))?;
    program.try_into().map_err(|error: ProgramError| KernelError::new(name, error))
}

/// Loads, again where the verifier gave up because a signal was there for the thread (EAGAIN): it has not looked then.
fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    fn load(program: &mut Program) -> Result<(), ProgramError> {
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSock(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::Xdp(program) => program.load(),
            program => <&mut SchedClassifier>::try_from(program)?.load(),
        }
    }
    for _ in 1..LOAD_ATTEMPTS_MAX {
        match load(program) {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {
            }
            other => return other,
        }
    }
    load(program)
}

impl Datapath for Object {
    fn read_tables(&mut self) -> Result<Tables, KernelError> {
        self.maps.read()
    }

    fn write(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        self.maps.write_all(steps)?;
        let gone = steps.iter().filter_map(|step| match step {
            Step::Endpoint { ifindex, endpoint: None } => Some(*ifindex),
            _ => None,
        });
        gone.into_iter().try_for_each(|ifindex| self.shaping.forget(ifindex))
    }

    fn read_services(&mut self) -> Result<Services, KernelError> {
        self.services.read()
    }

    fn read_table(&mut self, slot: u32) -> Result<Vec<Element>, KernelError> {
        self.services.table(slot)
    }

    fn write_services(&mut self, steps: &[ServiceStep]) -> Result<(), KernelError> {
        steps.iter().try_for_each(|step| self.services.write(step))
    }

    fn end_sockets(
        &mut self,
        namespaces: &[String],
        protocols: &[u8],
        serves: &(dyn Fn(u8, &SocketPeer) -> bool + Sync),
    ) -> Result<u64, KernelError> {
        let what = || "end sockets of backends that have gone".to_owned();
        let failed = |error: io::Error| KernelError::new(what(), error);
        let services = &self.services;
        // One that called no service is its own master.
        let is_to_end = |protocol, cookie, backend| {
            services
                .called(cookie, backend)
                .is_some_and(|frontend| !serves(protocol, &SocketPeer { frontend, backend }))
        };
        let end = || sockets::end(protocols, &is_to_end);
        let mut ended = end().map_err(failed)?;
        for namespace in namespaces {
            match fs::File::open(namespace) {
                Ok(namespace) => {
                    ended += sockets::within(&namespace, end).map_err(failed)?;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(in_path("open", Path::new(namespace), error)),
            }
        }
        Ok(ended)
    }

    fn sockets_attached(&mut self) -> Result<bool, KernelError> {
        let pin = self.directory()?.join("sockets").join(SOCKET_PROGRAMS[0]);
        pin.try_exists().map_err(|error| in_path("look for", &pin, error))
    }

    fn attach_sockets(&mut self, path: &Path) -> Result<Attached, KernelError> {
        let directory = self.directory()?.join("sockets");
        fs::create_dir_all(&directory).map_err(|error| in_path("create", &directory, error))?;
        let cgroup = Cgroup::open(path)?;
        let mut found = Attached::InPlace;
        for name in SOCKET_PROGRAMS {
            let program = self.socket_program(name)?;
            if cgroup::attach(program, name, &cgroup, &directory)? == Attached::Anew {
                found = Attached::Anew;
            }
        }
        Ok(found)
    }

    fn pacing_attached(&mut self) -> Result<bool, KernelError> {
        let pin = self.directory()?.join("sockets").join(PACING_PROGRAMS[0]);
        pin.try_exists().map_err(|error| in_path("look for", &pin, error))
    }

    fn attach_pacing(&mut self, path: &Path) -> Result<Attached, KernelError> {
        let directory = self.directory()?.join("sockets");
        fs::create_dir_all(&directory).map_err(|error| in_path("create", &directory, error))?;
        let cgroup = Cgroup::open(path)?;
        let [made, paced] = PACING_PROGRAMS;
        let (noting, pacing) = self.pacing_programs()?;
        let noting = cgroup::attach(noting, made, &cgroup, &directory)?;
        let pacing = cgroup::attach(pacing, paced, &cgroup, &directory)?;
        Ok(if noting == Attached::Anew { noting } else { pacing })
    }

    fn pace_cgroups(&mut self, root: &Path, rates: &BTreeMap<PathBuf, u32>) -> Result<(), KernelError> {
        self.shaping.pace(root, rates)
    }

    fn round_trips(&mut self) -> Result<BTreeMap<Pair, RoundTrips>, KernelError> {
        self.shaping.round_trips()
    }

    fn read_prefilters(&mut self) -> Result<Lists, KernelError> {
        self.prefilters.read()
    }

    fn write_prefilters(&mut self, steps: &[PrefilterStep]) -> Result<(), KernelError> {
        self.prefilters.write_all(steps)
    }

    fn prefiltered(&mut self, slots: &[u32]) -> Result<BTreeMap<u32, Counter>, KernelError> {
        self.prefilters.dropped(slots)
    }

    fn attach_xdp(&mut self, ifindex: u32) -> Result<(Attached, Mode), KernelError> {
        let directory = self.directory()?.join(UPLINKS);
        uplinks::attach(self.uplink_program()?, ifindex, &directory)
    }

    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), KernelError> {
        uplinks::detach(ifindex, &self.directory()?.join(UPLINKS))
    }

    fn xdp_attached(&mut self) -> Result<Vec<u32>, KernelError> {
        uplinks::attached(&self.directory()?.join(UPLINKS))
    }

    fn attach(&mut self, ifindex: u32, hook: Hook) -> Result<Attached, KernelError> {
        let directory = self.directory()?.join("links");
        let mut found = Attached::InPlace;
        for (name, direction) in attach::programs(hook) {
            let program = program(&mut self.ebpf, name)?;
            if attach::attach(program, name, *direction, ifindex, &directory)? == Attached::Anew {
                found = Attached::Anew;
            }
        }
        Ok(found)
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        attach::detach(ifindex, &self.directory()?.join("links"))
    }

    fn settle(&mut self) -> Result<(), KernelError> {
        match &self.directory {
            Some(directory) => pins::remove_former(&directory.join("maps")),
            None => Ok(()),
        }
    }

    fn attached(&mut self) -> Result<Vec<(u32, Hook)>, KernelError> {
        attach::attached(&self.directory()?.join("links"))
    }

    fn counters(&mut self) -> Result<Vec<(Point, Reason, Counter)>, KernelError> {
        self.maps.counters()
    }

    fn events_lost(&mut self) -> Result<u64, KernelError> {
        self.maps.events_lost()
    }

    fn count_flows(&mut self) -> Result<Counted, KernelError> {
        let now = now()?;
        self.flows.count(FLOWS_SLICE_ROWS, |key, flow| is_alive(&self.config, key, flow, now))
    }

    fn flows_capacity(&mut self) -> Result<u64, KernelError> {
        Ok(self.flows.capacity())
    }

    fn map_bytes(&mut self) -> Result<u64, KernelError> {
        let own = self.ebpf.maps().filter_map(|(_, map)| data(map));
        let own: u64 = own.map(memory_bytes).sum::<Result<_, _>>()?;
        Ok(own + self.services.table_bytes())
    }
}

/// Whether programs are attached by TCX links; clsact filters otherwise.
pub fn has_tcx() -> bool {
    attach::has_tcx()
}

/// Takes every program of ours off its interface and every pin out of the directory: forwarding ends.
pub fn cleanup(directory: &Path) -> Result<(), KernelError> {
    let links = directory.join("links");
    for (ifindex, _) in attach::attached(&links)? {
        attach::detach(ifindex, &links)?;
    }
    for directory in [links, directory.join(UPLINKS), directory.join("sockets"), directory.join("maps")] {
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(in_path("remove", &directory, error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Makes the directory, and mounts a bpffs where there is none: on the directory itself, or above it where the file
/// system there takes no directories (`/sys/fs/bpf`).
pub fn ensure_bpffs(directory: &Path) -> Result<(), KernelError> {
    if fs::create_dir_all(directory).is_err() {
        let parent = directory.parent().unwrap_or(directory);
        mount_bpffs(parent)?;
        fs::create_dir_all(directory).map_err(|error| in_path("create", directory, error))?;
    }
    if is_bpffs(directory)? { Ok(()) } else { mount_bpffs(directory) }
}

fn is_bpffs(directory: &Path) -> Result<bool, KernelError> {
    let stat = statfs(directory).map_err(|error| in_path("statfs", directory, error.into()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

fn mount_bpffs(directory: &Path) -> Result<(), KernelError> {
    let nothing: Option<&str> = None;
    nix::mount::mount(Some("bpf"), directory, Some("bpf"), nix::mount::MsFlags::empty(), nothing)
        .map_err(|error| in_path("mount a bpffs on", directory, error.into()))
}

fn in_path(what: &str, path: &Path, error: io::Error) -> KernelError {
    KernelError::new(format!("{what} {}", path.display()), error)
}
