//! Socket programs on a cgroup, by pinned links: a restart replaces the program of each in place, so that no call of a process
//! meets the hook without.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd as _,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, ProgramError, ProgramFd, SockOps, links::FdLink,
};

use super::{Attached, KernelError, trusted::links};

/// The programs, by the names that they have in the object, in the order in which they are attached: who can be translated
/// back is translated.
pub const SOCKET_PROGRAMS: [&str; 10] = [
    "sock_recvmsg4",
    "sock_recvmsg6",
    "sock_getpeername4",
    "sock_getpeername6",
    "sock_bind4",
    "sock_bind6",
    "sock_connect4",
    "sock_connect6",
    "sock_sendmsg4",
    "sock_sendmsg6",
];

/// What is made of a socket is noted before its connections ask for it.
pub const PACING_PROGRAMS: [&str; 2] = ["sock_made", "sock_paced"];

/// A program for cgroups, of whatever type.
pub(super) trait OnCgroup {
    fn descriptor(&self) -> Result<&ProgramFd, ProgramError>;

    fn link(&mut self, cgroup: &File) -> Result<FdLink, BoxError>;
}

/// A link is always one of many (kernel 5.7, commit af6eea57437a), and takes no mode: this one is no flags.
macro_rules! on_cgroup {
    ($($program:ty),+) => { $(
        impl OnCgroup for $program {
            fn descriptor(&self) -> Result<&ProgramFd, ProgramError> {
                self.fd()
            }

            fn link(&mut self, cgroup: &File) -> Result<FdLink, BoxError> {
                let id = self.attach(cgroup, CgroupAttachMode::Single)?;
                Ok(self.take_link(id)?.try_into()?)
            }
        }
    )+ };
}

on_cgroup!(CgroupSockAddr, CgroupSock, SockOps);

/// Where the cgroup hierarchy of version 2 is mounted, by the kernel's list of mounts; `None`: nowhere.
pub fn mounted(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (path, kind) = (words.next()?, words.next()?);
        // Blanks in a path are written in octal there; nobody mounts it so.
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

/// A cgroup that programs can be attached to.
pub(super) struct Cgroup {
    directory: File,
    /// As links tell of it: the number of its directory.
    number: u64,
}

impl Cgroup {
    pub(super) fn open(path: &Path) -> Result<Self, KernelError> {
        let failed = |error| KernelError::new(format!("open the cgroup {}", path.display()), error);
        let directory = fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path);
        let directory = directory.map_err(failed)?;
        let number = directory.metadata().map_err(failed)?.ino();
        Ok(Self { directory, number })
    }
}

/// Attaches a program, or puts it in the place of the one that an earlier daemon attached. One that is on another cgroup goes
/// once this one is there.
pub(super) fn attach(
    program: &mut impl OnCgroup,
    name: &str,
    cgroup: &Cgroup,
    pins: &Path,
) -> Result<Attached, KernelError> {
    let pin = pins.join(name);
    try_attach(program, cgroup, &pin).map_err(|error| KernelError::new(format!("attach {name}"), error))
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn try_attach(program: &mut impl OnCgroup, cgroup: &Cgroup, pin: &Path) -> Result<Attached, BoxError> {
    let former = links::open(pin)?;
    if let Some(link) = &former
        && links::cgroup(link)? == Some(cgroup.number)
    {
        links::replace(link, program.descriptor()?.as_fd())?;
        return Ok(Attached::InPlace);
    }
    let link = program.link(&cgroup.directory)?;
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    link.pin(pin)?;
    Ok(Attached::Anew)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_among_others() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n";
        assert_eq!(mounted(mounts), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mounted("cgroup /sys/fs/cgroup2 cgroup rw 0 0\n"), None);
    }
}
