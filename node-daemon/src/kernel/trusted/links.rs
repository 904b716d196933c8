//! Links of cgroups, for what aya has no call for: putting another program in the place of a link's, and asking where it is.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
    ptr,
};

use super::{bpf, bpf_descriptor, number};

const OPEN_PIN: libc::c_int = 7;
const INFO: libc::c_int = 15;
/// Of cgroups since kernel 5.7 (0c991ebc8c69).
const UPDATE_LINK: libc::c_int = 29;

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Pin {
    path: u64,
    descriptor: u32,
    flags: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Update {
    link: u32,
    program: u32,
    flags: u32,
    former_program: u32,
}

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Ask {
    descriptor: u32,
    bytes: u32,
    answer: u64,
}

/// `struct bpf_link_info`, of a link of a cgroup.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Info {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    padding_after: u32,
}

/// `BPF_LINK_TYPE_CGROUP`.
const CGROUP: u32 = 3;

/// `None`: there is no such pin.
pub(in crate::kernel) fn open(pin: &Path) -> io::Result<Option<OwnedFd>> {
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attribute = Pin { path: path.as_ptr() as u64, descriptor: 0, flags: 0 };
    // SAFETY: a text that ends with zero, and lives until the call is over.
    match unsafe { bpf_descriptor(OPEN_PIN, &mut attribute) } {
        Ok(link) => Ok(Some(link)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The number of the cgroup that the link is on; `None`: of none, or it has gone.
pub(in crate::kernel) fn cgroup(link: &OwnedFd) -> io::Result<Option<u64>> {
    let mut info: Info = bytemuck::Zeroable::zeroed();
    let mut attribute = Ask {
        descriptor: number(link.as_fd())?,
        bytes: u32::try_from(size_of::<Info>()).map_err(|_| io::ErrorKind::InvalidInput)?,
        answer: ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: as long as is said, and lives until the call is over.
    unsafe { bpf(INFO, &mut attribute)? };
    Ok((info.kind == CGROUP && info.cgroup != 0).then_some(info.cgroup))
}

/// Puts the program in the place of the link's; no call meets the hook without.
pub(in crate::kernel) fn replace(link: &OwnedFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute =
        Update { link: number(link.as_fd())?, program: number(program)?, flags: 0, former_program: 0 };
    // SAFETY: there is no address in it.
    unsafe { bpf(UPDATE_LINK, &mut attribute) }
}
