//! Probes of services' backends: of those on this node, and of those outside of the fleet that it was chosen for.
//!
//! What is probed comes from the desired state ([`targets`]), what a probe does is in [`probe`], what follows from its outcomes in
//! [`verdict`]. [`prober`] runs them, beside the core: it changes nothing in the kernel, and what it finds goes to the
//! controllers, which tell all nodes.
pub mod probe;
pub mod prober;
pub mod targets;
pub mod verdict;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::balance::service::Service;

/// How a backend is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub interval: Duration,
    /// At most the interval.
    pub timeout: Duration,
    /// Failures in a row.
    pub unhealthy_after: u32,
    /// Successes in a row.
    pub healthy_after: u32,
    /// `None`: a connection is enough.
    pub http: Option<Http>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// With its query.
    pub path: String,
    pub expected_status: u16,
}

/// Services of which this node probes a backend.
pub type Probed = BTreeMap<String, Arc<Service>>;
