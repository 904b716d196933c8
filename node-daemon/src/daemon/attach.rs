//! Attaching and detaching endpoints. An interface carries programs and a closed row before it is up, so there is no
//! moment without policy.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
};

use tracing::{info, warn};
use weft_proto::v1::{self, node_report::Report};
use weft_shared::policy::parse;

use super::State;
use crate::{
    desired::attachments::{Attachment, Mac},
    endpoint::{
        addresses::{self, AddressError, Addresses, Taken},
        interface,
    },
    kernel::{
        Datapath, Hook,
        links::{Links, NewEndpoint},
    },
    limits::ENDPOINTS_MAX,
    plan::diff,
};

/// Where the workload is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A path, or a name below `/run/netns`.
    Netns(String),
    /// An existing interface of the host, and the workload's MAC if the caller knows it.
    Interface { name: String, mac: Option<Mac> },
}

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachSpec {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub target: Target,
    pub addresses: Vec<String>,
    /// In the namespace.
    pub interface_name: String,
    pub container_id: String,
    pub ingress_bits_per_second: Option<u64>,
    pub egress_bits_per_second: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Taken(String),
    #[error("{0}")]
    Exhausted(String),
    /// Worth another try when something has changed.
    #[error("{0}")]
    NotYet(String),
    #[error("{0}")]
    Internal(String),
}

impl From<AddressError> for AttachError {
    fn from(error: AddressError) -> Self {
        let text = error.to_string();
        match error {
            AddressError::NoPrefixes => Self::NotYet(text),
            AddressError::Taken { .. } => Self::Taken(text),
            AddressError::Exhausted { .. } => Self::Exhausted(text),
            _ => Self::Invalid(text),
        }
    }
}

fn internal(error: impl std::fmt::Display) -> AttachError {
    AttachError::Internal(error.to_string())
}

/// An interface that is there, before programs are on it.
struct Prepared {
    interface: String,
    ifindex: u32,
    netns: String,
    ours: bool,
    peer: bool,
    mac: Mac,
    gateway_mac: Mac,
}

impl<D: Datapath, L: Links> State<D, L> {
    pub(super) async fn attach(&mut self, spec: AttachSpec) -> Result<v1::Endpoint, AttachError> {
        self.check(&spec)?;
        let addresses = self.choose_addresses(&spec)?;
        self.refused.remove(&spec.name);
        let prepared = self.prepare(&spec, addresses).await?;
        let mut attachment = attachment(spec, addresses, prepared);
        if self.connection.is_none() {
            // Nobody can classify it, but one with the same labels was classified.
            attachment.lent_identity =
                self.attachments.known_identity(&attachment.labels, self.desired.endpoints());
        }
        let name = attachment.name.clone();
        match self.take_in(attachment).await {
            Ok(endpoint) => Ok(endpoint),
            Err(error) => {
                if let Err(left) = self.detach(&name).await {
                    warn!(endpoint = %name, error = %left, "what was made for it stays");
                }
                Err(error)
            }
        }
    }

    fn check(&self, spec: &AttachSpec) -> Result<(), AttachError> {
        parse::name(&spec.name, "name").map_err(|error| AttachError::Invalid(error.to_string()))?;
        parse::labels(&spec.labels, "labels").map_err(|errors| {
            let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
            AttachError::Invalid(texts.join("; "))
        })?;
        if spec.interface_name.is_empty()
            || spec.interface_name.len() > 15
            || spec.interface_name.contains(['/', ' '])
        {
            let text = format!("interfaceName: \"{}\" is not the name of an interface", spec.interface_name);
            return Err(AttachError::Invalid(text));
        }
        if self.attachments.endpoints.contains_key(&spec.name) {
            return Err(AttachError::Taken(format!("name: this node has an endpoint {} already", spec.name)));
        }
        if self.attachments.endpoints.len() >= ENDPOINTS_MAX {
            return Err(AttachError::Exhausted(format!("a node has at most {ENDPOINTS_MAX} endpoints")));
        }
        Ok(())
    }

    fn choose_addresses(&self, spec: &AttachSpec) -> Result<Addresses, AttachError> {
        let own = self.desired.nodes().get(&self.settings.node);
        let prefixes = own.map_or(&[][..], |route| &route.endpoint_cidrs);
        let taken: Taken = self
            .attachments
            .endpoints
            .values()
            .flat_map(|other| other.addresses().map(|address| (address, other.name.clone())))
            .collect();
        Ok(addresses::choose(&spec.name, &spec.addresses, prefixes, &taken)?)
    }

    async fn prepare(&self, spec: &AttachSpec, addresses: Addresses) -> Result<Prepared, AttachError> {
        match &spec.target {
            Target::Netns(netns) => self.make_pair(spec, netns, addresses).await,
            Target::Interface { name, mac } => self.take_interface(name, *mac).await,
        }
    }

    async fn make_pair(
        &self,
        spec: &AttachSpec,
        netns: &str,
        addresses: Addresses,
    ) -> Result<Prepared, AttachError> {
        let netns = netns_path(netns);
        if !Path::new(&netns).exists() {
            return Err(AttachError::Invalid(format!("netns: there is no namespace at {netns}")));
        }
        let host_name = interface::host_name(&spec.name);
        let owner = self.attachments.endpoints.values().find(|other| other.interface == host_name);
        if let Some(owner) = owner {
            let text = format!("name: its interface would be {host_name}, as that of {}", owner.name);
            return Err(AttachError::Taken(text));
        }
        // A leftover of an attachment that never finished.
        self.links.remove(&host_name).await.map_err(internal)?;
        let new = NewEndpoint {
            host_name: host_name.clone(),
            netns: netns.clone(),
            workload_name: spec.interface_name.clone(),
            addresses: each(addresses),
            mtu_bytes: self.endpoint_mtu_bytes,
        };
        let made = match self.links.make_endpoint(&new).await {
            Ok(made) => made,
            Err(error) => {
                drop(self.links.remove(&host_name).await);
                return Err(AttachError::Invalid(format!("netns {netns}: {error}")));
            }
        };
        Ok(Prepared {
            interface: host_name,
            ifindex: made.ifindex,
            netns,
            ours: true,
            peer: true,
            mac: made.workload_mac,
            gateway_mac: made.gateway_mac,
        })
    }

    async fn take_interface(&self, name: &str, mac: Option<Mac>) -> Result<Prepared, AttachError> {
        let Some(link) = self.links.find(name).await.map_err(internal)? else {
            return Err(AttachError::Invalid(format!("interface: there is no interface {name}")));
        };
        if let Some(owner) = self.attachments.endpoints.values().find(|other| other.ifindex == link.ifindex) {
            return Err(AttachError::Taken(format!("interface: {name} is attached as {}", owner.name)));
        }
        let is_infrastructure = name == self.settings.vxlan_device
            || self.uplinks.iter().any(|uplink| uplink.ifindex == link.ifindex)
            || name == "lo";
        if is_infrastructure {
            return Err(AttachError::Invalid(format!("interface: {name} is the node's own")));
        }
        let mac = match mac {
            Some(mac) => Some(mac),
            None => self.links.peer_mac(name).await.map_err(internal)?,
        };
        let (Some(mac), Some(gateway_mac)) = (mac, link.mac) else {
            let text = format!("mac: the workload behind {name} can't be asked; give its MAC");
            return Err(AttachError::Invalid(text));
        };
        Ok(Prepared {
            interface: name.to_owned(),
            ifindex: link.ifindex,
            netns: String::new(),
            ours: false,
            peer: link.peer_elsewhere,
            mac,
            gateway_mac,
        })
    }

    /// From here on `detach` undoes all.
    async fn take_in(&mut self, attachment: Attachment) -> Result<v1::Endpoint, AttachError> {
        let (name, ifindex, mac) = (attachment.name.clone(), attachment.ifindex, attachment.mac);
        let addresses: Vec<IpAddr> = attachment.addresses().collect();
        self.attachments.endpoints.insert(name.clone(), attachment.clone());
        self.attachments.store(&self.disk).map_err(internal)?;
        self.write_kernel().map_err(internal)?;
        self.datapath.attach(ifindex, Hook::Endpoint).map_err(internal)?;
        self.links.connect_endpoint(ifindex, &addresses, mac).await.map_err(internal)?;
        info!(endpoint = %name, interface = %attachment.interface, ?addresses, "attached, closed until its policy is realised");
        self.after_change();
        Ok(self.endpoint(&attachment))
    }

    /// `false`: there is none of this name.
    pub(super) async fn detach(&mut self, name: &str) -> Result<bool, String> {
        let Some(attachment) = self.attachments.endpoints.get(name).cloned() else { return Ok(false) };
        let addresses: Vec<IpAddr> = attachment.addresses().collect();
        // The interface goes first: without its row nothing passes, and without the interface nothing can.
        let unlinked = if attachment.ours {
            self.links.remove(&attachment.interface).await
        } else {
            self.links.disconnect_endpoint(attachment.ifindex, &addresses).await
        };
        unlinked.map_err(|error| error.to_string())?;
        if attachment.ours && self.links.find_at(attachment.ifindex).await.is_ok_and(|link| link.is_some()) {
            // Somebody gave it another name; it must not stay up without programs.
            let closed = self.links.disconnect_endpoint(attachment.ifindex, &addresses).await;
            closed.map_err(|error| error.to_string())?;
        }
        if !attachment.ours {
            let steps = diff::remove_endpoint(&self.actual, attachment.ifindex);
            self.write_steps(&steps).map_err(|error| error.to_string())?;
        }
        self.datapath.detach(attachment.ifindex).map_err(|error| error.to_string())?;
        // From here on it is over, whatever can't be written yet: that is tried again, and nobody could ask for it twice.
        if let Err(error) = self.forget_attachment(name) {
            self.failed(&error);
        }
        if let Err(error) = self.attachments.store(&self.disk) {
            self.failed(&error);
        }
        self.reported.remove(name);
        let gone = v1::EndpointGone { name: name.to_owned(), instance: attachment.instance };
        self.report(Report::EndpointGone(gone));
        let word = self.desired.endpoints().get(name).cloned();
        self.set_right.insert(name.to_owned(), word);
        info!(endpoint = %name, "detached");
        if let Err(error) = self.write_kernel() {
            self.failed(&error);
        }
        self.after_change();
        Ok(true)
    }
}

fn netns_path(netns: &str) -> String {
    let named = |directory: &str| PathBuf::from(directory).join(netns);
    if netns.contains('/') { netns.to_owned() } else { named("/run/netns").display().to_string() }
}

fn each(addresses: Addresses) -> Vec<IpAddr> {
    addresses.v4.map(IpAddr::V4).into_iter().chain(addresses.v6.map(IpAddr::V6)).collect()
}

fn attachment(spec: AttachSpec, addresses: Addresses, prepared: Prepared) -> Attachment {
    Attachment {
        name: spec.name,
        instance: format!("{:032x}", rand::random::<u128>()),
        labels: spec.labels,
        interface: prepared.interface,
        ifindex: prepared.ifindex,
        netns: prepared.netns,
        ours: prepared.ours,
        peer: prepared.peer,
        container_id: spec.container_id,
        address4: addresses.v4,
        address6: addresses.v6,
        mac: prepared.mac,
        gateway_mac: prepared.gateway_mac,
        ingress_bits_per_second: spec.ingress_bits_per_second,
        egress_bits_per_second: spec.egress_bits_per_second,
        accepted: None,
        lent_identity: None,
    }
}
