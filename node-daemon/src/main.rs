//! `weft-noded`: flags and wiring.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::EnvFilter;
use weft_noded::{
    balance::ports::{Ports, SocketPorts},
    daemon::{Core, Ground, Loaded, Settings, VXLAN_DEVICE},
    desired::disk::{Content, Disk},
    health::prober,
    kernel::{
        cgroup, features,
        netlink::{self, Netlink, Watched},
        netns,
        object::{self, Object, Options},
        probe::Probe,
    },
    local, memory,
    observe::events::Events,
    stream::client,
};
use weft_shared::layout::Config;

const EXIT_USAGE: u8 = 64;

/// Enforces a Weft fleet's policy on this node: takes the desired state from a controller, keeps it on disk, and writes
/// it into the kernel. What is enforced goes on without this daemon: stopping it changes nothing.
#[derive(Debug, Parser)]
#[command(
    name = "weft-noded",
    version,
    after_help = "What is logged is set by RUST_LOG (default: info).\nExit status: 0 stopped by a signal, 1 failed, 64 bad usage."
)]
struct Arguments {
    /// This node's name in the fleet [default: the host name]
    #[arg(long, env = "WEFT_NODE_NAME", value_name = "NAME", value_parser = node_name)]
    name: Option<String>,

    /// A label of this node, such as role=gateway; may be repeated
    #[arg(long = "label", env = "WEFT_NODE_LABELS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    labels: Vec<(String, String)>,

    /// Address by which other nodes reach this one, not translated on the way; may be repeated, the first of a family
    /// carries the overlay [default: the addresses of the uplinks]
    #[arg(long = "address", env = "WEFT_ADDRESSES", value_name = "ADDRESS", value_delimiter = ',')]
    addresses: Vec<IpAddr>,

    /// Network device to other nodes and the world; may be repeated [default: the device of the default route]
    #[arg(long = "uplink", env = "WEFT_UPLINKS", value_name = "DEVICE", value_delimiter = ',')]
    uplinks: Vec<String>,

    /// The cgroup (version 2) whose processes reach services by their sockets and have their connections paced, those in
    /// cgroups below it among them
    /// [default: the root of the hierarchy, where /proc/self/mounts says that it is mounted]
    #[arg(long, env = "WEFT_CGROUP", value_name = "DIR")]
    cgroup: Option<PathBuf>,

    /// A controller; may be repeated: the stream goes to one of them
    #[arg(
        long = "controller",
        env = "WEFT_CONTROLLERS",
        value_name = "URL",
        value_delimiter = ',',
        default_value = "http://127.0.0.1:7443"
    )]
    controllers: Vec<String>,

    /// Where the last known desired state and the attachments are kept; made if it is not there
    #[arg(long, env = "WEFT_STATE_DIR", value_name = "DIR", default_value = "/var/lib/weft/noded")]
    state_dir: PathBuf,

    /// Where maps and links are pinned; a bpffs is mounted there if there is none
    #[arg(long, env = "WEFT_BPFFS", value_name = "DIR", default_value = "/sys/fs/bpf/weft")]
    bpffs: PathBuf,

    /// UNIX socket of the node-local service
    #[arg(long, env = "WEFT_NODED_SOCKET", value_name = "PATH", default_value = "/run/weft/noded.sock")]
    socket: PathBuf,

    /// UDP port of the overlay, the same on all nodes
    #[arg(long, env = "WEFT_VXLAN_PORT", value_name = "PORT", default_value_t = 8472)]
    vxlan_port: u16,

    /// Ports that connections to backends come from which answer through this node (services with `forwardingMode: snat`): 64 or more,
    /// none that the kernel gives to sockets (`net.ipv4.ip_local_port_range`) and none of the fleet's `nodePorts`
    #[arg(long, env = "WEFT_SNAT_PORTS", value_name = "FIRST-LAST", default_value_t = Ports::DEFAULT)]
    snat_ports: Ports,

    /// Flows that are remembered at most (a table that is in the kernel already keeps its size)
    #[arg(long, env = "WEFT_FLOWS_MAX", value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1024..=16_777_216))]
    flows_max: Option<u32>,

    /// Move state files that can't be read aside and start without them. What is in the kernel stays in force until a
    /// controller has sent all
    #[arg(long)]
    forget_desired: bool,

    /// Remove everything of ours from the kernel (programs, maps, devices, routes, neighbours) and exit: to uninstall. Endpoints
    /// lose their network
    #[arg(long, conflicts_with = "forget_desired")]
    cleanup: bool,

    /// How logs look
    #[arg(long, env = "WEFT_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

fn node_name(text: &str) -> Result<String, String> {
    weft_shared::policy::parse::name(text, "name").map_err(|error| error.message)?;
    Ok(text.to_owned())
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    match weft_shared::policy::parse::labels(&labels, "label") {
        Ok(()) => Ok((key.to_owned(), value.to_owned())),
        Err(errors) => Err(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
    }
}

fn main() -> ExitCode {
    let began = Instant::now();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Nothing can be done if the terminal is gone.
            drop(error.print());
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    memory::keep_little();
    start_logging(arguments.log_format);
    let ended = tokio::runtime::Runtime::new().context("start the runtime").and_then(|runtime| {
        let ended = runtime.block_on(run(arguments, began));
        // The core may be in the middle of a write: it ends with the process.
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weft-noded: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_logging(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn run(arguments: Arguments, began: Instant) -> Result<()> {
    if arguments.cleanup {
        return cleanup(&arguments).await;
    }
    let settings = settings(&arguments)?;
    let disk = Disk::open(&arguments.state_dir)?;
    if arguments.forget_desired {
        forget_broken(&disk)?;
    }
    // Before anything is touched: a state that can't be read must not become an empty one.
    let loaded = Loaded::from(disk)?;
    // A second daemon must not get as far as the kernel.
    let listener = local::listen(&arguments.socket)?;
    features::check(&features::Running, &settings.kernel_release)?;
    let links = Arc::new(Netlink::open()?);
    let ground = Ground::prepare(&settings, links.as_ref()).await?;
    object::ensure_bpffs(&arguments.bpffs)?;
    let config = Config {
        overlay_ifindex: ground.overlay_ifindex,
        vxlan_port: arguments.vxlan_port.into(),
        namespace_cookie: netns::cookie()?,
        snat_first_port: arguments.snat_ports.first,
        snat_last_port: arguments.snat_ports.last,
        ..Config::DEFAULT
    };
    let probe = Probe { directory: arguments.bpffs.clone(), config };
    let directory = Some(arguments.bpffs.clone());
    let mut object = Object::load(&Options { directory, config, flows_max: arguments.flows_max })?;
    let events = Events::new(object.switch()?);
    publish(&mut object, events.clone())?;
    let watched = netlink::watch()?;
    let node = settings.node.clone();
    let core = Core::start(settings, loaded, ground, object, links).await?;
    let enforced_after = began.elapsed();
    info!(milliseconds = enforced_after.as_millis(), "enforcing");
    core.enforced(enforced_after).await?;
    memory::give_back();
    tokio::spawn(prober::run(core.clone(), node));
    serve(arguments, core, Doors { events, probe, listener }, watched).await
}

/// What the local service is made of.
struct Doors {
    events: Events,
    probe: Probe,
    listener: tokio::net::UnixListener,
}

/// Runs until a signal comes. The kernel is left as it is.
async fn serve(arguments: Arguments, core: Core, doors: Doors, watched: Watched) -> Result<()> {
    let cancel = CancellationToken::new();
    let controllers = arguments.controllers.iter().map(|text| url(text)).collect();
    let stream = tokio::spawn(client::run(core.clone(), controllers, cancel.clone()));
    let Doors { events, probe, listener } = doors;
    let service = local::serve(core.clone(), events, Some(probe), listener, cancel.clone());
    let service = tokio::spawn(service);
    follow(core, watched);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = service => {
            ended.context("the local service")??;
            bail!("the local service ended");
        }
        _ = stream => bail!("the stream ended for good"),
    }
    info!("stopping; the kernel goes on with what it has");
    cancel.cancel();
    // A stale socket would only make the next start look twice.
    drop(std::fs::remove_file(&arguments.socket));
    Ok(())
}

/// Hands the core what the kernel tells of the node's network.
fn follow(core: Core, Watched { mut removals, changes }: Watched) {
    let told = core.clone();
    tokio::spawn(async move {
        while let Some(ifindex) = removals.recv().await {
            if core.link_gone(ifindex).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move { while told.network_changed(changes.next().await).await.is_ok() {} });
}

fn publish(object: &mut Object, events: Events) -> Result<()> {
    let mut stream = object.events()?.into_async().context("read the kernel programs' events")?;
    tokio::spawn(async move {
        loop {
            match stream.next().await {
                Ok(event) => events.publish(event),
                Err(error) => {
                    error!(%error, "events of the kernel programs can't be read any more");
                    return;
                }
            }
        }
    });
    Ok(())
}

fn settings(arguments: &Arguments) -> Result<Settings> {
    let proc = |path: &str| {
        std::fs::read_to_string(path).map(|text| text.trim().to_owned()).with_context(|| path.to_owned())
    };
    let node = match &arguments.name {
        Some(name) => name.clone(),
        None => node_name(&proc("/proc/sys/kernel/hostname")?.to_lowercase())
            .map_err(|error| anyhow::anyhow!("the host name does not do: {error}; give --name"))?,
    };
    Ok(Settings {
        node,
        labels: arguments.labels.iter().cloned().collect(),
        addresses: arguments.addresses.clone(),
        uplinks: arguments.uplinks.clone(),
        cgroup: match &arguments.cgroup {
            Some(cgroup) => Some(cgroup.clone()),
            None => cgroup::mounted(&proc("/proc/self/mounts")?),
        },
        vxlan_device: VXLAN_DEVICE.to_owned(),
        vxlan_port: arguments.vxlan_port,
        snat_ports: arguments.snat_ports,
        socket_ports: SocketPorts::read(
            &proc("/proc/sys/net/ipv4/ip_local_port_range")?,
            &proc("/proc/sys/net/ipv4/ip_local_reserved_ports")?,
        ),
        boot_id: proc("/proc/sys/kernel/random/boot_id")?,
        kernel_release: proc("/proc/sys/kernel/osrelease")?,
        tcx: object::has_tcx(),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
    })
}

/// A controller without a scheme is reached in clear.
fn url(text: &str) -> String {
    if text.contains("://") { text.to_owned() } else { format!("http://{text}") }
}

fn forget_broken(disk: &Disk) -> Result<()> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let suffix = format!("forgotten-{seconds}");
    let broken = [
        (Content::Desired, disk.load_desired().err()),
        (Content::Attachments, weft_noded::desired::attachments::Attachments::load(disk).err()),
    ];
    for (content, error) in broken {
        let Some(error) = error else { continue };
        if let Some(aside) = disk.move_aside(content, &suffix)? {
            info!(%error, aside = %aside.display(), "a broken state file is moved aside");
        }
    }
    Ok(())
}

async fn cleanup(arguments: &Arguments) -> Result<()> {
    if std::os::unix::net::UnixStream::connect(&arguments.socket).is_ok() {
        bail!("a daemon is running on {}: stop it first", arguments.socket.display());
    }
    object::cleanup(&arguments.bpffs)?;
    Netlink::open()?.cleanup(VXLAN_DEVICE).await?;
    let disk = Disk::open(&arguments.state_dir)?;
    if let Some(aside) = disk.move_aside(Content::Attachments, "removed")? {
        info!(aside = %aside.display(), "the attachments are forgotten");
    }
    info!("nothing of ours is left in the kernel");
    Ok(())
}
