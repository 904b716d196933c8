//! The kernel in memory: what tests and the fleet simulator run the daemon against.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use async_trait::async_trait;
use bytemuck::Zeroable as _;
use ipnet::IpNet;
use weft_shared::layout::{
    Point, Reason,
    maps::{self as names, Counter},
    service::{Element, SocketPeer},
    shaping::{Pair, RoundTrips},
};

use super::{
    Attached, Counted, Datapath, Hook, KernelError, Mode,
    links::{Ensured, Link, Links, MadeEndpoint, NewEndpoint},
};
use crate::{
    balance::tables::{Services, Step as ServiceStep},
    desired::attachments::Mac,
    endpoint::interface,
    plan::tables::{Step, Tables},
    prefilter::lists::{Lists, Step as PrefilterStep},
};

/// What a twin holds.
#[derive(Debug, Default)]
pub struct TwinState {
    pub tables: Tables,
    /// Every step ever written, in order.
    pub steps: Vec<Step>,
    pub attached: BTreeMap<u32, Hook>,
    pub services: Services,
    /// Every step of services ever written, in order.
    pub service_steps: Vec<ServiceStep>,
    /// Of connected sockets, with their protocols.
    pub sockets: Vec<(u8, SocketPeer)>,
    pub prefilters: Lists,
    /// Every step of prefilters ever written, in order.
    pub prefilter_steps: Vec<PrefilterStep>,
    /// What each list has dropped, by its slot.
    pub prefiltered: BTreeMap<u32, Counter>,
    /// Interfaces that have the XDP program.
    pub prefiltering: BTreeMap<u32, Mode>,
    /// Drivers have no place for XDP programs.
    pub only_generic: bool,
    /// The cgroup that has the socket programs.
    pub cgroup: Option<PathBuf>,
    /// The cgroup that has the programs that pace.
    pub pacing: Option<PathBuf>,
    /// Bytes a second, by cgroups' paths.
    pub paced_cgroups: BTreeMap<PathBuf, u32>,
    /// The node's counter of changes, and the epochs of subjects and nodes.
    pub epoch: u64,
    pub subject_epochs: BTreeMap<u32, u64>,
    pub node_epochs: BTreeMap<u32, u64>,
    /// Entries of the flow table that are not over.
    pub flows_alive: u64,
    /// Writes fail with this text while it is set.
    pub broken: Option<String>,
    /// No program can be attached to an interface, with this text, while it is set.
    pub refuses_programs: Option<String>,
    /// No program can be loaded for sockets, with this text, while it is set.
    pub refuses_sockets: Option<String>,
}

/// Clones share one state, so a test keeps one and gives the daemon another.
#[derive(Clone, Debug, Default)]
pub struct Twin {
    state: Arc<Mutex<TwinState>>,
}

impl Twin {
    /// Looks at (or changes) the state.
    pub fn with<R>(&self, look: impl FnOnce(&mut TwinState) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl TwinState {
    fn write(&mut self, step: &Step) {
        self.tables.apply(step);
        if let Step::Bump { subjects, nodes } = step {
            let next = self.epoch + 1;
            self.subject_epochs.extend(subjects.iter().map(|slot| (*slot, next)));
            self.node_epochs.extend(nodes.iter().map(|slot| (*slot, next)));
            self.epoch = next;
        }
        self.steps.push(step.clone());
    }
}

impl Datapath for Twin {
    fn read_tables(&mut self) -> Result<Tables, KernelError> {
        Ok(self.with(|state| state.tables.clone()))
    }

    fn write(&mut self, steps: &[Step]) -> Result<(), KernelError> {
        self.with(|state| {
            if let Some(why) = &state.broken {
                return Err(KernelError::new("write the twin's tables", why.as_str()));
            }
            for step in steps {
                state.write(step);
            }
            Ok(())
        })
    }

    fn read_services(&mut self) -> Result<Services, KernelError> {
        Ok(self.with(|state| state.services.clone()))
    }

    fn read_table(&mut self, slot: u32) -> Result<Vec<Element>, KernelError> {
        let written = self.with(|state| {
            state.service_steps.iter().rev().find_map(|step| match step {
                ServiceStep::Tables { tables } => {
                    tables.iter().find(|(written, _)| *written == slot).map(|(_, table)| table.clone())
                }
                _ => None,
            })
        });
        Ok(written.flatten().map_or_else(|| vec![Element::zeroed()], |table| table.elements()))
    }

    fn write_services(&mut self, steps: &[ServiceStep]) -> Result<(), KernelError> {
        self.with(|state| {
            if let Some(why) = &state.broken {
                return Err(KernelError::new("write the twin's services", why.as_str()));
            }
            for step in steps {
                state.services.apply(step);
                state.service_steps.push(step.clone());
            }
            Ok(())
        })
    }

    fn end_sockets(
        &mut self,
        _: &[String],
        protocols: &[u8],
        serves: &(dyn Fn(u8, &SocketPeer) -> bool + Sync),
    ) -> Result<u64, KernelError> {
        self.with(|state| {
            let before = state.sockets.len();
            state.sockets.retain(|(protocol, peer)| !protocols.contains(protocol) || serves(*protocol, peer));
            Ok((before - state.sockets.len()) as u64)
        })
    }

    fn sockets_attached(&mut self) -> Result<bool, KernelError> {
        Ok(self.with(|state| state.cgroup.is_some()))
    }

    fn attach_sockets(&mut self, cgroup: &Path) -> Result<Attached, KernelError> {
        self.with(|state| {
            if let Some(why) = &state.refuses_sockets {
                return Err(KernelError::new("attach the twin's programs of sockets", why.as_str()));
            }
            let before = state.cgroup.replace(cgroup.to_owned());
            Ok(if before.as_deref() == Some(cgroup) { Attached::InPlace } else { Attached::Anew })
        })
    }

    fn pacing_attached(&mut self) -> Result<bool, KernelError> {
        Ok(self.with(|state| state.pacing.is_some()))
    }

    fn attach_pacing(&mut self, cgroup: &Path) -> Result<Attached, KernelError> {
        self.with(|state| {
            if let Some(why) = &state.refuses_sockets {
                return Err(KernelError::new("attach the twin's programs of sockets", why.as_str()));
            }
            let before = state.pacing.replace(cgroup.to_owned());
            Ok(if before.as_deref() == Some(cgroup) { Attached::InPlace } else { Attached::Anew })
        })
    }

    /// As if every cgroup were there.
    fn pace_cgroups(&mut self, root: &Path, rates: &BTreeMap<PathBuf, u32>) -> Result<(), KernelError> {
        let rates = rates.iter().map(|(path, rate)| (root.join(path), *rate));
        self.with(|state| state.paced_cgroups = rates.collect());
        Ok(())
    }

    fn round_trips(&mut self) -> Result<BTreeMap<Pair, RoundTrips>, KernelError> {
        Ok(BTreeMap::new())
    }

    fn read_prefilters(&mut self) -> Result<Lists, KernelError> {
        Ok(self.with(|state| state.prefilters.clone()))
    }

    fn write_prefilters(&mut self, steps: &[PrefilterStep]) -> Result<(), KernelError> {
        self.with(|state| {
            if let Some(why) = &state.broken {
                return Err(KernelError::new("write the twin's prefilters", why.as_str()));
            }
            for step in steps {
                state.prefilters.apply(step);
                if let PrefilterStep::List { slot, .. } = step {
                    state.prefiltered.remove(slot);
                }
                state.prefilter_steps.push(step.clone());
            }
            Ok(())
        })
    }

    fn prefiltered(&mut self, slots: &[u32]) -> Result<BTreeMap<u32, Counter>, KernelError> {
        let none = Counter { packets: 0, bytes: 0 };
        let counter = |state: &TwinState, slot: &u32| state.prefiltered.get(slot).copied().unwrap_or(none);
        Ok(self.with(|state| slots.iter().map(|slot| (*slot, counter(state, slot))).collect()))
    }

    fn attach_xdp(&mut self, ifindex: u32) -> Result<(Attached, Mode), KernelError> {
        self.with(|state| {
            if let Some(why) = &state.refuses_programs {
                return Err(KernelError::new("attach the twin's XDP program", why.as_str()));
            }
            if let Some(mode) = state.prefiltering.get(&ifindex) {
                return Ok((Attached::InPlace, *mode));
            }
            let mode = if state.only_generic { Mode::Generic } else { Mode::Native };
            state.prefiltering.insert(ifindex, mode);
            Ok((Attached::Anew, mode))
        })
    }

    fn detach_xdp(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.with(|state| state.prefiltering.remove(&ifindex));
        Ok(())
    }

    fn xdp_attached(&mut self) -> Result<Vec<u32>, KernelError> {
        Ok(self.with(|state| state.prefiltering.keys().copied().collect()))
    }

    fn attach(&mut self, ifindex: u32, hook: Hook) -> Result<Attached, KernelError> {
        self.with(|state| {
            if let Some(why) = &state.refuses_programs {
                return Err(KernelError::new("attach the twin's programs", why.as_str()));
            }
            let before = state.attached.insert(ifindex, hook);
            Ok(if before == Some(hook) { Attached::InPlace } else { Attached::Anew })
        })
    }

    fn detach(&mut self, ifindex: u32) -> Result<(), KernelError> {
        self.with(|state| state.attached.remove(&ifindex));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), KernelError> {
        Ok(())
    }

    fn attached(&mut self) -> Result<Vec<(u32, Hook)>, KernelError> {
        Ok(self.with(|state| state.attached.iter().map(|(ifindex, hook)| (*ifindex, *hook)).collect()))
    }

    fn counters(&mut self) -> Result<Vec<(Point, Reason, Counter)>, KernelError> {
        Ok(Vec::new())
    }

    fn events_lost(&mut self) -> Result<u64, KernelError> {
        Ok(0)
    }

    fn count_flows(&mut self) -> Result<Counted, KernelError> {
        self.with(|state| Ok(Counted { entries: state.flows_alive, finished: true }))
    }

    fn flows_capacity(&mut self) -> Result<u64, KernelError> {
        Ok(names::FLOWS_MAX as u64)
    }

    fn map_bytes(&mut self) -> Result<u64, KernelError> {
        Ok(0)
    }
}

/// Interfaces in memory.
#[derive(Debug, Default)]
pub struct TwinLinksState {
    pub links: BTreeMap<String, Link>,
    /// Address → interface index it is routed to.
    pub routes: BTreeMap<IpAddr, u32>,
    /// Prefix → source of the node's own processes.
    pub overlay_routes: BTreeMap<IpNet, IpAddr>,
    /// Neighbours of the uplink that are kept resolved: in a twin's network, every place is one.
    pub neighbours: BTreeSet<IpAddr>,
    pub up: BTreeSet<u32>,
    /// Of the only uplink, instead of [`UPLINK_ADDRESS`].
    pub addresses: Option<Vec<IpAddr>>,
    /// Queues let packets go at their times of departure.
    pub keeps_departures: bool,
    next_ifindex: u32,
}

impl TwinLinksState {
    fn uplink_addresses(&self) -> Vec<IpAddr> {
        self.addresses.clone().unwrap_or_else(|| vec![UPLINK_ADDRESS])
    }
}

/// Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct TwinLinks {
    state: Arc<Mutex<TwinLinksState>>,
}

/// The address of a twin's only uplink.
const UPLINK_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11));

impl TwinLinks {
    /// Looks at (or changes) the state.
    pub fn with<R>(&self, look: impl FnOnce(&mut TwinLinksState) -> R) -> R {
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, name: &str, peer_elsewhere: bool) -> Link {
        self.with(|state| {
            state.next_ifindex += 1;
            let ifindex = state.next_ifindex;
            let [a, b, c, d] = ifindex.to_be_bytes();
            let mac = Some([0x02, 0x01, a, b, c, d]);
            let link =
                Link { ifindex, name: name.to_owned(), mac, mtu_bytes: 1500, up: false, peer_elsewhere };
            state.links.insert(name.to_owned(), link.clone());
            link
        })
    }
}

#[async_trait]
impl Links for TwinLinks {
    async fn find(&self, name: &str) -> Result<Option<Link>, KernelError> {
        Ok(self.with(|state| state.links.get(name).cloned()))
    }

    async fn find_at(&self, ifindex: u32) -> Result<Option<Link>, KernelError> {
        Ok(self.with(|state| state.links.values().find(|link| link.ifindex == ifindex).cloned()))
    }

    async fn default_uplinks(&self) -> Result<Vec<Link>, KernelError> {
        let known = self.find("eth0").await?;
        Ok(vec![known.unwrap_or_else(|| self.add("eth0", false))])
    }

    async fn addresses(&self, _: u32) -> Result<Vec<IpAddr>, KernelError> {
        Ok(self.with(|state| state.uplink_addresses()))
    }

    async fn host_addresses(&self) -> Result<Vec<IpAddr>, KernelError> {
        Ok(self.with(|state| state.uplink_addresses()))
    }

    async fn ensure_overlay(
        &self,
        name: &str,
        _: u16,
        mtu_bytes: u32,
        ifindex: Option<u32>,
    ) -> Result<Ensured, KernelError> {
        let known = self.find(name).await?;
        let changed = known.as_ref().is_none_or(|link| link.mtu_bytes != mtu_bytes);
        let mut link = known.unwrap_or_else(|| self.add(name, false));
        link.mtu_bytes = mtu_bytes;
        link.ifindex = ifindex.unwrap_or(link.ifindex);
        let ifindex = link.ifindex;
        self.with(|state| state.links.insert(name.to_owned(), link));
        Ok(Ensured { ifindex, changed })
    }

    async fn route_to_overlay(&self, _: u32, routes: &BTreeMap<IpNet, IpAddr>) -> Result<bool, KernelError> {
        Ok(self.with(|state| std::mem::replace(&mut state.overlay_routes, routes.clone()) != *routes))
    }

    async fn keep_neighbours(
        &self,
        uplinks: &BTreeSet<u32>,
        places: &BTreeSet<IpAddr>,
    ) -> Result<bool, KernelError> {
        let places = if uplinks.is_empty() { BTreeSet::new() } else { places.clone() };
        Ok(self.with(|state| std::mem::replace(&mut state.neighbours, places.clone()) != places))
    }

    async fn keeps_departures(&self, _: u32) -> Result<bool, KernelError> {
        Ok(self.with(|state| state.keeps_departures))
    }

    async fn set_up(&self, ifindex: u32) -> Result<bool, KernelError> {
        Ok(self.with(|state| state.up.insert(ifindex)))
    }

    async fn prepare_node(&self, _: &[Link]) -> Result<bool, KernelError> {
        Ok(false)
    }

    async fn make_endpoint(&self, new: &NewEndpoint) -> Result<MadeEndpoint, KernelError> {
        let Link { ifindex, .. } = self.add(&new.host_name, true);
        let [a, b, c, d] = ifindex.to_be_bytes();
        Ok(MadeEndpoint {
            ifindex,
            workload_mac: [0x02, 0x02, a, b, c, d],
            gateway_mac: [0x02, 0x01, a, b, c, d],
        })
    }

    async fn peer_mac(&self, _: &str) -> Result<Option<Mac>, KernelError> {
        Ok(None)
    }

    async fn connect_endpoint(
        &self,
        ifindex: u32,
        addresses: &[IpAddr],
        _: Mac,
    ) -> Result<bool, KernelError> {
        Ok(self.with(|state| {
            let mut missed = state.up.insert(ifindex);
            for address in addresses {
                missed |= state.routes.insert(*address, ifindex) != Some(ifindex);
            }
            missed
        }))
    }

    async fn set_endpoint_mtu(&self, ifindex: u32, _: &str, mtu_bytes: u32) -> Result<(), KernelError> {
        self.with(|state| {
            for link in state.links.values_mut().filter(|link| link.ifindex == ifindex) {
                link.mtu_bytes = mtu_bytes;
            }
        });
        Ok(())
    }

    async fn disconnect_endpoint(&self, ifindex: u32, _: &[IpAddr]) -> Result<(), KernelError> {
        self.with(|state| {
            state.routes.retain(|_, to| *to != ifindex);
            state.up.remove(&ifindex);
        });
        Ok(())
    }

    async fn remove(&self, name: &str) -> Result<(), KernelError> {
        self.with(|state| {
            if let Some(link) = state.links.remove(name) {
                state.routes.retain(|_, to| *to != link.ifindex);
                state.up.remove(&link.ifindex);
            }
        });
        Ok(())
    }

    async fn ours(&self) -> Result<Vec<Link>, KernelError> {
        Ok(self.with(|state| {
            state.links.values().filter(|link| interface::is_ours(&link.name)).cloned().collect()
        }))
    }
}
