//! Values on the command line that are more than text: durations, labels, selectors, ports, parties.
mod duration;
mod labels;
mod party;
mod port;
mod prefix;
mod socket;

pub(crate) use duration::{Timeout, parse_duration};
pub(crate) use labels::{parse_label, parse_labels, parse_selector};
pub(crate) use party::parse_monitor_party;
pub(crate) use port::{parse_monitor_port, parse_port};
pub(crate) use prefix::parse_prefix;
pub(crate) use socket::Socket;
