//! Programs on interfaces: by pinned TCX links where the kernel has them (6.6), else by clsact filters with a handle and
//! priority of ours and the program's pin as a note that they are there. A restart replaces the program in place.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{Attached, Hook, KernelError};

/// Where filters of ours stand in clsact: recognisable without memory.
const PRIORITY: u16 = 0x77ef;
const HANDLE: TcHandle = TcHandle::new(0, 0x77ef);

/// A hook's programs and their directions.
pub(crate) const fn programs(hook: Hook) -> &'static [(&'static str, TcAttachType)] {
    match hook {
        Hook::Endpoint => {
            &[("tc_from_endpoint", TcAttachType::Ingress), ("tc_to_endpoint", TcAttachType::Egress)]
        }
        Hook::Overlay => {
            &[("tc_from_overlay", TcAttachType::Ingress), ("tc_to_overlay", TcAttachType::Egress)]
        }
        Hook::Uplink => &[("tc_from_uplink", TcAttachType::Ingress), ("tc_to_uplink", TcAttachType::Egress)],
    }
}

const HOOKS: [Hook; 3] = [Hook::Endpoint, Hook::Overlay, Hook::Uplink];

/// Attaches a program, or puts it in the place of the one that is attached.
pub(crate) fn attach(
    program: &mut SchedClassifier,
    name: &str,
    direction: TcAttachType,
    ifindex: u32,
    directory: &Path,
) -> Result<Attached, KernelError> {
    fs::create_dir_all(directory)
        .map_err(|error| KernelError::new(format!("create {}", directory.display()), error))?;
    let pin = pin_path(directory, name, ifindex);
    let what = || format!("attach {name} to interface {ifindex}");
    if has_tcx() {
        tcx(program, direction, ifindex, &pin).map_err(|error| KernelError::new(what(), error))
    } else {
        clsact(program, direction, ifindex, &pin).map_err(|error| KernelError::new(what(), error))
    }
}

/// TCX came with kernel 6.6, and with some vendors' earlier: an older kernel doesn't know the question. Every network
/// namespace has the interface.
pub(crate) fn has_tcx() -> bool {
    SchedClassifier::query_tcx("lo", TcAttachType::Ingress).is_ok()
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn pin_path(directory: &Path, name: &str, ifindex: u32) -> PathBuf {
    directory.join(format!("{name}-{ifindex}"))
}

fn tcx(
    program: &mut SchedClassifier,
    direction: TcAttachType,
    ifindex: u32,
    pin: &Path,
) -> Result<Attached, BoxError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => {
            let link: SchedClassifierLink = FdLink::from(link).try_into()?;
            match program.attach_to_link(link) {
                // The pin holds the link; ours may go.
                Ok(id) => {
                    drop(program.take_link(id)?);
                    return Ok(Attached::InPlace);
                }
                Err(error) if is_dead(&error) => fs::remove_file(pin)?,
                // The program that is attached stays: without it, everything would pass.
                Err(error) => return Err(error.into()),
            }
        }
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    let interface = if_indextoname(ifindex)?;
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    let id = program.attach_with_options(&interface.to_string_lossy(), direction, order)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(Attached::Anew)
}

/// The interface went, and another took its index.
fn is_dead(error: &ProgramError) -> bool {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error() == Some(Errno::ENOLINK as i32),
        _ => false,
    }
}

fn clsact(
    program: &mut SchedClassifier,
    direction: TcAttachType,
    ifindex: u32,
    pin: &Path,
) -> Result<Attached, BoxError> {
    let interface = if_indextoname(ifindex)?.to_string_lossy().into_owned();
    match qdisc_add_clsact(&interface) {
        Err(error) if !exists(&error) => return Err(error.into()),
        _ => {}
    }
    // Replaces; where there is nothing to replace, it is made.
    let ours = SchedClassifierLink::attached(&interface, direction, PRIORITY, HANDLE, None)?;
    let (id, found) = if let Ok(id) = program.attach_to_link(ours) {
        (id, Attached::InPlace)
    } else {
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        let options = TcAttachOptions::Netlink(options);
        (program.attach_with_options(&interface, direction, options)?, Attached::Anew)
    };
    // Dropped, it would detach; the filter is to outlive us.
    std::mem::forget(program.take_link(id)?);
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    program.pin(pin)?;
    Ok(found)
}

fn exists(error: &TcError) -> bool {
    match error {
        TcError::NetlinkError(error) => io::Error::from(Errno::EEXIST).raw_os_error() == error.raw_os_error(),
        _ => false,
    }
}

/// Takes our programs off an interface, whatever hook they were for, and their pins away.
pub(crate) fn detach(ifindex: u32, directory: &Path) -> Result<(), KernelError> {
    for (name, direction) in HOOKS.iter().flat_map(|hook| programs(*hook)) {
        let pin = pin_path(directory, name, ifindex);
        let what = || format!("detach {name} from interface {ifindex}");
        if !pin.try_exists().map_err(|error| KernelError::new(what(), error))? {
            continue;
        }
        // A TCX link needs no more than its pin to go, because nobody holds its descriptor.
        if !has_tcx() {
            remove_filter(ifindex, *direction).map_err(|error| KernelError::new(what(), error))?;
        }
        fs::remove_file(&pin).map_err(|error| KernelError::new(what(), error))?;
    }
    Ok(())
}

/// Takes our filter out of clsact; where the interface is gone, it went with it.
fn remove_filter(ifindex: u32, direction: TcAttachType) -> io::Result<()> {
    let Ok(interface) = if_indextoname(ifindex) else { return Ok(()) };
    let interface = interface.to_string_lossy();
    // Dropping detaches; what is gone already needs no detaching.
    drop(SchedClassifierLink::attached(&interface, direction, PRIORITY, HANDLE, None)?);
    Ok(())
}

/// Interfaces with programs of ours, gone ones among them.
pub(crate) fn attached(directory: &Path) -> Result<Vec<(u32, Hook)>, KernelError> {
    let failed = |error| KernelError::new(format!("list {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut interfaces = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        interfaces.extend(carrier(&name.to_string_lossy()));
    }
    interfaces.sort_unstable();
    interfaces.dedup();
    Ok(interfaces)
}

/// What the name of a pin says.
fn carrier(pin: &str) -> Option<(u32, Hook)> {
    let (program, ifindex) = pin.rsplit_once('-')?;
    let of_program = |hook: &&Hook| programs(**hook).iter().any(|(name, _)| *name == program);
    Some((ifindex.parse().ok()?, *HOOKS.iter().find(of_program)?))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use nix::sched::{CloneFlags, unshare};
    use weft_shared::layout::Config;

    use super::*;
    use crate::kernel::object::{self, Object, Options};

    fn run(line: &str) -> Output {
        let mut words = line.split(' ');
        let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
        output
    }

    /// Filters of ours in clsact, by their programs' identities.
    fn filters() -> Vec<String> {
        let output = run("tc filter show dev t10 ingress");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().filter(|line| line.contains("tc_from_endpoint")).map(str::to_owned).collect()
    }

    #[test]
    fn without_tcx_a_filter_outlives_us_and_is_replaced_in_place() {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (tests need root)");
        run("ip link add t10 index 10 type veth peer name p10");
        let directory = tempfile::tempdir().unwrap();
        object::ensure_bpffs(directory.path()).unwrap();
        let pin = pin_path(directory.path(), "tc_from_endpoint", 10);
        let attach_anew = || {
            let options = Options { directory: None, config: Config::DEFAULT, flows_max: Some(64) };
            let mut object = Object::load(&options).unwrap();
            clsact(object.program("tc_from_endpoint").unwrap(), TcAttachType::Ingress, 10, &pin).unwrap();
        };
        attach_anew();
        let first = filters();
        assert_eq!(first.len(), 1, "{first:?}");
        attach_anew();
        let second = filters();
        assert_eq!(second.len(), 1, "in place, not beside: {second:?}");
        assert_ne!(first, second);
        assert_eq!(attached(directory.path()).unwrap(), [(10, Hook::Endpoint)]);
        SchedClassifierLink::attached("t10", TcAttachType::Ingress, PRIORITY, HANDLE, None)
            .map(drop)
            .unwrap();
        nix::mount::umount(directory.path()).unwrap();
    }
}
