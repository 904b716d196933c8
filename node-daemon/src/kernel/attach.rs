//! Programs on interfaces: by pinned TCX links where the kernel has them (6.6), else by clsact filters with a handle and
//! priority of ours and the program's pin as a note that they are there. A restart replaces the program in place.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::programs::{
    LinkOrder, SchedClassifier, TcAttachType,
    links::{FdLink, LinkError, PinnedLink},
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::{errno::Errno, net::if_::if_indextoname};

use super::{Hook, KernelError};

/// Where filters of ours stand in clsact: recognisable without memory.
const PRIORITY: u16 = 0x77ef;
const HANDLE: TcHandle = TcHandle::new(0, 0x77ef);

/// A hook's programs and their directions.
pub(crate) const fn programs(hook: Hook) -> &'static [(&'static str, TcAttachType)] {
    match hook {
        Hook::Endpoint => {
            &[("tc_from_endpoint", TcAttachType::Ingress), ("tc_to_endpoint", TcAttachType::Egress)]
        }
        Hook::Overlay => &[("tc_from_overlay", TcAttachType::Ingress)],
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
) -> Result<(), KernelError> {
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
) -> Result<(), BoxError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => {
            let link: SchedClassifierLink = FdLink::from(link).try_into()?;
            match program.attach_to_link(link) {
                // The pin holds the link; ours may go.
                Ok(id) => {
                    drop(program.take_link(id)?);
                    return Ok(());
                }
                // The interface went, and another took its index: the link is dead and is taken away.
                Err(_) => fs::remove_file(pin)?,
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
    Ok(())
}

fn clsact(
    program: &mut SchedClassifier,
    direction: TcAttachType,
    ifindex: u32,
    pin: &Path,
) -> Result<(), BoxError> {
    let interface = if_indextoname(ifindex)?.to_string_lossy().into_owned();
    match qdisc_add_clsact(&interface) {
        Err(error) if !exists(&error) => return Err(error.into()),
        _ => {}
    }
    // Replaces; where there is nothing to replace, it is made.
    let ours = SchedClassifierLink::attached(&interface, direction, PRIORITY, HANDLE, None)?;
    let id = if let Ok(id) = program.attach_to_link(ours) {
        id
    } else {
        let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
        program.attach_with_options(&interface, direction, TcAttachOptions::Netlink(options))?
    };
    // Dropped, it would detach; the filter is to outlive us.
    std::mem::forget(program.take_link(id)?);
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    program.pin(pin)?;
    Ok(())
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
        if has_tcx() {
            // Open file descriptors would keep the link: there are none, so that the pin is all.
        } else if let Ok(interface) = if_indextoname(ifindex) {
            let interface = interface.to_string_lossy().into_owned();
            let link = SchedClassifierLink::attached(&interface, *direction, PRIORITY, HANDLE, None)
                .map_err(|error| KernelError::new(what(), error))?;
            // Dropping detaches; what is gone already needs no detaching.
            drop(link);
        }
        fs::remove_file(&pin).map_err(|error| KernelError::new(what(), error))?;
    }
    Ok(())
}

/// Interfaces with programs of ours, gone ones among them.
pub(crate) fn attached(directory: &Path) -> Result<Vec<u32>, KernelError> {
    let failed = |error| KernelError::new(format!("list {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut interfaces = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        if let Some(Ok(ifindex)) = name.to_string_lossy().rsplit_once('-').map(|(_, index)| index.parse()) {
            interfaces.push(ifindex);
        }
    }
    interfaces.sort_unstable();
    interfaces.dedup();
    Ok(interfaces)
}
