//! What the bench does as an operator.
use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;
use tonic::{Code, transport::Channel};
use weft_proto::v1::{self, object::Kind as Of, operator_service_client::OperatorServiceClient};

use super::PATIENCE;

const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) struct Operator(OperatorServiceClient<Channel>);

impl Operator {
    pub(super) async fn connect(url: &str) -> Result<Self> {
        Ok(Self(OperatorServiceClient::connect(url.to_owned()).await?))
    }

    /// Gives the fleet room for a thousand nodes and more.
    pub(super) async fn configure(&mut self) -> Result<()> {
        let pool = |cidr: &str, node_prefix_length| v1::Pool { cidr: cidr.to_owned(), node_prefix_length };
        let config = v1::FleetConfig {
            metadata: Some(v1::Metadata { name: "fleet".to_owned(), ..v1::Metadata::default() }),
            pools: vec![pool("10.0.0.0/8", 24), pool("fd00:77::/48", 64)],
            ..v1::FleetConfig::default()
        };
        self.apply(vec![v1::Object { kind: Some(Of::FleetConfig(config)) }]).await?;
        Ok(())
    }

    /// Changes the one policy that every node has; returns the revision.
    pub(super) async fn policy(&mut self, round: usize) -> Result<u64> {
        self.apply(vec![policy("bench", "every", 1024 + u32::try_from(round)?)]).await
    }

    pub(super) async fn apply(&mut self, objects: Vec<v1::Object>) -> Result<u64> {
        let request = v1::ApplyRequest { objects, ..v1::ApplyRequest::default() };
        Ok(self.0.apply(request).await?.into_inner().revision)
    }

    /// Takes the node out of the fleet as soon as the controller has noticed that its stream is over.
    pub(super) async fn remove_node(&mut self, name: &str) -> Result<()> {
        let request =
            v1::DeleteRequest { kind: v1::Kind::Node.into(), name: name.to_owned(), if_revision: None };
        let deadline = Instant::now() + PATIENCE;
        while let Err(status) = self.0.delete(request.clone()).await {
            let waits = status.code() == Code::FailedPrecondition && Instant::now() < deadline;
            ensure!(waits, "node {name} cannot be removed: {status}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    pub(super) async fn wait_realised(&mut self, revision: u64) -> Result<()> {
        let request = v1::WaitRealisedRequest { revision, timeout: Some(PATIENCE.try_into()?) };
        let mut answers = self.0.wait_realised(request).await?.into_inner();
        let mut last = None;
        while let Some(answer) = answers.message().await? {
            last = Some(answer);
        }
        ensure!(last.context("no answer")?.done, "revision {revision} was not realised");
        Ok(())
    }
}

/// Lets `client` reach one port of the endpoints of this app.
pub(super) fn policy(name: &str, app: &str, port: u32) -> v1::Object {
    let selector = |app: &str| v1::Selector {
        match_labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
        ..v1::Selector::default()
    };
    let rule = v1::Rule {
        name: "client".to_owned(),
        action: v1::Action::Allow.into(),
        peers: Some(v1::PeerList {
            items: vec![v1::Peer { endpoints: Some(selector("client")), ..v1::Peer::default() }],
        }),
        ports: Some(v1::PortList {
            items: vec![v1::Port {
                protocol: v1::Protocol::Tcp.into(),
                port: Some(port),
                ..v1::Port::default()
            }],
        }),
    };
    let policy = v1::Policy {
        metadata: Some(v1::Metadata { name: name.to_owned(), ..v1::Metadata::default() }),
        subject: Some(v1::Subject { endpoints: Some(selector(app)), nodes: None }),
        ingress: Some(v1::RuleList { items: vec![rule] }),
        ..v1::Policy::default()
    };
    v1::Object { kind: Some(Of::Policy(policy)) }
}
