//! A controller on etcd that is lost, hangs, is another one, or wants certificates and a user.
#![expect(clippy::unwrap_used, reason = "tests fail this way")]
mod support;

use std::{path::PathBuf, time::Duration};

use etcd_client::{Certificate, Client, ConnectOptions, Identity, Permission, TlsOptions};
use support::{Fleet, Node, fleet_on, policy, within};
use tonic::Code;
use weft_controller::{
    Controller, ServeError, StoreConfig, keys,
    store::{Etcd, EtcdConfig, EtcdTls, EtcdUser, Operation, Store, StoreError, Transaction},
};
use weft_proto::v1::ResourceType;
use weft_test_etcd::{Cluster, Options, Tls};

fn alone(tls: Option<Tls>) -> Cluster {
    let flags = ["--heartbeat-interval=10", "--election-timeout=100"].map(str::to_owned).to_vec();
    Cluster::start(1, &Options { flags, tls, ..Options::default() }).unwrap()
}

fn in_clear(etcd: &Cluster) -> EtcdConfig {
    EtcdConfig { members: etcd.urls(), tls: None, user: None }
}

/// A fleet on it, with a node on which an endpoint is subject to every policy.
async fn fleet(config: EtcdConfig) -> (Fleet, Node) {
    let mut fleet = fleet_on(&StoreConfig::Etcd(config), tempfile::tempdir().unwrap()).await.unwrap();
    fleet.apply(vec![policy("first", "api", "web")]).await.unwrap();
    let mut node = fleet.node("node-1", "192.0.2.1").await.in_sync().await;
    let address = node.address(9);
    assert!(node.attach("api-1", &[("app", "api")], &[&address]).await.accepted);
    until_told(&mut node, "first").await;
    (fleet, node)
}

async fn until_told(node: &mut Node, policy: &str) {
    let policy = policy.to_owned();
    node.until(&format!("it has policy {policy}"), |node| node.names(ResourceType::Policy).contains(&policy))
        .await;
}

/// The next message, if there is one already: an error or an end of the stream is one.
async fn is_quiet(node: &mut Node) -> bool {
    tokio::time::timeout(Duration::from_millis(200), node.inbound.message()).await.is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_is_down_calls_say_so_and_nodes_keep_their_streams_and_then_all_goes_on() {
    let mut etcd = alone(None);
    let (mut fleet, mut node) = fleet(in_clear(&etcd)).await;
    etcd.member(0).kill().unwrap();
    let refused = fleet.apply(vec![policy("second", "api", "web")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("the store cannot be reached"), "{refused}");
    assert!(refused.message().contains(etcd.member(0).url()), "{refused}");
    assert!(is_quiet(&mut node).await, "its stream was ended, or it was told something");

    etcd.member(0).start().unwrap();
    fleet.apply(vec![policy("third", "api", "web")]).await.unwrap();
    until_told(&mut node, "third").await;
    assert!(!node.names(ResourceType::Policy).contains(&"second".to_owned()), "it was refused");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_hangs_calls_say_so_and_nodes_keep_their_streams_and_then_all_goes_on() {
    let etcd = alone(None);
    let (mut fleet, mut node) = fleet(in_clear(&etcd)).await;
    etcd.members()[0].freeze().unwrap();
    let refused = fleet.apply(vec![policy("second", "api", "web")]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(is_quiet(&mut node).await, "its stream was ended, or it was told something");

    etcd.members()[0].thaw().unwrap();
    fleet.apply(vec![policy("third", "api", "web")]).await.unwrap();
    until_told(&mut node, "third").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_whose_store_was_replaced_ends_and_tells_nodes_nothing_of_the_other_one() {
    let mut etcd = alone(None);
    let (mut fleet, mut node) = fleet(in_clear(&etcd)).await;
    etcd.member(0).kill().unwrap();
    etcd.member(0).wipe().unwrap();
    etcd.member(0).start().unwrap();
    let error = within(fleet.controller.failed()).await;
    assert!(matches!(error, ServeError::Replaced(_)), "{error}");
    assert!(is_quiet(&mut node).await, "it was told something");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_controllers_serve_one_fleet() {
    let etcd = alone(None);
    let (mut first, mut node) = fleet(in_clear(&etcd)).await;
    let second = StoreConfig::Etcd(in_clear(&etcd));
    let mut second = fleet_on(&second, tempfile::tempdir().unwrap()).await.unwrap();
    second.apply(vec![policy("of-the-second", "api", "web")]).await.unwrap();
    until_told(&mut node, "of-the-second").await;
    let mut other = second.node("node-2", "192.0.2.2").await.in_sync().await;
    let address = other.address(9);
    assert!(other.attach("api-2", &[("app", "api")], &[&address]).await.accepted);
    until_told(&mut other, "first").await;
    first.apply(vec![policy("of-the-first", "api", "web")]).await.unwrap();
    until_told(&mut other, "of-the-first").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_data_is_being_moved_into_is_not_served() {
    let etcd = alone(None);
    let store = Etcd::connect(&in_clear(&etcd), Duration::ZERO).await.unwrap();
    let then = vec![Operation::put(keys::MOVING, "some-id"), Operation::put(keys::STORE_ID, "some-id")];
    store.transact(Transaction { then, ..Transaction::default() }).await.unwrap();
    let served = fleet_on(&StoreConfig::Etcd(in_clear(&etcd)), tempfile::tempdir().unwrap()).await;
    let refused = served.err().unwrap().to_string();
    assert!(refused.contains("some-id") && refused.contains("weft-controller move"), "{refused}");
}

// ---- Certificates and users ----

/// Certificates of one authority, in files as etcd wants them.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    directory: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "a test's authority");
        let certificate = params.self_signed(&key).unwrap();
        let issuer = rcgen::Issuer::new(params, key);
        Self { certificate, issuer, directory: tempfile::tempdir().unwrap() }
    }

    fn issue(&self, name: &str) -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    fn of_members(&self) -> Tls {
        let (certificate, key) = self.issue("etcd");
        Tls {
            ca: self.file("ca.pem", &self.certificate.pem()),
            certificate: self.file("etcd.pem", &certificate),
            key: self.file("etcd.key", &key),
        }
    }

    fn of_controller(&self) -> EtcdTls {
        let (certificate, key) = self.issue("controller");
        EtcdTls {
            ca: self.certificate.pem().into_bytes(),
            identity: Some((certificate.into_bytes(), key.into_bytes())),
        }
    }
}

/// Root, and a user that may do what a controller must be allowed to, and nothing else.
async fn add_users(config: &EtcdConfig) {
    let tls = config.tls.as_ref().unwrap();
    let (certificate, key) = tls.identity.as_ref().unwrap();
    let tls = TlsOptions::new()
        .ca_certificate(Certificate::from_pem(&tls.ca))
        .identity(Identity::from_pem(certificate, key));
    let mut root = Client::connect(&config.members, Some(ConnectOptions::new().with_tls(tls))).await.unwrap();
    root.user_add("root", "root-word", None).await.unwrap();
    root.role_add("root").await.unwrap();
    root.user_grant_role("root", "root").await.unwrap();
    root.user_add("weft", "weft-word", None).await.unwrap();
    root.role_add("fleet").await.unwrap();
    let permission = Permission::read_write(keys::ROOT).with_prefix();
    root.role_grant_permission("fleet", permission).await.unwrap();
    root.user_grant_role("weft", "fleet").await.unwrap();
    root.auth_enable().await.unwrap();
}

fn user(password: &str) -> EtcdUser {
    EtcdUser { name: "weft".to_owned(), password: password.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_served_over_tls_as_a_user_and_goes_on_when_its_token_is_forgotten() {
    let authority = Authority::new();
    let mut etcd = alone(Some(authority.of_members()));
    let mut config = EtcdConfig { members: etcd.urls(), tls: Some(authority.of_controller()), user: None };
    add_users(&config).await;
    config.user = Some(user("weft-word"));
    let (mut fleet, mut node) = fleet(config).await;

    // Tokens are only in the member's memory.
    etcd.member(0).kill().unwrap();
    etcd.member(0).start().unwrap();
    fleet.apply(vec![policy("second", "api", "web")]).await.unwrap();
    until_told(&mut node, "second").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_let_in_is_told_why() {
    let authority = Authority::new();
    let etcd = alone(Some(authority.of_members()));
    let right = EtcdConfig { members: etcd.urls(), tls: Some(authority.of_controller()), user: None };
    add_users(&right).await;

    let wrong_word = EtcdConfig { user: Some(user("wrong")), ..right.clone() };
    let refused = Etcd::connect(&wrong_word, Duration::ZERO).await.unwrap_err();
    assert!(matches!(refused, StoreError::Refused { .. }), "{refused}");
    assert!(refused.to_string().contains("authentication failed"), "{refused}");

    let other = Authority::new();
    let other_authority = EtcdConfig { tls: Some(other.of_controller()), ..right.clone() };
    let refused = Etcd::connect(&other_authority, Duration::ZERO).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");

    let no_certificate = EtcdTls { identity: None, ..authority.of_controller() };
    let no_certificate = EtcdConfig { tls: Some(no_certificate), ..right.clone() };
    let refused = Etcd::connect(&no_certificate, Duration::ZERO).await.unwrap_err();
    assert!(refused.to_string().contains("without a certificate of its own"), "{refused}");

    let in_clear = EtcdConfig { tls: None, ..right };
    let config = weft_controller::Config {
        listen: "127.0.0.1:0".parse().unwrap(),
        name: "controller".to_owned(),
        insecure: false,
    };
    let refused = Controller::start(config, &StoreConfig::Etcd(in_clear)).await.unwrap_err();
    assert!(refused.is_usage(), "{refused}");
}
