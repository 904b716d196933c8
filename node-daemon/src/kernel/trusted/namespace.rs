//! The number by which programs know a network namespace.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd as _, OwnedFd},
    ptr,
};

/// `SO_NETNS_COOKIE` (kernel 5.14, commit e8b9eab99232); libc has no name for it.
const NAMESPACE_COOKIE: libc::c_int = 71;

/// Of the namespace that the calling thread is in.
pub(in crate::kernel) fn cookie() -> io::Result<u64> {
    let socket: OwnedFd = UdpSocket::bind("[::]:0").or_else(|_| UdpSocket::bind("0.0.0.0:0"))?.into();
    let mut cookie = 0_u64;
    let mut bytes = libc::socklen_t::try_from(size_of::<u64>()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the number and its length live until the call is over, and the one is as long as the other says.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            NAMESPACE_COOKIE,
            ptr::from_mut(&mut cookie).cast(),
            &raw mut bytes,
        )
    };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(cookie) }
}
