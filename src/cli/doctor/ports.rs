//! Whether the ports that a role wants are free, and who holds them if not.

use std::net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs as _};

use super::check::Check;
use crate::config::Config;
use crate::data_dir::DataDir;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// One check for each port of an enabled role.
pub(super) fn all(config: &Config, dir: &DataDir) -> Vec<Check> {
    if let Some(holder) = dir.holder() {
        let said = format!("{holder} runs on {}", dir.path().display());
        return vec![Check::pass("ports", said)];
    }
    let mut checks = Vec::new();
    if config.buy.enabled {
        let flag = "another [buy] port (or --port; 0 = a free one)";
        checks.push(one("buyer's port", &config.buy.host, config.buy.port, flag));
    }
    if config.sell.enabled && config.sell.upstream.is_some() {
        let flag = "another [sell] http_port (or --http-port; 0 = a free one)";
        let host = Ipv4Addr::LOCALHOST.to_string();
        checks.push(one("seller's port", &host, config.sell.http_port, flag));
    }
    checks
}

fn one(name: &'static str, host: &str, port: u16, flag: &str) -> Check {
    let host = host.trim_matches(['[', ']']);
    match TcpListener::bind((host, port)) {
        Ok(_) => Check::pass(name, format!("{host}:{port} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let by = match holder(host, port) {
                Some(holder) => format!("{host}:{port} is held by {holder}"),
                None => format!("{host}:{port} is held by another user's process"),
            };
            Check::fail(name, by, format!("stop it, or choose {flag}"))
        }
        Err(error) => {
            let what = format!("{host}:{port} cannot be used: {error}");
            Check::fail(name, what, format!("choose {flag} or another host"))
        }
    }
}

/// `name (pid 123)` of the process that listens there; none where that cannot be seen.
fn holder(host: &str, port: u16) -> Option<String> {
    let address = (host, port).to_socket_addrs().ok()?.next()?.ip();
    let inode = inode(&address, port)?;
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|text| text.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let holds = |file: &std::fs::DirEntry| {
            let link = std::fs::read_link(file.path()).unwrap_or_default();
            link.as_os_str() == wanted.as_str()
        };
        if files.flatten().any(|file| holds(&file)) {
            let program = std::fs::read_to_string(process.path().join("comm"));
            let program = program.unwrap_or_default();
            return Some(format!("{} (pid {pid})", program.trim()));
        }
    }
    None
}

/// The socket that listens on a port, at this address or at all.
fn inode(address: &IpAddr, port: u16) -> Option<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let texts = tables.map(|path| std::fs::read_to_string(path).unwrap_or_default());
    let lines = texts.iter().flat_map(|text| text.lines().skip(1));
    lines
        .filter_map(|line| listener(line, port))
        .min_by_key(|(at, _)| at.as_ref() != Some(address))
        .map(|(_, inode)| inode)
}

/// Address (none for IPv6, which is not read) and inode of a line that listens on `port`.
fn listener(line: &str, port: u16) -> Option<(Option<IpAddr>, String)> {
    let mut fields = line.split_whitespace().skip(1);
    let (address, hex) = fields.next()?.rsplit_once(':')?;
    let state = fields.nth(1)?;
    if state != LISTENING || u16::from_str_radix(hex, 16).ok()? != port {
        return None;
    }
    let inode = fields.nth(5)?.to_owned();
    let ip = (address.len() == 8).then(|| u32::from_str_radix(address, 16).ok());
    // The kernel prints the address as this machine stores it.
    let ip = ip.flatten().map(|raw| IpAddr::from(raw.to_ne_bytes()));
    Some((ip, inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_that_holds_a_port_is_named() {
        let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let said = holder("127.0.0.1", port).unwrap();
        let pid = std::process::id();
        assert!(said.contains(&format!("(pid {pid})")), "{said}");
        let check = one("port", "127.0.0.1", port, "another");
        assert!(check.message.contains(&pid.to_string()), "{check:?}");
    }
}
