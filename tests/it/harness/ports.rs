//! Ports that the system gives to nobody by itself.
//!
//! A node that is killed and started again on its port finds it free only if no other socket of the
//! machine was given it meanwhile: port 0 hands out 32768 to 60999, so these are below.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};

const FIRST: u16 = 10_000;
const COUNT: u16 = 22_000;

/// Test programs that run beside each other begin at different places.
static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));

/// A port that is free for both protocols and was not given out by this process lately.
pub fn take() -> u16 {
    loop {
        let port = FIRST + NEXT.fetch_add(1, Ordering::Relaxed) % COUNT;
        let at = (Ipv4Addr::LOCALHOST, port);
        if UdpSocket::bind(at).is_ok() && TcpListener::bind(at).is_ok() {
            return port;
        }
    }
}

/// The arguments of a node with a port of its own wherever they leave it to the system.
pub fn filled(args: &[String]) -> Vec<String> {
    let mut flag = "";
    let mut filled = Vec::with_capacity(args.len());
    for arg in args {
        filled.push(match (flag, arg.as_str()) {
            ("--port" | "--http-port", "0") => take().to_string(),
            ("--listen", address) => address.replace("/udp/0/", &format!("/udp/{}/", take())),
            _ => arg.clone(),
        });
        flag = arg;
    }
    filled
}
