//! The layer before all services: unary calls of operators are bounded in number and in time. Streams have bounds of
//! their own, where they are opened.
use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::sync::Semaphore;
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use crate::limits;

const OPERATOR_PATH: &str = "/weft.v1.OperatorService/";
const STREAMS: [&str; 2] = ["Watch", "WaitRealised"];

#[derive(Debug, Clone)]
pub struct GuardLayer {
    room: Arc<Semaphore>,
}

impl Default for GuardLayer {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(limits::OPERATOR_CALLS_MAX)) }
    }
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guard<S>;

    fn layer(&self, inner: S) -> Guard<S> {
        Guard { inner, room: Arc::clone(&self.room) }
    }
}

#[derive(Debug, Clone)]
pub struct Guard<S> {
    inner: S,
    room: Arc<Semaphore>,
}

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if !is_unary_operator_call(request.uri().path()) {
            return Box::pin(self.inner.call(request));
        }
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            let text = format!("{} calls are in progress already: try again", limits::OPERATOR_CALLS_MAX);
            return Box::pin(std::future::ready(Ok(Status::resource_exhausted(text).into_http())));
        };
        let call = self.inner.call(request);
        Box::pin(async move {
            let ended = tokio::time::timeout(limits::OPERATOR_CALL_TIMEOUT, call).await;
            drop(room);
            ended.unwrap_or_else(|_late| {
                let text = format!("not done after {} s", limits::OPERATOR_CALL_TIMEOUT.as_secs());
                Ok(Status::deadline_exceeded(text).into_http())
            })
        })
    }
}

fn is_unary_operator_call(path: &str) -> bool {
    path.strip_prefix(OPERATOR_PATH).is_some_and(|method| !STREAMS.contains(&method))
}
