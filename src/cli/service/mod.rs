//! `node service install|uninstall|status`: a role as a systemd service, of the machine or of a user.
//!
//! `arguments of the role → checked as if typed → unit file → systemctl`. [`unit`] writes the text;
//! no secret ever stands in it. Where systemd does not run, the file is written and the commands
//! that remain are printed.

mod unit;

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::json;

use super::output::{self, Output};
use super::{Cli, CliError, FailureKind, GlobalArgs};
use unit::{Scope, Unit};

/// Where the machine's own units lie.
const SYSTEM_UNITS: &str = "/etc/systemd/system";
/// Where the program is put for the machine's units, when it runs from elsewhere.
const SYSTEM_PROGRAM: &str = "/usr/local/bin/souk";

/// Flags of `node service`.
#[derive(Clone, Debug, Args)]
pub struct ServiceArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// Install and start a role; what follows it are the role's own flags
    Install(InstallArgs),
    /// Stop a role and remove its unit; keys and ledger stay
    Uninstall(NamedArgs),
    /// Show whether a role's service runs
    Status(NamedArgs),
}

#[derive(Clone, Debug, Args)]
struct InstallArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// Only print the unit
    #[arg(long)]
    dry_run: bool,
    /// Do not start it
    #[arg(long)]
    no_start: bool,
    /// Flags of the role, as typed after `node ROLE`
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<String>,
}

#[derive(Clone, Debug, Args)]
struct NamedArgs {
    /// A service of this user instead of the machine
    #[arg(long)]
    user: bool,
    /// The role
    #[arg(value_enum)]
    role: Role,
}

/// What may run as a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Role {
    Sell,
    Contribute,
    Buy,
    Run,
    Bootstrap,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Sell => "sell",
            Self::Contribute => "contribute",
            Self::Buy => "buy",
            Self::Run => "run",
            Self::Bootstrap => "bootstrap",
        }
    }
}

impl NamedArgs {
    const fn scope(&self) -> Scope {
        if self.user {
            Scope::User
        } else {
            Scope::System
        }
    }
    fn unit_name(&self) -> String {
        format!("souk-{}.service", self.role.as_str())
    }
    fn unit_file(&self) -> anyhow::Result<PathBuf> {
        let folder = match self.scope() {
            Scope::System => PathBuf::from(SYSTEM_UNITS),
            Scope::User => base_dirs()?.config_dir().join("systemd/user"),
        };
        Ok(folder.join(self.unit_name()))
    }
    fn systemctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new("systemctl");
        if self.user {
            command.arg("--user");
        }
        command.args(args);
        command
    }
}

fn base_dirs() -> anyhow::Result<directories::BaseDirs> {
    let message = "there is no home directory to install for";
    let none = || CliError::new(FailureKind::NotConfigured, message);
    Ok(directories::BaseDirs::new().ok_or_else(none)?)
}

/// Installs, removes or shows.
///
/// # Errors
/// When the role's flags are wrong, a file cannot be written, or systemd refuses.
pub fn run(global: &GlobalArgs, out: &Output, args: &ServiceArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Install(install) => set_up(global, out, install),
        What::Uninstall(named) => remove(out, named),
        What::Status(named) => status(out, named),
    }
}

fn set_up(global: &GlobalArgs, out: &Output, args: &InstallArgs) -> anyhow::Result<()> {
    let named = &args.named;
    check_flags(global, named.role, &args.flags)?;
    let program = program(named.scope())?;
    let data_dir = match named.scope() {
        // systemd makes and owns it: StateDirectory.
        Scope::System => None,
        Scope::User => Some(global.data_dir()?.path().to_owned()),
    };
    let unit = Unit {
        scope: named.scope(),
        role: named.role.as_str(),
        program: &program.installed,
        config: global.config.as_deref(),
        data_dir: data_dir.as_deref(),
        flags: &args.flags,
    };
    let text = unit.text()?;
    if args.dry_run {
        if out.json {
            output::json(&json!({ "file": named.unit_file()?, "unit": text }));
        } else {
            output::text(text.trim_end());
        }
        return Ok(());
    }
    program.install()?;
    let file = named.unit_file()?;
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|e| refused(folder, &e))?;
    }
    std::fs::write(&file, text).map_err(|e| refused(&file, &e))?;
    let unit = named.unit_name();
    let mut steps = vec![vec!["daemon-reload"]];
    if !args.no_start {
        steps.push(vec!["enable", "--now", &unit]);
    }
    let remaining = follow(named, &steps);
    tell(out, "installed", &file, &remaining);
    Ok(())
}

fn remove(out: &Output, named: &NamedArgs) -> anyhow::Result<()> {
    let file = named.unit_file()?;
    if !file.exists() {
        let message = format!("no such service: {} is not there", file.display());
        return Err(CliError::new(FailureKind::NotConfigured, message).into());
    }
    let unit = named.unit_name();
    let mut remaining = follow(named, &[vec!["disable", "--now", &unit]]);
    std::fs::remove_file(&file).map_err(|e| refused(&file, &e))?;
    remaining.extend(follow(named, &[vec!["daemon-reload"]]));
    tell(out, "removed", &file, &remaining);
    Ok(())
}

fn status(out: &Output, named: &NamedArgs) -> anyhow::Result<()> {
    let file = named.unit_file()?;
    let asked = named
        .systemctl(&["is-active", &named.unit_name()])
        .output()
        .ok()
        .map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    let state = match asked {
        Some(word) if !word.is_empty() => word,
        _ => "unknown: systemd does not run here".to_owned(),
    };
    let is_installed = file.exists();
    if out.json {
        output::json(&json!({ "file": file, "installed": is_installed, "state": state }));
    } else if is_installed {
        output::text(&format!("{}: {state}", file.display()));
    } else {
        output::text(&format!("{} is not installed", named.unit_name()));
    }
    Ok(())
}

/// The role's flags must parse, and its config must be right, before anything is written.
fn check_flags(global: &GlobalArgs, role: Role, flags: &[String]) -> anyhow::Result<()> {
    let secret = flags.iter().any(|f| f.starts_with("--api-key-env"));
    let preset = ["openrouter", "anthropic", "openai"];
    let wants_key = flags.iter().any(|flag| preset.contains(&flag.as_str()));
    let has_key = flags.iter().any(|f| f.starts_with("--api-key-file"));
    if secret || (wants_key && !has_key) {
        let message = "a service has no variables of your shell, and its unit holds no secret";
        let hint = "put the key into a file of mode 0600 and give --api-key-file FILE";
        return Err(CliError::new(FailureKind::Usage, message).hint(hint).into());
    }
    let typed = ["node", role.as_str()].into_iter().map(str::to_owned);
    let all = typed.chain(flags.iter().cloned()).map(OsString::from);
    let cli = match <Cli as clap::Parser>::try_parse_from(all) {
        Ok(cli) => cli,
        Err(error) => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line).to_owned();
            let hint = format!("`node {} --help` lists the role's flags", role.as_str());
            return Err(CliError::new(FailureKind::Usage, line).hint(hint).into());
        }
    };
    let mut own = cli.global.clone();
    own.config = own.config.or_else(|| global.config.clone());
    own.load(cli.settings())?;
    Ok(())
}

/// The program that the unit starts.
struct Program {
    installed: PathBuf,
    /// Where it is copied from, when it must be.
    from: Option<PathBuf>,
}

/// A program in a build folder, or under Node.js's name, is copied to where `souk` belongs.
fn program(scope: Scope) -> anyhow::Result<Program> {
    let here = std::env::current_exe()?;
    if here.file_name().is_some_and(|name| name == "souk") {
        return Ok(Program {
            installed: here,
            from: None,
        });
    }
    let installed = match scope {
        Scope::System => PathBuf::from(SYSTEM_PROGRAM),
        Scope::User => base_dirs()?.home_dir().join(".local/bin/souk"),
    };
    Ok(Program {
        installed,
        from: Some(here),
    })
}

impl Program {
    fn install(&self) -> anyhow::Result<()> {
        let Some(from) = &self.from else {
            return Ok(());
        };
        let to = &self.installed;
        if let Some(folder) = to.parent() {
            std::fs::create_dir_all(folder).map_err(|e| refused(folder, &e))?;
        }
        // Beside and renamed: a running program cannot be written over.
        let beside = to.with_extension("new");
        std::fs::copy(from, &beside).map_err(|e| refused(&beside, &e))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&beside, mode).map_err(|e| refused(&beside, &e))?;
        std::fs::rename(&beside, to).map_err(|e| refused(to, &e))?;
        Ok(())
    }
}

fn refused(path: &Path, error: &std::io::Error) -> CliError {
    let failure = CliError::new(FailureKind::Failure, format!("{}: {error}", path.display()));
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        failure.hint("use sudo, or --user for a service of your own")
    } else {
        failure
    }
}

/// Runs systemctl; returns the commands that could not be run.
fn follow(named: &NamedArgs, steps: &[Vec<&str>]) -> Vec<String> {
    let mut remaining = Vec::new();
    for step in steps {
        let done = named.systemctl(step).output();
        if !done.is_ok_and(|done| done.status.success()) {
            let user = if named.user { "--user " } else { "" };
            remaining.push(format!("systemctl {user}{}", step.join(" ")));
        }
    }
    remaining
}

fn tell(out: &Output, what: &str, file: &Path, remaining: &[String]) {
    if out.json {
        output::json(&json!({ what: true, "file": file, "remaining": remaining }));
        return;
    }
    output::text(&format!("{what} {}", file.display()));
    if !remaining.is_empty() {
        output::message("systemd did not do these; run them where it does:");
        for command in remaining {
            output::message(&format!("  {command}"));
        }
    }
}
