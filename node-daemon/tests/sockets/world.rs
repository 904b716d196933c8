//! A network namespace with addresses for backends on its loopback device, and a cgroup with the socket programs. The test's
//! process is in both, so one test runs at a time.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use nix::{
    mount::{MntFlags, umount2},
    sched::{CloneFlags, unshare},
};
use weft_noded::{
    balance::tables::{Services, Step},
    kernel::{
        Attached, Datapath as _, cgroup, netns,
        object::{self, Object, Options},
    },
    plan::tables::Step as TableStep,
};
use weft_shared::{
    balance::table::{Backend, Manner, Table},
    layout::{
        Class, Config, Peer,
        service::{Frontend, FrontendKey},
    },
};

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

pub(crate) struct World {
    pub(crate) object: Object,
    pub(crate) cgroup: Cgroup,
    pins: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl World {
    pub(crate) fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests need root)");
        run("ip link set lo up");
        for last in 1..=4 {
            run(&format!("ip address add 10.1.0.{last}/32 dev lo"));
            run(&format!("ip address add fd01::{last}/128 dev lo nodad"));
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = cgroup::mounted(&mounts).expect("cgroup2 is mounted");
        let cgroup = root.join(format!("weft-sockets-{}", std::process::id()));
        fs::create_dir_all(&cgroup).unwrap();
        enter(&cgroup);
        let cgroup = Cgroup { path: cgroup, root };
        let pins = tempfile::tempdir().unwrap();
        object::ensure_bpffs(pins.path()).unwrap();
        let mut object = load(pins.path());
        assert_eq!(object.attach_sockets(&cgroup.path).unwrap(), Attached::Anew);
        Self { object, cgroup, pins, _turn: turn }
    }

    /// As a daemon that starts anew.
    pub(crate) fn restart(&mut self) -> Attached {
        self.object = load(self.pins.path());
        self.object.attach_sockets(&self.cgroup.path).unwrap()
    }

    pub(crate) fn pins(&self) -> &Path {
        self.pins.path()
    }

    pub(crate) fn services(&mut self) -> Services {
        self.object.read_services().unwrap()
    }

    pub(crate) fn write(&mut self, steps: &[Step]) {
        self.object.write_services(steps).unwrap();
    }

    pub(crate) fn set_table(&mut self, slot: u32, table: &Table) {
        self.write(&[Step::Tables { tables: vec![(slot, Some(Arc::new(table.clone())))] }]);
    }

    /// A service of one table.
    pub(crate) fn serve(&mut self, key: FrontendKey, slot: u32, table: &Table) {
        self.set_table(slot, table);
        self.write(&[Step::Frontend { key, frontend: Some(row(slot)) }]);
    }

    /// The node has the address.
    pub(crate) fn own(&mut self, address: &str) {
        let peer = Peer { identity: 1, class: Class::Host as u32, node: 0, ifindex: 0 };
        let address = address.parse::<IpAddr>().unwrap().into();
        self.object.write(&[TableStep::Ipcache { address, peer: Some(peer) }]).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        umount2(self.pins.path(), MntFlags::MNT_DETACH).ok();
    }
}

/// The cgroup of this process, which goes back to the root when this is dropped.
pub(crate) struct Cgroup {
    pub(crate) path: PathBuf,
    root: PathBuf,
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        enter(&self.root);
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
        while fs::remove_dir(&self.path).is_err() && tokio::time::Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

pub(crate) fn row(slot: u32) -> Frontend {
    Frontend { inside: slot, outside: slot, flags: 0 }
}

fn load(pins: &Path) -> Object {
    let config = Config { namespace_cookie: netns::cookie().unwrap(), ..Config::DEFAULT };
    let options = Options { directory: Some(pins.to_owned()), config, flows_max: Some(1024) };
    Object::load(&options).expect("the object loads (tests need root)")
}

fn enter(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

pub(crate) fn run(line: &str) {
    let mut words = line.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
}

pub(crate) const MANNER: Manner = Manner::plain(251);

/// Backends by the last numbers of their addresses, all at this port.
pub(crate) fn backends(net: &str, lasts: &[u8], port: u16) -> Vec<Backend> {
    let backend = |last: &u8| Backend {
        address: format!("{net}{last}").parse().unwrap(),
        port,
        weight: 1,
        new_flows: true,
        local: false,
    };
    lasts.iter().map(backend).collect()
}

pub(crate) fn table(net: &str, lasts: &[u8], port: u16) -> Table {
    Table::new(MANNER, backends(net, lasts, port))
}

pub(crate) fn key(address: &str, port: u16, protocol: u8) -> FrontendKey {
    FrontendKey::address(address.parse::<IpAddr>().unwrap().into(), port.to_be(), protocol)
}
