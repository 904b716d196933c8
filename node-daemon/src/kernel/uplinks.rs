//! The XDP program on uplinks, by pinned links: native where the driver can, generic otherwise. The pin's name says which, so
//! that a daemon knows it of what an earlier one attached. A restart replaces the program in place.

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::programs::{Xdp, XdpMode, links::FdLink};
use nix::errno::Errno;

use super::{Attached, KernelError, Mode, trusted::links};

/// The program, by the name that it has in the object and in the kernel.
pub(super) const UPLINK_PROGRAM: &str = "xdp_uplink";

const MODES: [(Mode, &str, XdpMode); 2] =
    [(Mode::Native, "native", XdpMode::Driver), (Mode::Generic, "generic", XdpMode::Skb)];

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Attaches the program, or puts it in the place of the one that is attached.
pub(super) fn attach(
    program: &mut Xdp,
    ifindex: u32,
    directory: &Path,
) -> Result<(Attached, Mode), KernelError> {
    fs::create_dir_all(directory)
        .map_err(|error| KernelError::new(format!("create {}", directory.display()), error))?;
    try_attach(program, ifindex, directory)
        .map_err(|error| KernelError::new(format!("attach {UPLINK_PROGRAM} to interface {ifindex}"), error))
}

fn try_attach(program: &mut Xdp, ifindex: u32, directory: &Path) -> Result<(Attached, Mode), BoxError> {
    for (mode, name, _) in MODES {
        let pin = pin(directory, name, ifindex);
        let Some(link) = links::open(&pin)? else { continue };
        match links::replace(&link, program.fd()?.as_fd()) {
            Ok(()) => return Ok((Attached::InPlace, mode)),
            // Somebody detached it, or the interface went and another took its index.
            Err(error) if error.raw_os_error() == Some(Errno::ENOLINK as i32) => fs::remove_file(&pin)?,
            Err(error) => return Err(error.into()),
        }
    }
    let mut refused = None;
    for (mode, name, flags) in MODES {
        match program.attach_to_if_index(ifindex, flags) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                link.pin(pin(directory, name, ifindex))?;
                return Ok((Attached::Anew, mode));
            }
            // What the driver says of native is of interest only if generic does not do, either.
            Err(error) => refused = Some(refused.unwrap_or(error)),
        }
    }
    Err(refused.map_or_else(|| "no mode does".into(), Into::into))
}

/// No error where there is none. Nobody holds the link but its pin.
pub(super) fn detach(ifindex: u32, directory: &Path) -> Result<(), KernelError> {
    for (_, name, _) in MODES {
        let pin = pin(directory, name, ifindex);
        match fs::remove_file(&pin) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::new(format!("remove {}", pin.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Interfaces with a program of ours, gone ones among them.
pub(super) fn attached(directory: &Path) -> Result<Vec<u32>, KernelError> {
    let failed = |error| KernelError::new(format!("list {}", directory.display()), error);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut interfaces = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        interfaces.extend(name.rsplit_once('-').and_then(|(_, ifindex)| ifindex.parse::<u32>().ok()));
    }
    Ok(interfaces)
}

fn pin(directory: &Path, mode: &str, ifindex: u32) -> PathBuf {
    directory.join(format!("{mode}-{ifindex}"))
}
