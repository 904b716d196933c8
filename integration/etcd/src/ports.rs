//! Free ports. They are taken below the range from which the kernel takes ports for outgoing connections, so that a member
//! that is down for a while finds its ports free when it comes back.
use std::{
    hash::{BuildHasher as _, RandomState},
    net::{IpAddr, TcpListener},
};

use anyhow::{Result, bail};

const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;

/// `count` ports that nobody listens on now. Another process may be faster: whoever starts something on them has to see
/// whether it worked.
pub(crate) fn free(address: IpAddr, count: usize) -> Result<Vec<u16>> {
    let span = LAST - FIRST;
    // Processes that look at the same time start in different places.
    let start = u16::try_from(RandomState::new().hash_one(std::process::id()) % u64::from(span))?;
    let candidates = (0..span).map(|step| FIRST + (start + step) % span);
    let mut taken = Vec::new();
    for port in candidates {
        if taken.len() == count {
            break;
        }
        // Held until all are found, so that none is found twice.
        taken.extend(TcpListener::bind((address, port)).map(|listener| (listener, port)));
    }
    if taken.len() < count {
        bail!("no {count} free ports on {address} from {FIRST} to {LAST}");
    }
    Ok(taken.into_iter().map(|(_, port)| port).collect())
}
