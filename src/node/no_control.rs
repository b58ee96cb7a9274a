//! Stand-in until the control pages are merged.
use crate::http::body::Body;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
/// Answers 404.
pub struct NoControl;
impl crate::http::server::Handler for NoControl {
    fn handle(&self, _request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        std::future::ready(response).boxed()
    }
}
