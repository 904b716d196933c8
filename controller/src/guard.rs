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

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::{ServiceExt as _, service_fn};

    use super::*;

    async fn call(layer: &GuardLayer, path: &str) -> Option<tonic::Code> {
        let never = service_fn(|_| std::future::pending::<Result<http::Response<Body>, Infallible>>());
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        let Ok(response) = layer.layer(never).oneshot(request).await;
        Status::from_header_map(response.headers()).map(|status| status.code())
    }

    #[tokio::test]
    async fn one_call_too_many_is_refused_at_once() {
        let layer = GuardLayer { room: Arc::new(Semaphore::new(0)) };
        let code = call(&layer, "/weft.v1.OperatorService/Get").await;
        assert_eq!(code, Some(tonic::Code::ResourceExhausted));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_too_long_is_ended_and_gives_its_room_back() {
        let layer = GuardLayer { room: Arc::new(Semaphore::new(1)) };
        for _ in 0..2 {
            let code = call(&layer, "/weft.v1.OperatorService/Apply").await;
            assert_eq!(code, Some(tonic::Code::DeadlineExceeded));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn streams_have_all_the_time_they_want() {
        let layer = GuardLayer::default();
        for path in ["/weft.v1.OperatorService/Watch", "/weft.v1.NodeStreamService/Stream"] {
            let patience = limits::OPERATOR_CALL_TIMEOUT * 100;
            assert!(tokio::time::timeout(patience, call(&layer, path)).await.is_err(), "{path} was ended");
        }
    }
}
