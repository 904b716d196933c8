//! Probes of real servers, and what the controller hears of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
    time::Instant,
};
use weft_noded::{health::prober, limits::PROBES_AT_ONCE_MAX};
use weft_proto::v1::{self, Health, ResourceType, node_report::Report};

use crate::{
    base,
    fake::{Fake, SOON, Stream},
    full,
    node::Node,
    synced, upsert,
};

/// A service whose backends this node probes all, as if they were outside of the fleet.
fn service(backends: &[SocketAddr], check: v1::HealthCheck) -> v1::Upsert {
    let backend = |place: &SocketAddr| v1::NodeBackend {
        address: place.ip().to_string(),
        port: place.port().into(),
        weight: 1,
        state: v1::BackendState::Active.into(),
        probed_by: vec!["n1".to_owned(), "n7".to_owned()],
        ..v1::NodeBackend::default()
    };
    let frontend = v1::NodeFrontend {
        address: "10.96.0.1".to_owned(),
        port: 80,
        protocol: 6,
        r#type: v1::FrontendType::Cluster.into(),
    };
    let sent = v1::NodeService {
        frontends: vec![frontend],
        backends: backends.iter().map(backend).collect(),
        algorithm: v1::Algorithm::Maglev.into(),
        internal_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        external_traffic_policy: v1::TrafficPolicy::Fleet.into(),
        forwarding_mode: v1::ForwardingMode::Snat.into(),
        slots: 1021,
        health_check: Some(check),
        ..v1::NodeService::default()
    };
    let requires = vec!["services".to_owned(), "service-health".to_owned()];
    v1::Upsert { requires, ..upsert(ResourceType::Service, "api", &sent) }
}

/// Four times as long as its timeout.
fn check(timeout_milliseconds: u32) -> v1::HealthCheck {
    v1::HealthCheck {
        interval_milliseconds: 4 * timeout_milliseconds,
        timeout_milliseconds,
        unhealthy_after: 2,
        healthy_after: 2,
        http: None,
    }
}

fn http(path: &str, timeout_milliseconds: u32) -> v1::HealthCheck {
    let http = v1::HttpCheck { path: path.to_owned(), expected_status: 204 };
    v1::HealthCheck {
        interval_milliseconds: timeout_milliseconds,
        http: Some(http),
        ..check(timeout_milliseconds)
    }
}

/// The next report that says this of the only backend.
async fn hear(stream: &mut Stream, health: Health) -> v1::BackendHealth {
    let said = |report| {
        let Report::Health(v1::HealthReport { mut services }) = report else { return None };
        assert_eq!((services.len(), services[0].service.as_str()), (1, "api"));
        services.remove(0).backends.into_iter().find(|backend| backend.health() == health)
    };
    stream.report(said).await
}

fn probe_on(node: &Node) -> JoinHandle<()> {
    tokio::spawn(prober::run(node.core.clone(), "n1".to_owned()))
}

#[tokio::test]
async fn a_server_that_stops_is_found_broken_and_one_that_is_back_healthy() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = server.local_addr().unwrap();
    let (_state, _kernel, _fake, node, mut stream) = synced(vec![service(&[place], check(50))]).await;
    let _prober = probe_on(&node);
    let healthy = hear(&mut stream, Health::Healthy).await;
    assert_eq!((healthy.address.as_str(), healthy.port), ("127.0.0.1", u32::from(place.port())));
    assert_eq!(healthy.error, "");
    assert!(healthy.since.is_some());
    drop(server);
    let broken = hear(&mut stream, Health::Unhealthy).await;
    assert!(broken.error.starts_with("Connection refused"), "{broken:?}");
    let _server = TcpListener::bind(place).await.unwrap();
    hear(&mut stream, Health::Healthy).await;
}

/// Answers requests as it is told, and notes them.
#[derive(Clone)]
struct Web {
    place: SocketAddr,
    answer: Arc<Mutex<Option<&'static [u8]>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    async fn start() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let web =
            Self { place: server.local_addr().unwrap(), answer: Arc::default(), requests: Arc::default() };
        let serving = web.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = server.accept().await {
                let web = serving.clone();
                tokio::spawn(async move { web.serve(connection).await });
            }
        });
        web
    }

    async fn serve(&self, mut connection: TcpStream) {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            match connection.read_u8().await {
                Ok(byte) => request.push(byte),
                Err(_) => return,
            }
        }
        self.requests.lock().unwrap().push(String::from_utf8(request).unwrap());
        let answer = *self.answer.lock().unwrap();
        if let Some(answer) = answer {
            drop(connection.write_all(answer).await);
        }
        // Whoever gets no answer, or half of one, waits.
        drop(connection.read_u8().await);
    }

    fn answers(&self, answer: Option<&'static [u8]>) {
        *self.answer.lock().unwrap() = answer;
    }
}

#[tokio::test]
async fn over_http_the_status_decides_and_whatever_is_no_answer_is_said() {
    let web = Web::start().await;
    web.answers(Some(b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"));
    let upserts = vec![service(&[web.place], http("/up?deep=1", 250))];
    let (_state, _kernel, _fake, node, mut stream) = synced(upserts).await;
    let _prober = probe_on(&node);
    hear(&mut stream, Health::Healthy).await;
    let request = web.requests.lock().unwrap()[0].clone();
    assert!(request.starts_with("GET /up?deep=1 HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("host: {}\r\n", web.place)), "{request}");

    let cases: [(Option<&'static [u8]>, &str); 5] = [
        (
            Some(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
            "HTTP: status 503, expected 204",
        ),
        (Some(b"SSH-2.0-OpenSSH_9.2\r\n"), "HTTP: invalid HTTP version parsed"),
        (Some(b"HTTP/1.1 204 No"), "no answer within 250 ms"),
        (None, "no answer within 250 ms"),
        (Some(&HUGE), "HTTP: message head is too large"),
    ];
    for (answer, expected) in cases {
        web.answers(answer);
        let broken = hear(&mut stream, Health::Unhealthy).await;
        assert_eq!(broken.error, expected);
        // A redirection is followed by nobody; one status is expected.
        web.answers(Some(b"HTTP/1.1 204 No Content\r\n\r\n"));
        hear(&mut stream, Health::Healthy).await;
    }
}

/// Headers without an end.
static HUGE: [u8; 20_000] = {
    let mut bytes = [b'a'; 20_000];
    let start = *b"HTTP/1.1 204 No Content\r\nX: ";
    let mut at = 0;
    while at < start.len() {
        bytes[at] = start[at];
        at += 1;
    }
    bytes
};

#[tokio::test]
async fn each_stream_begins_with_all_that_is_known_and_a_daemon_that_begins_anew_takes_nothing_back() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = server.local_addr().unwrap();
    let (state, kernel, fake, node, mut stream) = synced(vec![service(&[place], check(500))]).await;
    let prober = probe_on(&node);
    let first = hear(&mut stream, Health::Healthy).await;
    drop(stream);
    let mut stream = welcomed(&fake).await;
    assert_eq!(inventory(&mut stream).await, ["api"]);
    assert_eq!(hear(&mut stream, Health::Healthy).await, first, "since when stays");

    // Another daemon says that it probes the service before it has found out anything.
    prober.abort();
    node.kill();
    drop((stream, server));
    let node = Node::start(&kernel, state.path(), &[&fake.url]).await;
    let mut stream = welcomed(&fake).await;
    assert_eq!(inventory(&mut stream).await, ["api"]);
    let _prober = probe_on(&node);
    hear(&mut stream, Health::Unhealthy).await;

    // The service is another node's to probe: nothing is known of it any more.
    stream.delta(full(9, base())).await;
    let gone = |report| match report {
        Report::Health(v1::HealthReport { services }) if services[0].backends.is_empty() => Some(services),
        _ => None,
    };
    let services = stream.report(gone).await;
    assert_eq!((services.len(), services[0].service.as_str()), (1, "api"));
}

async fn welcomed(fake: &Fake) -> Stream {
    let stream = fake.stream().await;
    stream.welcome("store-1", 8).await;
    stream
}

async fn inventory(stream: &mut Stream) -> Vec<String> {
    let inventory = |report| match report {
        Report::HealthInventory(inventory) => Some(inventory.services),
        _ => None,
    };
    stream.report(inventory).await
}

/// How many connections are open, and were at most at once; and from how many backends' sides.
#[derive(Default)]
struct Crowd {
    open: AtomicUsize,
    most: AtomicUsize,
    asked: Mutex<BTreeMap<IpAddr, usize>>,
}

impl Crowd {
    fn has_asked(&self, backends: usize, times: usize) -> bool {
        let asked = self.asked.lock().unwrap();
        asked.len() == backends && asked.values().all(|each| *each >= times)
    }
}

#[tokio::test]
async fn however_many_backends_hang_few_are_probed_at_once_and_each_in_its_turn() {
    const BACKENDS: u32 = 700;
    let server = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let crowd = Arc::new(Crowd::default());
    let watching = Arc::clone(&crowd);
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = server.accept().await {
            let crowd = Arc::clone(&watching);
            let open = crowd.open.fetch_add(1, Ordering::SeqCst) + 1;
            crowd.most.fetch_max(open, Ordering::SeqCst);
            *crowd.asked.lock().unwrap().entry(connection.local_addr().unwrap().ip()).or_default() += 1;
            tokio::spawn(async move {
                // Until the other side goes.
                while connection.read_u8().await.is_ok() {}
                crowd.open.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    let address = |number| SocketAddr::new(Ipv4Addr::from_bits(0x7f00_0100 + number).into(), port);
    let backends: Vec<SocketAddr> = (0..BACKENDS).map(address).collect();
    // All of them hang all the time.
    let (_state, _kernel, _fake, node, _stream) = synced(vec![service(&backends, http("/", 300))]).await;
    let _prober = probe_on(&node);
    let deadline = Instant::now() + SOON;
    while !crowd.has_asked(backends.len(), 3) {
        assert!(Instant::now() < deadline, "of {BACKENDS}: {:?}", crowd.asked.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let most = crowd.most.load(Ordering::SeqCst);
    // What has ended here may not have ended there.
    let margin = PROBES_AT_ONCE_MAX / 4;
    assert!((PROBES_AT_ONCE_MAX / 2..=PROBES_AT_ONCE_MAX + margin).contains(&most), "{most} at once");
}
