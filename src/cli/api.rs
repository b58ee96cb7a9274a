//! Asks the running node over its local HTTP interface, found through `run.json`.

use std::time::Duration;

use serde_json::Value;

use super::{CliError, FailureKind, GlobalArgs};
use crate::data_dir::{DataDir, RunInfo};

/// Everything is on this machine; a node that takes longer is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A report over a million rows takes 0.1 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// A relayer asks its chain twice, and several may be asked one after the other.
const RELAY_TIMEOUT: Duration = Duration::from_secs(240);
/// Ten thousand sellers of 1 KiB each.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The running node of a data directory.
pub struct Api {
    info: RunInfo,
    client: reqwest::Client,
}

impl Api {
    /// Finds the node that runs on the configured data directory.
    ///
    /// # Errors
    /// When none runs there, or it is still starting.
    pub fn find(global: &GlobalArgs) -> anyhow::Result<Self> {
        let dir = global.data_dir()?;
        let info = dir.running().ok_or_else(|| not_running(&dir))?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(ANSWER_TIMEOUT)
            .build()?;
        Ok(Self { info, client })
    }

    /// What the running node said about itself.
    #[must_use]
    pub const fn info(&self) -> &RunInfo {
        &self.info
    }

    /// Fetches one JSON value.
    ///
    /// # Errors
    /// When the node cannot be reached or refuses; its own message is passed on.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let url = self.url(path);
        self.send(self.client.get(&url), &url).await
    }

    /// Posts a JSON value with the control token and fetches the answer.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = self.url(path);
        let request = self
            .client
            .post(&url)
            .header("content-type", "application/json");
        self.send(request.body(body.to_string()), &url).await
    }

    /// As [`Self::post`], for what waits for other nodes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post_waiting(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let url = self.url(path);
        let request = self
            .client
            .post(&url)
            .timeout(RELAY_TIMEOUT)
            .header("content-type", "application/json");
        self.send(request.body(body.to_string()), &url).await
    }

    /// Posts a JSON value; the answer's head is here when this returns, its body is to be read.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn post_streamed(
        &self,
        path: &str,
        body: &Value,
        timeout: Duration,
    ) -> anyhow::Result<reqwest::Response> {
        let url = self.url(path);
        let request = self.client.post(&url).timeout(timeout);
        let request = request
            .header("content-type", "application/json")
            .bearer_auth(self.info.token().expose())
            .body(body.to_string());
        let answer = request.send().await.map_err(|error| {
            let reason = anyhow::Error::new(error.without_url());
            let message = format!("{url} does not answer: {reason:#}");
            CliError::new(FailureKind::Network, message).retryable()
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let value = serde_json::from_slice(&answer.bytes().await?).ok();
        Err(refused(&url, status, value.as_ref()).into())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.info.url.trim_end_matches('/'))
    }

    async fn send(&self, request: reqwest::RequestBuilder, url: &str) -> anyhow::Result<Value> {
        let unreachable = |error: reqwest::Error| {
            let reason = anyhow::Error::new(error.without_url());
            let message = format!("{url} does not answer: {reason:#}");
            CliError::new(FailureKind::Network, message).retryable()
        };
        let mut answer = request
            .bearer_auth(self.info.token().expose())
            .send()
            .await
            .map_err(unreachable)?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                let message = format!("{url} answers with more than {ANSWER_BYTES_MAX} bytes");
                return Err(CliError::new(FailureKind::Failure, message).into());
            }
            body.extend_from_slice(&chunk);
        }
        let value: Option<Value> = serde_json::from_slice(&body).ok();
        match value {
            Some(value) if answer.status().is_success() => Ok(value),
            other => Err(refused(url, answer.status().as_u16(), other.as_ref()).into()),
        }
    }
}

fn refused(url: &str, status: u16, body: Option<&Value>) -> CliError {
    let text = body
        .and_then(|body| body.pointer("/error/message"))
        .and_then(Value::as_str)
        .unwrap_or("no JSON answer");
    let code = body
        .and_then(|body| body.pointer("/error/code"))
        .and_then(Value::as_str);
    let text = crate::telemetry::printable(text);
    match code {
        // The node's own words are for the user; where they come from helps nobody.
        Some("payment") => CliError::new(FailureKind::Payment, text),
        Some("unavailable") => CliError::new(FailureKind::Network, text).retryable(),
        _ => CliError::new(FailureKind::Failure, format!("{url}: {status} {text}")),
    }
}

fn not_running(dir: &DataDir) -> CliError {
    let place = dir.path().display();
    match dir.holder() {
        Some(holder) => {
            let message = format!("{holder} on {place} is not ready yet");
            CliError::new(FailureKind::Network, message).retryable()
        }
        None => CliError::new(
            FailureKind::NotConfigured,
            format!("no node runs on {place}"),
        )
        .hint("start one with `node buy`, or name its --data-dir"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::BoxFuture;
    use http::{Request, Response};
    use hyper::body::Incoming;

    use super::*;
    use crate::cli::Cli;
    use crate::http::body::Body;
    use crate::http::guard::{self, Guard};
    use crate::http::server::{self, Handler, Server};
    use crate::tasks::Tasks;
    use crate::types::Secret;

    struct Canned;

    impl Handler for Canned {
        fn handle(&self, request: Request<Incoming>) -> BoxFuture<'static, Response<Body>> {
            let (status, text) = match request.uri().path() {
                "/api/status" => (200, r#"{"role":"buy"}"#),
                "/broken" => (200, "<html>"),
                _ => (404, r#"{"error":{"message":"no \u001b such page"}}"#),
            };
            let mut response = Response::new(Body::full(text));
            *response.status_mut() = status.try_into().unwrap();
            Box::pin(std::future::ready(response))
        }
    }

    fn global(dir: &std::path::Path) -> GlobalArgs {
        let config = dir.join("config.toml");
        std::fs::write(&config, "").unwrap();
        let args = ["node", "status", "--data-dir"].map(Into::into);
        let more = [dir.into(), "--config".into(), config.into()];
        Cli::from_args(args.into_iter().chain(more)).unwrap().global
    }

    #[tokio::test]
    async fn the_running_node_is_found_and_asked_with_its_token() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let temp = tempfile::tempdir().unwrap();
        let global = global(temp.path());
        let kind = |error: anyhow::Error| CliError::from_error(&error).kind;
        let none = Api::find(&global).err().unwrap();
        assert_eq!(kind(none), FailureKind::NotConfigured);

        let lock = global.data_dir().unwrap().lock("buy").unwrap();
        let starting = Api::find(&global).err().unwrap();
        assert_eq!(kind(starting), FailureKind::Network);

        let settings = server::Settings {
            port: 0,
            ..server::Settings::default()
        };
        let server = Server::bind(settings).await.unwrap();
        let info = RunInfo::new("buy", &format!("http://{}", server.local_addr()));
        lock.publish(&info).unwrap();
        let guard = Guard::new(&guard::Settings {
            port: server.local_addr().port(),
            token: Some(Secret::new("another".to_owned())),
            control: Some(info.token()),
            ..guard::Settings::default()
        });
        let tasks = Tasks::new();
        let (own, stop) = (tasks.clone(), tasks.cancelled());
        let serving = async move { server.run(guard, Arc::new(Canned), &own, stop).await };
        tasks.spawn("server", serving);

        let api = Api::find(&global).unwrap();
        assert_eq!(api.get("/api/status").await.unwrap()["role"], "buy");
        let error = api.get("/nowhere").await.unwrap_err().to_string();
        assert!(error.contains("404 no \u{fffd} such page"), "{error}");
        assert!(api.get("/broken").await.is_err());
        tasks.shutdown(Duration::from_secs(60)).await.unwrap();
        let gone = api.get("/api/status").await.unwrap_err();
        assert_eq!(kind(gone), FailureKind::Network);
    }
}
