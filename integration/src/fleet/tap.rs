//! Devices whose other end is a file of this process.
#![expect(unsafe_code, reason = "such a device has no other call than ioctl")]
use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsRawFd as _, RawFd},
    sync::Arc,
    thread,
};

use anyhow::{Context, Result, ensure};
use nix::libc;

use crate::traffic::Namespace;

/// A whole packet, and what the kernel tells of it.
const BYTES_MAX: usize = 65_536 + 64;

/// `struct ifreq` of the kernel, as far as it is read.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    rest: [u8; 22],
}

/// What is behind the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Frames, which may be larger than the MTU and without checksums, as machines leave them to the virtual devices that they have.
    Tap,
    /// Packets of IP.
    Tun,
}

/// The other end of a device, which goes with it.
#[derive(Debug)]
pub(super) struct Device(File);

impl Device {
    /// Makes one in a namespace.
    pub(super) fn make(kind: Kind, name: &str, namespace: &Namespace) -> Result<Self> {
        let (text, mut bytes) = (name.to_owned(), [0; libc::IFNAMSIZ]);
        ensure!(text.len() < bytes.len(), "{text} is too long for a device's name");
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        let made = namespace.within(move || {
            let file = File::options().read(true).write(true).open("/dev/net/tun")?;
            set_up(file.as_raw_fd(), kind, bytes)?;
            Ok(Self(file))
        });
        made.with_context(|| format!("make the device {name} in {}", namespace.name()))
    }

    /// Gives the device a packet.
    pub(super) fn write(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write_all(packet)
    }
}

fn set_up(device: RawFd, kind: Kind, name: [u8; libc::IFNAMSIZ]) -> io::Result<()> {
    let flags = match kind {
        Kind::Tap => libc::IFF_TAP | libc::IFF_VNET_HDR | libc::IFF_NO_PI,
        Kind::Tun => libc::IFF_TUN | libc::IFF_NO_PI,
    };
    // `short` there: two bytes, whatever the sign.
    let request = Request { name, flags: u16::try_from(flags).map_err(io::Error::other)?, rest: [0; 22] };
    // SAFETY: the kernel reads a `struct ifreq`, which is 40 bytes, and writes its name back (netdevice(7)).
    done(unsafe { libc::ioctl(device, libc::TUNSETIFF, &raw const request) })?;
    if kind == Kind::Tap {
        let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: takes a number.
        done(unsafe { libc::ioctl(device, libc::TUNSETOFFLOAD, libc::c_ulong::from(offload)) })?;
    }
    Ok(())
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Carries frames between two taps, until one of them goes.
pub(super) fn join_taps(one: Device, other: Device) {
    let (one, other) = (Arc::new(one), Arc::new(other));
    for (from, to) in [(Arc::clone(&one), Arc::clone(&other)), (other, one)] {
        thread::spawn(move || {
            let mut frame = vec![0; BYTES_MAX];
            while let Ok(length) = (&from.0).read(&mut frame) {
                // A device that is down takes nothing.
                let _ = to.write(&frame[..length]);
            }
        });
    }
}
