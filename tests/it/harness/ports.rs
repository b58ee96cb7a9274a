//! Ports that the system gives to nobody by itself.
//!
//! A node that is killed and started again on its port finds it free only if no other socket of the
//! machine was given it meanwhile: port 0 hands out 32768 to 60999, so these are below. Test programs
//! that run beside each other take them from different blocks.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

const FIRST: u16 = 10_000;
/// Ports of a block. The first of them is bound by the program whose block it is, as long as it runs.
const BLOCK: u16 = 500;
const BLOCKS: u16 = 44;

/// Blocks of this program, and where in the newest it is.
static TAKEN: Mutex<Taken> = Mutex::new(Taken {
    blocks: vec![],
    at: 0,
    used: BLOCK,
});

struct Taken {
    blocks: Vec<(u16, TcpListener)>,
    at: usize,
    used: u16,
}

impl Taken {
    /// The next port: of this block, of another one that nobody has, or, when all are somebody's, again
    /// of the one whose turn it is.
    fn next(&mut self) -> u16 {
        if self.used + 1 >= BLOCK {
            self.used = 0;
            let start = rand::random::<u16>() % BLOCKS;
            let firsts = (0..BLOCKS).map(|n| FIRST + (start + n) % BLOCKS * BLOCK);
            let bound =
                |first| Some((first, TcpListener::bind((Ipv4Addr::LOCALHOST, first)).ok()?));
            match firsts.into_iter().find_map(bound) {
                Some(block) => {
                    self.blocks.push(block);
                    self.at = self.blocks.len() - 1;
                }
                None => self.at = (self.at + 1) % self.blocks.len().max(1),
            }
        }
        self.used += 1;
        let block = self.blocks.get(self.at).expect("a block of ports is free");
        block.0 + self.used
    }
}

/// A port that is free for both protocols and was not given out by this process lately.
pub fn take() -> u16 {
    loop {
        let port = TAKEN.lock().unwrap_or_else(PoisonError::into_inner).next();
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
