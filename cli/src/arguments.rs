//! Values on the command line that are more than text: durations, labels, selectors, ports, parties.
mod duration;
mod labels;
mod port;

pub(crate) use duration::Timeout;
pub(crate) use labels::{parse_label, parse_labels, parse_selector};
pub(crate) use port::parse_port;
