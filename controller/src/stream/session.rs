//! One node's stream. It only moves messages: what to send is decided by the fleet, what to store by `endpoints` and
//! `nodes`.
use std::{collections::VecDeque, fmt, sync::Arc, time::Duration};

use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use weft_proto::v1::{self, controller_message::Message, node_message, node_report::Report};
use weft_shared::{digest::Digest, version::Skew};

use super::{
    chunks::Chunks,
    hub::{Hub, Registration, Session},
    reports,
};
use crate::{
    adoption,
    api::errors,
    fleet::{Fleet, Have},
    limits, nodes,
    plan::Registry,
    signal,
};

/// What a stream works with.
#[derive(Clone)]
pub struct Context {
    pub registry: Arc<Registry>,
    pub store_id: String,
    pub hub: Arc<Hub>,
    pub controller: String,
    pub stop: CancellationToken,
}

impl fmt::Debug for Context {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Context").field("store_id", &self.store_id).finish_non_exhaustive()
    }
}

/// Boxed: the channel keeps room for 32 of whatever it carries, for each stream.
pub(super) type Outgoing = Result<Box<v1::ControllerMessage>, Status>;
type Outbound = mpsc::Sender<Outgoing>;

pub(super) async fn run(context: Context, mut inbound: Streaming<v1::NodeMessage>, outbound: Outbound) {
    let stop = context.stop.clone();
    let ended = tokio::select! {
        biased;
        ended = serve(&context, &mut inbound, &outbound) => ended,
        () = stop.cancelled() => Err(Status::unavailable("the controller is stopping")),
    };
    if let Err(status) = ended {
        // The node may be gone already.
        drop(outbound.send(Err(status)).await);
    }
}

async fn serve(
    context: &Context,
    inbound: &mut Streaming<v1::NodeMessage>,
    outbound: &Outbound,
) -> Result<(), Status> {
    let hello = receive_hello(inbound).await?;
    let mut greeting = nodes::parse_hello(&hello, &context.controller).map_err(errors::node)?;
    let adoption = match admit(context, &hello).await? {
        Admission::Known => None,
        Admission::Adopted(adoption) => {
            greeting.former_cidrs =
                hello.have.as_ref().map(|have| nodes::parse_all(&have.endpoint_cidrs)).unwrap_or_default();
            Some(adoption)
        }
        Admission::Refused(why) => {
            // Who the store is, so that the node can say why it waits.
            drop(outbound.send(Ok(Box::new(refusing_welcome(context).await?))).await);
            return Err(Status::failed_precondition(why));
        }
    };
    // From before it registers: a change meanwhile is not missed.
    let registration = context.hub.registration();
    let registered = nodes::register(&context.registry, &greeting).await.map_err(errors::node)?;
    // The fleet must know the node before it can scope for it.
    let known = context.hub.wait_applied(registered.revision);
    if tokio::time::timeout(limits::HELLO_TIMEOUT, known).await.is_err() {
        return Err(Status::unavailable("this controller does not keep up with its store"));
    }
    let have = if adoption.is_none() { have(&hello, context) } else { None };
    let (session, questions) = context.hub.connect(&greeting.name, have.as_ref());
    if greeting.skew == Skew::NodeNewer {
        tracing::warn!(
            node = greeting.name,
            version = hello.version,
            own_version = env!("CARGO_PKG_VERSION"),
            "the node is newer than this controller: controllers are upgraded first"
        );
    }
    tracing::info!(node = greeting.name, version = hello.version, boot_id = hello.boot_id, "node connected");
    let endpoints_known = adoption.is_none() && has_reports(&hello, context);
    let welcome = v1::Welcome { want_buckets: questions, adoption, endpoints_known, ..welcome(context) };
    let mut stream = Stream {
        context,
        greeting: &greeting,
        registration,
        adopting: welcome.adoption.is_some(),
        through: context.hub.identities_through(),
        session: &session,
        sending: None,
        resume_until: (!welcome.want_buckets.is_empty()).then(|| Instant::now() + limits::RESUME_TIMEOUT),
        answers: VecDeque::from([Message::Welcome(welcome)]),
        told_at: Instant::now(),
        through_due: false,
    };
    let ended = stream.exchange(inbound, outbound).await;
    let reason = ended.as_ref().err().map_or("closed by the node", |status| status.message());
    tracing::info!(node = greeting.name, reason, "node disconnected");
    ended
}

async fn receive_hello(inbound: &mut Streaming<v1::NodeMessage>) -> Result<v1::Hello, Status> {
    let first = tokio::time::timeout(limits::HELLO_TIMEOUT, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no Hello came"))??;
    match first.and_then(|message| message.message) {
        Some(node_message::Message::Hello(hello)) => Ok(hello),
        _ => Err(Status::invalid_argument("the first message of a stream is Hello")),
    }
}

/// What the node holds of this store.
fn have(hello: &v1::Hello, context: &Context) -> Option<Have> {
    let have = hello.have.as_ref()?;
    let have = (have.store_id == context.store_id).then(|| Have::parse(have)).flatten();
    have.filter(|have| have.revision <= context.hub.ask(Fleet::revision))
}

/// Whether the node need not report its endpoints. The fleet has taken in all that was stored when the node came, so what
/// another controller has stored, or somebody has removed, counts; what changes later, the node is told.
fn has_reports(hello: &v1::Hello, context: &Context) -> bool {
    // Of an earlier release: empty.
    let reports = Digest::from_bytes(&hello.endpoint_reports);
    reports.is_some_and(|reports| context.hub.ask(|fleet| fleet.has_reports(&hello.node, reports)))
}

enum Admission {
    Known,
    Adopted(v1::Adoption),
    /// It waits for adoption.
    Refused(String),
}

/// Whether the node may be served, given what it holds.
async fn admit(context: &Context, hello: &v1::Hello) -> Result<Admission, Status> {
    let store = context.registry.store.as_ref();
    let have = hello.have.clone().unwrap_or_default();
    let revision = store.revision().await.map_err(errors::store)?;
    if adoption::is_of_store(&have, &context.store_id, revision) {
        return Ok(Admission::Known);
    }
    let node = adoption::waiting(&hello.node, &have);
    if let Some(adoption) = adoption::find(store, &node).await.map_err(errors::store)? {
        return Ok(Admission::Adopted(adoption));
    }
    let why = format!(
        "the node holds revision {} of store {}, this is store {} at revision {revision}: weft fleet adopt {}",
        node.revision, node.store_id, context.store_id, node.name
    );
    if context.hub.turned_away(node) {
        tracing::warn!(node = hello.node, why, "a node waits for adoption");
    }
    Ok(Admission::Refused(why))
}

async fn refusing_welcome(context: &Context) -> Result<v1::ControllerMessage, Status> {
    let revision = context.registry.store.revision().await.map_err(errors::store)?;
    context.hub.wait_applied(revision).await;
    Ok(v1::ControllerMessage { message: Some(Message::Welcome(welcome(context))) })
}

/// Who this is, and of which store.
fn welcome(context: &Context) -> v1::Welcome {
    v1::Welcome {
        store_id: context.store_id.clone(),
        revision: context.hub.ask(Fleet::revision),
        controller: context.controller.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..v1::Welcome::default()
    }
}

struct Stream<'a> {
    context: &'a Context,
    session: &'a Session,
    /// The delta whose messages are being sent.
    sending: Option<std::iter::Peekable<Chunks>>,
    /// Until when the node may answer what it holds.
    resume_until: Option<Instant>,
    answers: VecDeque<Message>,
    greeting: &'a nodes::Greeting,
    /// The node takes this store's word for that of another.
    adopting: bool,
    registration: signal::Receiver<Registration>,
    through: signal::Receiver<u32>,
    /// When the node was last told of identities.
    told_at: Instant,
    through_due: bool,
}

impl Stream<'_> {
    async fn exchange(
        &mut self,
        inbound: &mut Streaming<v1::NodeMessage>,
        outbound: &Outbound,
    ) -> Result<(), Status> {
        loop {
            self.prepare();
            let has_output = !self.answers.is_empty() || self.sending.is_some();
            let resume_until = self.resume_until.unwrap_or(self.told_at);
            let tell_at = self.told_at + limits::IDENTITIES_THROUGH_INTERVAL;
            tokio::select! {
                biased;
                () = self.session.replaced.cancelled() => {
                    return Err(Status::already_exists(
                        "a newer stream of the same node took over, or the node was removed",
                    ));
                }
                permit = outbound.reserve(), if has_output => {
                    let Ok(permit) = permit else { return Ok(()) };
                    if let Some(message) = self.next_message() {
                        permit.send(Ok(Box::new(message)));
                    }
                }
                // A node that takes no answers is not asked for more reports.
                message = inbound.message(), if self.answers.len() < limits::ANSWERS_WAITING_MAX => {
                    match message? {
                        // What is seldom done has no room in each stream's own future.
                        Some(message) => Box::pin(self.receive(message)).await?,
                        None => return Ok(()),
                    }
                }
                () = self.session.news.notified() => {}
                changed = self.registration.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    Box::pin(self.register_again()).await;
                }
                changed = self.through.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.through_due = true;
                }
                () = tokio::time::sleep_until(tell_at), if self.through_due && Instant::now() < tell_at => {}
                () = tokio::time::sleep_until(resume_until), if self.resume_until.is_some() => {
                    tracing::warn!(node = self.session.node, "the node does not say what it holds: it is sent everything");
                    self.resume_until = None;
                    self.session.give_up_resume();
                }
                () = outbound.closed() => return Ok(()),
            }
        }
    }

    /// So that the node has an endpoint CIDR of every pool, and the identity of its labels; it is told like of any other change.
    async fn register_again(&self) {
        if let Err(error) = nodes::register(&self.context.registry, self.greeting).await {
            let node = &self.session.node;
            tracing::warn!(node, %error, "the node is not registered by the new configuration before it connects again");
        }
    }

    /// Takes the next delta, if none is being sent. That of identities alone waits for its time, and stays due for as
    /// long as too much is unacknowledged.
    fn prepare(&mut self) {
        if self.sending.is_some() {
            return;
        }
        let delta = self.session.drain();
        self.start_sending(delta);
        let tell_at = self.told_at + limits::IDENTITIES_THROUGH_INTERVAL;
        if self.sending.is_none() && self.through_due && Instant::now() >= tell_at {
            let delta = self.session.drain_identities_through();
            self.start_sending(delta);
        }
    }

    fn start_sending(&mut self, delta: Option<crate::fleet::Delta>) {
        let Some(delta) = delta else { return };
        self.told_at = Instant::now();
        // Every delta says how far they are.
        self.through_due = false;
        let committed_at = self.context.hub.committed_at(delta.revision);
        self.sending = Some(Chunks::new(delta, committed_at).peekable());
    }

    fn next_message(&mut self) -> Option<v1::ControllerMessage> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(v1::ControllerMessage { message: Some(answer) });
        }
        let chunks = self.sending.as_mut()?;
        let message = chunks.next();
        if chunks.peek().is_none() {
            self.sending = None;
        }
        message
    }

    async fn receive(&mut self, message: v1::NodeMessage) -> Result<(), Status> {
        match message.message {
            Some(node_message::Message::Ack(ack)) => self.acknowledge(ack).await?,
            Some(node_message::Message::Report(report)) => self.report(report).await?,
            Some(node_message::Message::Hello(_)) => {
                return Err(Status::invalid_argument("Hello is sent once"));
            }
            // Something that a newer release added.
            None => {}
        }
        Ok(())
    }

    async fn acknowledge(&mut self, ack: v1::Ack) -> Result<(), Status> {
        let node = &self.session.node;
        let mut rejected = Vec::new();
        for resource in ack.rejected {
            let kind = resource.r#type();
            tracing::warn!(
                node,
                resource = resource.name,
                ?kind,
                reason = resource.reason,
                "resource rejected"
            );
            rejected.push((kind, resource.name, resource.reason));
        }
        if !self.session.acknowledge(ack.nonce, Duration::from_micros(ack.apply_micros), rejected) {
            tracing::warn!(node, nonce = ack.nonce, "acknowledgement of a delta that is not in flight");
        } else if std::mem::take(&mut self.adopting) {
            adoption::done(self.context.registry.store.as_ref(), node).await.map_err(errors::store)?;
        }
        Ok(())
    }

    async fn report(&mut self, report: v1::NodeReport) -> Result<(), Status> {
        let store = self.context.registry.store.as_ref();
        let node = &self.session.node;
        match report.report {
            Some(Report::Endpoint(report)) => {
                let answer = reports::endpoint(&self.context.registry, node, report).await?;
                self.answers.push_back(Message::EndpointAnswer(answer));
            }
            Some(Report::EndpointGone(gone)) => reports::gone(store, node, &gone).await?,
            Some(Report::Inventory(inventory)) => {
                reports::inventory(store, &self.context.hub, node, inventory).await?;
            }
            Some(Report::Buckets(buckets)) => match self.session.take_buckets(&buckets) {
                Some(question) => self.answers.push_back(Message::WantItems(question)),
                None => self.resume_until = None,
            },
            Some(Report::Items(items)) => {
                self.resume_until = None;
                self.session.take_items(&items);
            }
            Some(Report::Health(report)) => reports::health(self.context, self.session, &report).await?,
            Some(Report::HealthInventory(inventory)) => {
                reports::health_inventory(self.context, self.session, inventory).await?;
            }
            // Of a map's fill nothing depends yet.
            Some(Report::Pressure(_)) | None => {}
        }
        Ok(())
    }
}
