//! The text of a systemd unit. Pure.
//!
//! The machine's service runs as a user that exists only meanwhile, sees of the file system only its
//! own directory, and gets the upstream's key by systemd's credentials. A user's service may use
//! what does not need privileges.

use std::path::Path;

use crate::cli::{CliError, FailureKind};

/// The drain takes up to 28 s (`node/base`); then systemd kills.
const STOP_TIMEOUT_S: u32 = 40;
/// Pause before a restart.
const RESTART_S: u32 = 2;
/// The name under which systemd hands the key over.
const CREDENTIAL: &str = "upstream-key";
/// Sockets and databases of ten thousand buyers.
const FILES_MAX: u32 = 65_536;

/// Whose service it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    System,
    User,
}

/// What the unit says.
pub(super) struct Unit<'a> {
    pub scope: Scope,
    pub role: &'a str,
    pub program: &'a Path,
    pub config: Option<&'a Path>,
    /// None: systemd's own state directory.
    pub data_dir: Option<&'a Path>,
    pub flags: &'a [String],
}

/// Holds for every service. A forbidden call fails and does not kill: SQLite run by root sets the
/// owner of its files, which changes nothing, and goes on without.
const FENCE: &str = "NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077
";

/// Needs the machine's systemd.
const WALL: &str = "DynamicUser=yes
StateDirectory=souk
StateDirectoryMode=0700
Environment=SOUK_DATA_DIR=%S/souk
CapabilityBoundingSet=
AmbientCapabilities=
DevicePolicy=closed
PrivateDevices=yes
PrivateTmp=yes
PrivateUsers=yes
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
";

impl Unit<'_> {
    /// The file's text.
    ///
    /// # Errors
    /// When a path or flag cannot stand in a unit.
    pub fn text(&self) -> anyhow::Result<String> {
        let mut words = vec![quoted(&self.program.display().to_string())?];
        words.push(self.role.to_owned());
        let mut more = String::new();
        if let Some(config) = self.config {
            let config = absolute(config)?;
            words.push("--config".to_owned());
            words.push(match self.scope {
                // The service's own user cannot read a home; systemd hands the file over.
                Scope::System => {
                    more.push_str(&format!("LoadCredential=config.toml:{config}\n"));
                    "%d/config.toml".to_owned()
                }
                Scope::User => quoted(&config)?,
            });
        }
        self.add_flags(&mut words, &mut more)?;
        if let Some(dir) = self.data_dir {
            let dir = quoted(&format!("SOUK_DATA_DIR={}", absolute(dir)?))?;
            more.push_str(&format!("Environment={dir}\n"));
        }
        let wall = match self.scope {
            Scope::System => WALL,
            Scope::User => "",
        };
        let wanted = match self.scope {
            Scope::System => "multi-user.target",
            Scope::User => "default.target",
        };
        let online = match self.scope {
            Scope::System => "Wants=network-online.target\nAfter=network-online.target\n",
            Scope::User => "",
        };
        Ok(format!(
            "# Made by `souk service install`; a change here is lost with the next one.\n\
             [Unit]\nDescription=Souk: {role}\n{online}\
             StartLimitIntervalSec=60\nStartLimitBurst=10\n\n\
             [Service]\nType=notify\nExecStart={}\nExecReload=/bin/kill -HUP $MAINPID\n\
             Restart=on-failure\nRestartSec={RESTART_S}\nRestartPreventExitStatus=2 3 64\n\
             TimeoutStopSec={STOP_TIMEOUT_S}\nLimitNOFILE={FILES_MAX}\n{more}{FENCE}{wall}\n\
             [Install]\nWantedBy={wanted}\n",
            words.join(" "),
            role = self.role,
        ))
    }

    /// The role's flags; the file with the upstream's key becomes a credential.
    fn add_flags(&self, words: &mut Vec<String>, more: &mut String) -> anyhow::Result<()> {
        let mut flags = self.flags.iter();
        while let Some(flag) = flags.next() {
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) if name == "--api-key-file" => (name, Some(value.to_owned())),
                _ if flag == "--api-key-file" => (flag.as_str(), flags.next().cloned()),
                _ => {
                    words.push(quoted(flag)?);
                    continue;
                }
            };
            let file = absolute(Path::new(&value.unwrap_or_default()))?;
            words.push(name.to_owned());
            words.push(match self.scope {
                Scope::System => {
                    more.push_str(&format!("LoadCredential={CREDENTIAL}:{file}\n"));
                    format!("%d/{CREDENTIAL}")
                }
                Scope::User => quoted(&file)?,
            });
        }
        Ok(())
    }
}

fn absolute(path: &Path) -> anyhow::Result<String> {
    let path = std::path::absolute(path)?;
    let text = path.display().to_string();
    if text.chars().any(|c| c.is_control() || c == ':') {
        let message = format!("`{}` cannot stand in a unit file", text.escape_debug());
        return Err(CliError::new(FailureKind::Usage, message).into());
    }
    Ok(text.replace('%', "%%"))
}

/// A word as `ExecStart` reads it: quoted, with systemd's own specifiers and variables turned off.
fn quoted(word: &str) -> anyhow::Result<String> {
    if word.chars().any(char::is_control) {
        let message = format!("`{}` cannot stand in a unit file", word.escape_debug());
        return Err(CliError::new(FailureKind::Usage, message).into());
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@,+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return Ok(word.to_owned());
    }
    let mut out = String::from("\"");
    for c in word.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '%' | '$' => out.extend([c, c]),
            other => out.push(other),
        }
    }
    out.push('"');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(scope: Scope, flags: &[&str]) -> String {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let unit = Unit {
            scope,
            role: "sell",
            program: Path::new("/usr/local/bin/souk"),
            config: None,
            data_dir: None,
            flags: &flags,
        };
        unit.text().unwrap()
    }

    #[test]
    fn a_key_file_is_handed_over_by_systemd_and_never_copied_into_the_unit() {
        let flags = [
            "--upstream",
            "openrouter",
            "--api-key-file",
            "/etc/souk/key",
        ];
        let text = unit(Scope::System, &flags);
        assert!(
            text.contains("LoadCredential=upstream-key:/etc/souk/key\n"),
            "{text}"
        );
        assert!(text.contains("--api-key-file %d/upstream-key\n"), "{text}");
        assert!(text.contains("DynamicUser=yes"), "{text}");
        let text = unit(Scope::User, &["--api-key-file=/home/me/key"]);
        assert!(text.contains("--api-key-file /home/me/key\n"), "{text}");
        assert!(!text.contains("DynamicUser"), "{text}");
    }

    #[test]
    fn words_reach_the_program_as_they_were_typed() {
        let text = unit(Scope::System, &["--markup", "10%", "--model", "a b=\"$c\""]);
        let line = text
            .lines()
            .find(|line| line.starts_with("ExecStart="))
            .unwrap();
        assert!(
            line.ends_with(r#"--markup "10%%" --model "a b=\"$$c\"""#),
            "{line}"
        );
        assert!(quoted("a\nExecStart=/bin/evil").is_err());
    }
}
