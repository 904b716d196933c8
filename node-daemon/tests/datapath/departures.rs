//! Packets that an endpoint sends ahead of its rate: real ones, through the node's stack. Where the uplink's queue is `fq` they wait
//! for their time, which not every kernel has.

use std::{
    net::{Ipv4Addr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use tokio::time::Instant;
use weft_shared::layout::shaping::{AHEAD_BYTES_MIN, nanoseconds};

use crate::live::{Machine, Namespace, UPLINK, ip};

/// Bits a second. So low that what may be ahead takes seconds, and that sending it takes next to nothing of that.
const RATE: u64 = 64_000;
/// Of Ethernet, IPv4 and UDP.
const HEADERS: usize = 42;
const SOMEBODY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 50);
const PORT: u16 = 5000;
/// Longer than between any two packets that wait.
const SILENCE: Duration = Duration::from_secs(3);

/// The other end of the uplink is in a namespace of its own, and takes what comes from anywhere.
fn outside() -> Namespace {
    let outside = Namespace::new();
    ip(&format!("link set fabric netns {}", outside.file()));
    outside.within(|| {
        for name in ["all", "default", "fabric"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"), "0").unwrap();
        }
        ip("link set fabric up");
        ip(&format!("addr add {SOMEBODY}/24 dev fabric"));
    });
    outside
}

/// What came of datagrams that were sent at once.
struct Flood {
    /// How long the sending took.
    sending: Duration,
    /// Since its beginning.
    arrivals: Vec<Duration>,
    /// How long each takes at the rate.
    takes: Duration,
    /// How many may pass at once: what may be ahead, and the packet that goes beyond it.
    at_once: usize,
}

impl Flood {
    /// How many may have passed at most.
    fn at_most(&self) -> usize {
        self.at_once + usize::try_from(self.sending.as_nanos() / self.takes.as_nanos()).unwrap() + 1
    }
}

/// From an endpoint with the rate to somebody outside.
async fn flood(machine: &Machine, outside: &Namespace, packets: usize, payload: usize) -> Flood {
    let live = machine.start().await;
    live.sync().await;
    live.attach_web_at(machine.workload(), Some(RATE)).await;
    let inbox = outside.within(|| UdpSocket::bind((SOMEBODY, PORT)).unwrap());
    inbox.set_read_timeout(Some(SILENCE)).unwrap();
    let outbox = machine.workload.within(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let began = Instant::now();
    let receiving = thread::spawn(move || {
        let (mut arrivals, mut buffer) = (Vec::new(), [0; 2048]);
        while inbox.recv(&mut buffer).is_ok() {
            arrivals.push(began.elapsed());
        }
        arrivals
    });
    for _ in 0..packets {
        outbox.send_to(&vec![7; payload], (SOMEBODY, PORT)).unwrap();
    }
    let sending = began.elapsed();
    let bytes = u64::try_from(payload + HEADERS).unwrap();
    Flood {
        sending,
        arrivals: receiving.join().unwrap(),
        takes: Duration::from_nanos(nanoseconds(bytes, RATE / 8)),
        at_once: usize::try_from(AHEAD_BYTES_MIN / bytes).unwrap() + 1,
    }
}

/// The kernel does not count the Ethernet header of what comes in where it says how long a packet is on the wire.
#[tokio::test]
async fn packets_count_with_their_ethernet_headers() {
    let (machine, outside) = (Machine::new(), outside());
    let flood = flood(&machine, &outside, 400, 100).await;
    let (passed, at_once, at_most) = (flood.arrivals.len(), flood.at_once, flood.at_most());
    assert!((at_once..=at_most).contains(&passed), "{passed} of {at_once} to {at_most}: {:?}", flood.sending);
}

#[tokio::test]
#[ignore = "needs a kernel with the queueing discipline fq (CONFIG_NET_SCH_FQ)"]
async fn what_is_ahead_waits_in_fq_for_its_time_and_what_is_further_ahead_is_dropped() {
    let (machine, outside) = (Machine::new(), outside());
    let replaced = Command::new("tc").args(["qdisc", "replace", "dev", UPLINK, "root", "fq"]).status();
    assert!(replaced.expect("tc (iproute2)").success(), "this kernel has no fq");

    let flood = flood(&machine, &outside, 44, 1400).await;

    let (arrivals, at_once, at_most) = (&flood.arrivals, flood.at_once, flood.at_most());
    assert!((at_once..=at_most).contains(&arrivals.len()), "{at_once} to {at_most}: {arrivals:?}");
    assert!(at_most < 2 * at_once, "the machine was too slow for this to say anything: {:?}", flood.sending);
    for (number, arrived) in (0..).zip(arrivals) {
        let earliest = (flood.takes * number).saturating_sub(Duration::from_millis(1));
        assert!(
            *arrived >= earliest,
            "packet {number} came after {arrived:?}, not {earliest:?}: {arrivals:?}"
        );
    }
}
