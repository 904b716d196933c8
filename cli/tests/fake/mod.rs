//! A controller and a daemon that answer what a test tells them to, and a way to run the real binary against them.
#![expect(dead_code, reason = "each test binary uses a part of it")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a helper of tests alone: a panic fails the test")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::{Arc, Mutex},
};

use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, UnixListener},
    task::JoinHandle,
};
use tokio_stream::{
    Stream,
    wrappers::{TcpListenerStream, UnixListenerStream},
};
use tonic::{Request, Response, Status, transport::Server};
use weft_proto::v1::{self, node_local_service_server as local, operator_service_server as operator};

type Answers<T> = std::pin::Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the fake controller answers, and what it was asked.
#[derive(Default)]
pub(crate) struct Script {
    pub(crate) apply: Option<Result<v1::ApplyResponse, Status>>,
    pub(crate) plan: Option<Result<v1::PlanResponse, Status>>,
    pub(crate) objects: Vec<v1::Object>,
    pub(crate) delete: Option<Result<v1::DeleteResponse, Status>>,
    pub(crate) explain: Option<Result<v1::ExplainResponse, Status>>,
    pub(crate) fleet: v1::FleetStatusResponse,
    pub(crate) services: Vec<v1::ServiceState>,
    pub(crate) wait: Vec<Result<v1::WaitRealisedResponse, Status>>,
    /// After its last answer, `wait` stays silent instead of ending.
    pub(crate) wait_hangs: bool,
    pub(crate) watch: Vec<Result<v1::WatchResponse, Status>>,
    pub(crate) asked: Asked,
}

#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) apply: Vec<v1::ApplyRequest>,
    pub(crate) plan: Vec<v1::PlanRequest>,
    pub(crate) list: Vec<v1::ListRequest>,
    pub(crate) get: Vec<v1::GetRequest>,
    pub(crate) delete: Vec<v1::DeleteRequest>,
    pub(crate) explain: Vec<v1::ExplainRequest>,
    pub(crate) services: Vec<v1::ServiceStatusRequest>,
    pub(crate) wait: Vec<v1::WaitRealisedRequest>,
    pub(crate) watch: Vec<v1::WatchRequest>,
}

#[derive(Clone)]
pub(crate) struct Controller {
    script: Arc<Mutex<Script>>,
    pub(crate) address: SocketAddr,
    // Ends with the test's runtime.
    _server: Arc<JoinHandle<()>>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<Script>>);

impl Controller {
    pub(crate) async fn start(script: Script) -> Self {
        let script = Arc::new(Mutex::new(script));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = operator::OperatorServiceServer::new(Service(Arc::clone(&script)));
        let serve =
            Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { serve.await.unwrap() });
        Self { script, address, _server: Arc::new(server) }
    }

    pub(crate) fn asked<T>(&self, look: impl FnOnce(&Asked) -> T) -> T {
        look(&self.script.lock().unwrap().asked)
    }

    /// Runs `weft --server ADDRESS ARGUMENTS…`.
    pub(crate) async fn weft(&self, arguments: &[&str]) -> Ran {
        let server = format!("http://{}", self.address);
        weft_with(&[&["--server", &server], arguments].concat(), "").await
    }

    pub(crate) async fn weft_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let server = format!("http://{}", self.address);
        weft_with(&[&["--server", &server], arguments].concat(), input).await
    }
}

/// How the command ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn assert_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}:\n{}", self.stdout))
    }
}

pub(crate) async fn weft(arguments: &[&str]) -> Ran {
    weft_with(arguments, "").await
}

async fn weft_with(arguments: &[&str], input: &str) -> Ran {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_weft"));
    command.args(arguments).env_remove("WEFT_SERVER").env_remove("WEFT_SOCKET");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A command that does not read its input closes it.
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let Output { status, stdout, stderr } = child.wait_with_output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: status.code().unwrap_or(-1), stdout: text(stdout), stderr: text(stderr) }
}

fn stream<T: Send + 'static>(items: Vec<Result<T, Status>>, hangs: bool) -> Response<Answers<T>> {
    use tokio_stream::StreamExt as _;
    let answers = tokio_stream::iter(items);
    Response::new(if hangs { Box::pin(answers.chain(tokio_stream::pending())) } else { Box::pin(answers) })
}

fn unscripted<T>() -> Result<T, Status> {
    Err(Status::unimplemented("the test has no answer for this"))
}

#[tonic::async_trait]
impl operator::OperatorService for Service {
    type WatchStream = Answers<v1::WatchResponse>;
    type WaitRealisedStream = Answers<v1::WaitRealisedResponse>;

    async fn apply(&self, request: Request<v1::ApplyRequest>) -> Result<Response<v1::ApplyResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.apply.push(request.into_inner());
        script.apply.clone().unwrap_or_else(unscripted).map(Response::new)
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.get.push(request.into_inner());
        let object = script.objects.first().cloned();
        let object = object.ok_or_else(|| Status::not_found("no policy \"nobody\""))?;
        Ok(Response::new(v1::GetResponse { object: Some(object), revision: 7 }))
    }

    /// Two objects a page, whatever was asked for.
    async fn list(&self, request: Request<v1::ListRequest>) -> Result<Response<v1::ListResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        let request = request.into_inner();
        let from: usize = request.page_token.parse().unwrap_or_default();
        script.asked.list.push(request);
        let objects: Vec<_> = script.objects.iter().skip(from).take(2).cloned().collect();
        let next = from + objects.len();
        let next_page_token = if next < script.objects.len() { next.to_string() } else { String::new() };
        Ok(Response::new(v1::ListResponse { objects, next_page_token, revision: 7 }))
    }

    /// Two services a page, whatever was asked for.
    async fn service_status(
        &self,
        request: Request<v1::ServiceStatusRequest>,
    ) -> Result<Response<v1::ServiceStatusResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        let request = request.into_inner();
        let named = |state: &&v1::ServiceState| request.name.is_empty() || state.name == request.name;
        let behind = |state: &&v1::ServiceState| state.name > request.page_token;
        let mut found: Vec<_> = script.services.iter().filter(named).filter(behind).cloned().collect();
        if found.is_empty() && !request.name.is_empty() {
            return Err(Status::not_found(format!("no service \"{}\"", request.name)));
        }
        let more = found.len() > 2;
        found.truncate(2);
        let last = found.last().filter(|_| more).map(|state| state.name.clone());
        script.asked.services.push(request);
        Ok(Response::new(v1::ServiceStatusResponse {
            services: found,
            next_page_token: last.unwrap_or_default(),
            revision: 7,
        }))
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.watch.push(request.into_inner());
        Ok(stream(script.watch.clone(), false))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.delete.push(request.into_inner());
        script.delete.clone().unwrap_or_else(unscripted).map(Response::new)
    }

    async fn explain(
        &self,
        request: Request<v1::ExplainRequest>,
    ) -> Result<Response<v1::ExplainResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.explain.push(request.into_inner());
        script.explain.clone().unwrap_or_else(unscripted).map(Response::new)
    }

    async fn plan(&self, request: Request<v1::PlanRequest>) -> Result<Response<v1::PlanResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.plan.push(request.into_inner());
        script.plan.clone().unwrap_or_else(unscripted).map(Response::new)
    }

    async fn fleet_status(
        &self,
        _: Request<v1::FleetStatusRequest>,
    ) -> Result<Response<v1::FleetStatusResponse>, Status> {
        Ok(Response::new(self.0.lock().unwrap().fleet.clone()))
    }

    async fn fleet_adopt(
        &self,
        request: Request<v1::FleetAdoptRequest>,
    ) -> Result<Response<v1::FleetAdoptResponse>, Status> {
        let v1::FleetAdoptRequest { nodes, all } = request.into_inner();
        let waiting = self.0.lock().unwrap().fleet.waiting_for_adoption.clone();
        let adopted = waiting.into_iter().filter(|node| all || nodes.contains(&node.name)).collect();
        Ok(Response::new(v1::FleetAdoptResponse { adopted }))
    }

    async fn wait_realised(
        &self,
        request: Request<v1::WaitRealisedRequest>,
    ) -> Result<Response<Self::WaitRealisedStream>, Status> {
        let mut script = self.0.lock().unwrap();
        script.asked.wait.push(request.into_inner());
        Ok(stream(script.wait.clone(), script.wait_hangs))
    }
}

/// What the fake daemon answers, and what it was asked.
#[derive(Default)]
pub(crate) struct LocalScript {
    pub(crate) attach: Option<Result<v1::AttachResponse, Status>>,
    /// `attach` never answers.
    pub(crate) attach_hangs: bool,
    pub(crate) endpoints: Vec<v1::Endpoint>,
    pub(crate) attached: Vec<v1::AttachRequest>,
    pub(crate) monitor: Vec<Result<v1::MonitorResponse, Status>>,
    /// After its last answer, `monitor` stays silent instead of ending.
    pub(crate) monitor_hangs: bool,
    pub(crate) monitored: Vec<v1::MonitorRequest>,
    pub(crate) judge: Option<Result<v1::JudgeResponse, Status>>,
    pub(crate) judged: Vec<v1::JudgeRequest>,
    pub(crate) status: Option<v1::StatusResponse>,
    /// What the kernel has of the service `api`.
    pub(crate) tables: v1::ServiceTablesResponse,
    /// Rows of the map `ipcache`.
    pub(crate) rows: Vec<v1::DumpMapResponse>,
}

#[derive(Clone)]
pub(crate) struct Daemon {
    script: Arc<Mutex<LocalScript>>,
    socket: PathBuf,
    _server: Arc<JoinHandle<()>>,
}

#[derive(Clone)]
struct LocalService(Arc<Mutex<LocalScript>>);

impl Daemon {
    pub(crate) fn start(script: LocalScript, directory: &Path) -> Self {
        let script = Arc::new(Mutex::new(script));
        let socket = directory.join("noded.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let service = local::NodeLocalServiceServer::new(LocalService(Arc::clone(&script)));
        let serve =
            Server::builder().add_service(service).serve_with_incoming(UnixListenerStream::new(listener));
        let server = tokio::spawn(async move { serve.await.unwrap() });
        Self { script, socket, _server: Arc::new(server) }
    }

    pub(crate) fn attached(&self) -> Vec<v1::AttachRequest> {
        self.script.lock().unwrap().attached.clone()
    }

    pub(crate) fn monitored(&self) -> Vec<v1::MonitorRequest> {
        self.script.lock().unwrap().monitored.clone()
    }

    /// Runs `weft --server SERVER monitor --socket PATH ARGUMENTS…`.
    pub(crate) async fn weft_monitor(&self, server: &str, arguments: &[&str]) -> Ran {
        let socket = self.socket.to_str().unwrap();
        weft(&[&["--server", server, "monitor", "--socket", socket], arguments].concat()).await
    }

    /// Runs `weft node ARGUMENTS… --socket PATH`.
    pub(crate) async fn weft_node(&self, arguments: &[&str]) -> Ran {
        let socket = self.socket.to_str().unwrap();
        weft(&[&["node"], arguments, &["--socket", socket]].concat()).await
    }

    /// Runs `weft endpoint --socket PATH ARGUMENTS…`.
    pub(crate) async fn weft_endpoint(&self, arguments: &[&str]) -> Ran {
        let socket = self.socket.to_str().unwrap();
        weft(&[&["endpoint", "--socket", socket], arguments].concat()).await
    }
}

#[tonic::async_trait]
impl local::NodeLocalService for LocalService {
    async fn service_tables(
        &self,
        request: Request<v1::ServiceTablesRequest>,
    ) -> Result<Response<v1::ServiceTablesResponse>, Status> {
        match request.into_inner().name.as_str() {
            "api" => Ok(Response::new(self.0.lock().unwrap().tables.clone())),
            name => Err(Status::not_found(format!("this node was told of no service \"{name}\""))),
        }
    }

    type DumpMapStream = Answers<v1::DumpMapResponse>;
    type MonitorStream = Answers<v1::MonitorResponse>;

    async fn attach(
        &self,
        request: Request<v1::AttachRequest>,
    ) -> Result<Response<v1::AttachResponse>, Status> {
        let (answer, hangs) = {
            let mut script = self.0.lock().unwrap();
            script.attached.push(request.into_inner());
            (script.attach.clone(), script.attach_hangs)
        };
        if hangs {
            std::future::pending::<()>().await;
        }
        answer.unwrap_or_else(unscripted).map(Response::new)
    }

    async fn detach(
        &self,
        request: Request<v1::DetachRequest>,
    ) -> Result<Response<v1::DetachResponse>, Status> {
        let name = request.into_inner().name;
        let mut script = self.0.lock().unwrap();
        let before = script.endpoints.len();
        script.endpoints.retain(|endpoint| endpoint.metadata.as_ref().unwrap().name != name);
        if script.endpoints.len() == before {
            return Err(Status::not_found(format!("no endpoint \"{name}\" on this node")));
        }
        Ok(Response::new(v1::DetachResponse {}))
    }

    async fn list_endpoints(
        &self,
        _: Request<v1::ListEndpointsRequest>,
    ) -> Result<Response<v1::ListEndpointsResponse>, Status> {
        let endpoints = self.0.lock().unwrap().endpoints.clone();
        Ok(Response::new(v1::ListEndpointsResponse { endpoints }))
    }

    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        self.0.lock().unwrap().status.clone().map_or_else(unscripted, |status| Ok(Response::new(status)))
    }

    async fn dump_map(
        &self,
        request: Request<v1::DumpMapRequest>,
    ) -> Result<Response<Self::DumpMapStream>, Status> {
        let map = request.into_inner().map;
        if map != "ipcache" {
            return Err(Status::invalid_argument(format!("no map \"{map}\"; there is ipcache")));
        }
        Ok(stream(self.0.lock().unwrap().rows.iter().cloned().map(Ok).collect(), false))
    }

    async fn judge(&self, request: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeResponse>, Status> {
        let mut script = self.0.lock().unwrap();
        script.judged.push(request.into_inner());
        script.judge.clone().unwrap_or_else(unscripted).map(Response::new)
    }

    async fn monitor(
        &self,
        request: Request<v1::MonitorRequest>,
    ) -> Result<Response<Self::MonitorStream>, Status> {
        let mut script = self.0.lock().unwrap();
        script.monitored.push(request.into_inner());
        Ok(stream(script.monitor.clone(), script.monitor_hangs))
    }
}
