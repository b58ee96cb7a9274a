//! Runs OpenClaw's own command line.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::cli::{CliError, FailureKind};
use crate::telemetry::printable;

/// It starts in seconds; on a busy small machine in tens of them.
const TIMEOUT: Duration = Duration::from_secs(120);

/// An installed OpenClaw.
pub(super) struct OpenClaw {
    program: PathBuf,
}

struct Said {
    is_ok: bool,
    stdout: String,
    stderr: String,
}

impl OpenClaw {
    /// The one in PATH, if there is one.
    pub fn find() -> Option<Self> {
        let path = std::env::var_os("PATH")?;
        let program = std::env::split_paths(&path)
            .map(|folder| folder.join("openclaw"))
            .find(|file| file.is_file())?;
        Some(Self { program })
    }

    /// Patches its config, where the patch replaces all that is at `replaced`; returns what it says.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn patch(
        &self,
        patch: &Value,
        replaced: &str,
        dry_run: bool,
    ) -> anyhow::Result<String> {
        let file = std::env::temp_dir().join(format!("souk-openclaw-{}.json5", nonce()));
        let mut options = std::fs::OpenOptions::new();
        let options = options.write(true).create_new(true).mode(0o600);
        let written = options
            .open(&file)
            .and_then(|mut out| out.write_all(patch.to_string().as_bytes()));
        let said = match written {
            Ok(()) => {
                let path = file.display().to_string();
                // Models that are gone from the market would be refused otherwise.
                let mut args = vec!["config", "patch", "--file", &path];
                args.extend(["--replace-path", replaced]);
                if dry_run {
                    args.push("--dry-run");
                }
                self.run(&args).await
            }
            Err(error) => Err(error.into()),
        };
        drop(std::fs::remove_file(&file));
        let said = said?;
        if said.is_ok {
            return Ok(printable(said.stdout.trim()));
        }
        Err(said.refusal("patch its config").into())
    }

    /// A value of its config; none when it is not set.
    ///
    /// # Errors
    /// When it cannot be run, or answers with no JSON.
    pub async fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let said = self.run(&["config", "get", path, "--json"]).await?;
        if said.is_ok {
            return Ok(Some(serde_json::from_str(&said.stdout)?));
        }
        let text = format!("{}{}", said.stdout, said.stderr).to_lowercase();
        if ["not found", "not set", "unset"]
            .iter()
            .any(|word| text.contains(word))
        {
            return Ok(None);
        }
        Err(said.refusal("read its config").into())
    }

    /// Removes a value of its config.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn unset(&self, path: &str) -> anyhow::Result<()> {
        let said = self.run(&["config", "unset", path]).await?;
        if said.is_ok {
            return Ok(());
        }
        Err(said.refusal("change its config").into())
    }

    async fn run(&self, args: &[&str]) -> anyhow::Result<Said> {
        let mut command = tokio::process::Command::new(&self.program);
        let command = command
            .args(args)
            .env("OPENCLAW_HIDE_BANNER", "1")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let program = self.program.display();
        let failed = |what: String| {
            let hint = "run `openclaw doctor`";
            CliError::new(FailureKind::Failure, format!("{program}: {what}")).hint(hint)
        };
        let output = match tokio::time::timeout(TIMEOUT, command.output()).await {
            Ok(Ok(output)) => output,
            Ok(Err(error)) => return Err(failed(error.to_string()).into()),
            Err(_) => return Err(failed(format!("no answer in {TIMEOUT:?}")).into()),
        };
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Said {
            is_ok: output.status.success(),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        })
    }
}

impl Said {
    fn refusal(&self, what: &str) -> CliError {
        let words = if self.stderr.trim().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let message = format!("OpenClaw did not {what}: {}", printable(words.trim()));
        CliError::new(FailureKind::Failure, message).hint("run `openclaw config validate`")
    }
}

fn nonce() -> String {
    hex::encode(rand::random::<[u8; 8]>())
}
