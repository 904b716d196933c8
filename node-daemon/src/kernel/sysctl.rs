//! Kernel settings below `/proc/sys/net`, of the namespace of the calling thread.

use std::{fs, io, path::Path};

use super::KernelError;

/// Reads `net/…`; `None`: this kernel does not have it.
pub fn get(name: &str) -> Result<Option<String>, KernelError> {
    match fs::read_to_string(path(name)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(KernelError::new(format!("read sysctl {name}"), error)),
    }
}

/// Writes `net/…` where it differs, since `/proc/sys` may be read-only and right already. Whether it did.
pub fn set(name: &str, value: &str) -> Result<bool, KernelError> {
    if get(name)?.as_deref() == Some(value) {
        return Ok(false);
    }
    fs::write(path(name), value)
        .map_err(|error| KernelError::new(format!("set sysctl {name} to {value}"), error))?;
    Ok(true)
}

/// Whether the kernel has IPv6 at all.
pub fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6").exists()
}

fn path(name: &str) -> String {
    format!("/proc/sys/{name}")
}
