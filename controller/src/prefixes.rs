//! Which prefix of each pool a node gets for its endpoints.
use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use weft_shared::policy::model::FleetConfig;

use crate::{
    keys, limits,
    nodes::{Greeting, NodeError},
    plan::Plan,
    store::{KeyValue, Range, Store, StoreError},
};

/// The prefixes that are taken, as this controller knows them: read once, and then what it gives itself. Of a thousand
/// nodes that come at once each would read all others' otherwise.
///
/// That nothing is given twice rests on the transaction: it holds only if nobody else has given a prefix since the reading.
/// One that was freed since counts as taken until this is read again, which is before a pool is said to be exhausted.
#[derive(Debug, Default)]
pub struct Taken(Option<Known>);

#[derive(Debug)]
struct Known {
    cidrs: BTreeSet<IpNet>,
    /// The mark of who was given one last.
    given: Option<KeyValue>,
    /// Nothing was given from it since it was read.
    fresh: bool,
}

impl Taken {
    /// After anything but a commit: others may have given some, and what was planned was not given.
    pub fn forget(&mut self) {
        self.0 = None;
    }

    /// After a commit that gave some: the mark is of that revision.
    pub fn given_at(&mut self, revision: u64) {
        match self.0.as_mut().map(|known| (&mut known.fresh, known.given.as_mut())) {
            Some((fresh, Some(given))) => {
                *fresh = false;
                given.mod_revision = revision;
            }
            // There was no mark: the next reading finds it.
            _ => self.forget(),
        }
    }

    async fn known(&mut self, store: &dyn Store) -> Result<&mut Known, StoreError> {
        let known = if let Some(known) = self.0.take() {
            known
        } else {
            // The mark first: of what is given in between it is too old, and the transaction fails.
            let (given, _) = store.get(keys::ENDPOINT_CIDR_GIVEN).await?;
            Known { cidrs: read(store).await?, given, fresh: true }
        };
        Ok(self.0.insert(known))
    }
}

/// What the node has in each pool stays; where it has nothing it gets the lowest prefix that is free. `taken`: of whose turn
/// it is to give; without it, nothing is given, and the plan only notes that something would be.
pub async fn plan(
    store: &dyn Store,
    config: &FleetConfig,
    greeting: &Greeting,
    old: &[IpNet],
    taken: Option<&mut Taken>,
    plan: &mut Plan,
) -> Result<Vec<IpNet>, NodeError> {
    let kept = |pool: &IpNet| old.iter().find(|cidr| pool.contains(*cidr)).copied();
    if config.pools.iter().all(|pool| kept(&pool.cidr).is_some()) {
        return Ok(config.pools.iter().filter_map(|pool| kept(&pool.cidr)).collect());
    }
    plan.note_allocation();
    let Some(taken) = taken else { return Ok(Vec::new()) };
    let mut cidrs = Vec::new();
    for pool in &config.pools {
        if let Some(kept) = kept(&pool.cidr) {
            cidrs.push(kept);
            continue;
        }
        let (whole, length) = (pool.cidr, pool.node_prefix_length);
        let choose = |used: &BTreeSet<IpNet>| {
            let fits =
                |cidr: &IpNet| cidr.prefix_len() == length && whole.contains(cidr) && is_free(cidr, used);
            let former = greeting.former_cidrs.iter().copied().find(fits);
            former.or_else(|| first_free(whole, length, used))
        };
        let mut free = choose(&taken.known(store).await?.cidrs);
        if free.is_none() && !taken.known(store).await?.fresh {
            taken.forget();
            free = choose(&taken.known(store).await?.cidrs);
        }
        let family = if whole.addr().is_ipv4() { "IPv4" } else { "IPv6" };
        let free = free.ok_or(NodeError::PoolExhausted { pool: whole, length, family })?;
        let key = keys::endpoint_cidr(free);
        plan.expect(&key, None);
        plan.put(key, greeting.name.clone());
        cidrs.push(free);
    }
    let known = taken.known(store).await?;
    known.cidrs.extend(&cidrs);
    // Nobody has given one since. And who takes a pool away at this moment has not seen this node on it.
    plan.expect(keys::ENDPOINT_CIDR_GIVEN, known.given.as_ref());
    plan.put(keys::ENDPOINT_CIDR_GIVEN, "");
    Ok(cidrs)
}

async fn read(store: &dyn Store) -> Result<BTreeSet<IpNet>, StoreError> {
    let mut taken = BTreeSet::new();
    let mut range = Range {
        prefix: keys::ENDPOINT_CIDRS.to_owned(),
        limit: limits::LIST_PAGE_MAX_OBJECTS,
        ..Range::default()
    };
    loop {
        let page = store.range(range.clone()).await?;
        taken.extend(
            page.items.iter().filter_map(|item| item.key[keys::ENDPOINT_CIDRS.len()..].parse::<IpNet>().ok()),
        );
        if !page.more {
            return Ok(taken);
        }
        range.after = page.items.last().map(|item| item.key.clone());
        range.revision = Some(page.revision);
    }
}

fn is_free(cidr: &IpNet, taken: &BTreeSet<IpNet>) -> bool {
    !taken.iter().any(|other| other.contains(cidr) || cidr.contains(other))
}

/// The lowest prefix of this length inside the pool that overlaps none of `taken`. One walk through these: they ascend.
fn first_free(pool: IpNet, length: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    if length < pool.prefix_len() || length > pool.max_prefix_len() {
        return None;
    }
    let host_bits = u32::from(pool.max_prefix_len() - length);
    // Which prefix of this length an address is in, counted from the lowest address there is.
    let place = |address: IpAddr| {
        let number = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        number.checked_shr(host_bits).unwrap_or_default()
    };
    let mut free = place(pool.network());
    for cidr in taken.iter().filter(|cidr| pool.contains(*cidr) || cidr.contains(&pool)) {
        if place(cidr.network()) > free {
            break;
        }
        free = free.max(place(cidr.broadcast()).checked_add(1)?);
    }
    if free > place(pool.broadcast()) {
        return None;
    }
    let number = free.checked_shl(host_bits).unwrap_or_default();
    let address = match pool {
        IpNet::V4(_) => IpAddr::V4(u32::try_from(number).ok()?.into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    };
    IpNet::new(address, length).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_proto::v1::{self, object::Kind as Of};

    use super::*;
    use crate::{fleet_config, nodes, plan::Registry, resource, store::Memory};

    async fn configure(store: &dyn Store, pool: &str, node_prefix_length: u32) {
        let pools = vec![v1::Pool { cidr: pool.to_owned(), node_prefix_length }];
        let config = v1::FleetConfig { pools, ..fleet_config::default() };
        let mut plan = Plan::default();
        plan.put(fleet_config::key(), resource::encode(resource::object(Of::FleetConfig(config))));
        plan.commit(store).await.unwrap().unwrap();
    }

    async fn register(registry: &Registry, number: u8) -> Result<IpNet, NodeError> {
        let hello = v1::Hello {
            node: format!("node-{number}"),
            addresses: vec![format!("192.0.2.{number}")],
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..v1::Hello::default()
        };
        let greeting = nodes::parse_hello(&hello, "test").unwrap();
        let registered = nodes::register(registry, &greeting).await?;
        Ok(registered.node.endpoint_cidrs[0].parse().unwrap())
    }

    #[tokio::test]
    async fn what_another_controller_gave_meanwhile_is_taken_also_if_its_length_was_another() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        let [here, there] = [(); 2].map(|()| Registry::new(Arc::clone(&store)));
        configure(store.as_ref(), "10.200.0.0/16", 24).await;
        let mut given = vec![register(&here, 1).await.unwrap(), register(&here, 2).await.unwrap()];
        configure(store.as_ref(), "10.200.0.0/16", 23).await;
        given.push(register(&there, 3).await.unwrap());
        configure(store.as_ref(), "10.200.0.0/16", 24).await;
        for number in 4..8 {
            given.push(register(&here, number).await.unwrap());
        }
        for (place, cidr) in given.iter().enumerate() {
            let others = given[place + 1..].iter();
            let overlaps = others.filter(|other| other.contains(cidr) || cidr.contains(*other)).count();
            assert_eq!(overlaps, 0, "{cidr} of {given:?}");
        }
    }

    #[tokio::test]
    async fn what_was_freed_is_found_before_a_pool_is_said_to_be_exhausted() {
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        fleet_config::initialise(store.as_ref()).await.unwrap();
        let registry = Registry::new(Arc::clone(&store));
        configure(store.as_ref(), "10.200.0.0/22", 24).await;
        for number in 1..=4 {
            register(&registry, number).await.unwrap();
        }
        let error = register(&registry, 5).await.unwrap_err();
        assert!(matches!(error, NodeError::PoolExhausted { length: 24, family: "IPv4", .. }), "{error}");
        let mut plan = Plan::default();
        plan.delete(keys::endpoint_cidr("10.200.3.0/24".parse().unwrap()));
        plan.commit(store.as_ref()).await.unwrap().unwrap();
        assert_eq!(register(&registry, 6).await.unwrap().to_string(), "10.200.3.0/24");

        // Also by one who has given prefixes since it looked.
        let mut plan = Plan::default();
        plan.delete(keys::endpoint_cidr("10.200.0.0/24".parse().unwrap()));
        plan.commit(store.as_ref()).await.unwrap().unwrap();
        assert_eq!(register(&registry, 7).await.unwrap().to_string(), "10.200.0.0/24");
    }

    #[test]
    fn the_lowest_prefix_that_overlaps_nothing_is_free() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let pool = net("10.0.0.0/16");
        let free = |taken: &[&str]| first_free(pool, 24, &taken.iter().map(|text| net(text)).collect());
        assert_eq!(free(&[]), Some(net("10.0.0.0/24")));
        assert_eq!(free(&["10.0.0.0/24", "10.0.2.0/24"]), Some(net("10.0.1.0/24")));
        assert_eq!(free(&["10.0.0.0/23"]), Some(net("10.0.2.0/24")), "given when the length was another");
        assert_eq!(free(&["10.0.0.128/25"]), Some(net("10.0.1.0/24")));
        assert_eq!(free(&["10.0.0.0/16"]), None);
        assert_eq!(free(&["10.0.0.0/8"]), None, "given when the pool was another");
        assert_eq!(free(&["9.255.255.0/24", "10.0.0.0/17", "10.0.1.0/24"]), Some(net("10.0.128.0/24")));
        assert_eq!(free(&["10.1.0.0/24", "fd00::/64"]), Some(net("10.0.0.0/24")), "outside of the pool");
        let all: BTreeSet<IpNet> = pool.subnets(24).unwrap().collect();
        assert_eq!(first_free(pool, 24, &all), None);
        assert_eq!(first_free(pool, 15, &BTreeSet::new()), None, "longer than a prefix of it");
        assert_eq!(
            first_free(net("255.255.255.0/24"), 25, &[net("255.255.255.0/25")].into()),
            Some(net("255.255.255.128/25"))
        );
        assert_eq!(first_free(net("255.255.255.0/24"), 32, &[net("255.255.255.0/24")].into()), None);
        assert_eq!(first_free(net("::/0"), 0, &BTreeSet::new()), Some(net("::/0")));
        assert_eq!(
            first_free(net("fd00:77::/48"), 64, &[net("fd00:77::/64")].into()),
            Some(net("fd00:77:0:1::/64"))
        );
    }

    proptest::proptest! {
        #[test]
        fn the_lowest_free_prefix_is_what_a_search_of_all_finds(
            taken in proptest::collection::vec((0..=255_u8, 0..=255_u8, 14..=28_u8), 0..40),
            length in 16..=26_u8,
        ) {
            let pool: IpNet = "10.7.0.0/16".parse().unwrap();
            let cidr = |(third, fourth, length): (u8, u8, u8)| {
                IpNet::new(IpAddr::from([10, 7, third, fourth]), length).unwrap().trunc()
            };
            let taken: BTreeSet<IpNet> = taken.into_iter().map(cidr).collect();
            let searched = pool.subnets(length).unwrap().find(|candidate| is_free(candidate, &taken));
            proptest::prop_assert_eq!(first_free(pool, length, &taken), searched);
        }
    }
}
