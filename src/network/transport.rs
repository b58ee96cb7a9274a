//! QUIC and TCP+noise+yamux under name resolution, with windows and limits of our own.

use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, OrTransport};
use libp2p::core::upgrade::Version;
use libp2p::identity::Keypair;
use libp2p::{PeerId, Transport, dns, noise, quic, tcp, yamux};

use super::NetworkError;
use super::address::{Guarded, Policy};
use super::limits;

type Connected = (PeerId, StreamMuxerBox);

/// Builds the transport of a node.
pub(super) fn build(
    keypair: &Keypair,
    policy: &Policy,
    handshake: Duration,
) -> Result<Boxed<Connected>, NetworkError> {
    let guarded = || -> Result<Guarded<Boxed<Connected>>, NetworkError> {
        Ok(Guarded {
            inner: direct(keypair, handshake)?,
            policy: policy.clone(),
        })
    };
    match dns::tokio::Transport::system(guarded()?) {
        Ok(named) => Ok(named.boxed()),
        Err(error) => {
            tracing::warn!("names in addresses will not resolve: {error}");
            let (config, options) = (dns::ResolverConfig::default(), dns::ResolverOpts::default());
            Ok(dns::tokio::Transport::custom(guarded()?, config, options).boxed())
        }
    }
}

fn direct(keypair: &Keypair, handshake: Duration) -> Result<Boxed<Connected>, NetworkError> {
    let mut quic = quic::Config::new(keypair);
    quic.handshake_timeout = handshake.min(limits::OPEN_TIMEOUT);
    quic.max_idle_timeout = u32::try_from(limits::QUIC_IDLE.as_millis()).unwrap_or(u32::MAX);
    quic.keep_alive_interval = limits::QUIC_KEEP_ALIVE;
    quic.max_concurrent_stream_limit = u32::try_from(limits::YAMUX_STREAMS_MAX).unwrap_or(u32::MAX);
    quic.max_stream_data = limits::QUIC_STREAM_WINDOW_BYTES;
    quic.max_connection_data = limits::QUIC_CONNECTION_WINDOW_BYTES;
    let quic = quic::tokio::Transport::new(quic)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));

    let mut yamux = yamux::Config::default();
    yamux.set_max_num_streams(limits::YAMUX_STREAMS_MAX);
    let noise = noise::Config::new(keypair).map_err(|e| NetworkError::Identity(e.to_string()))?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .timeout(handshake)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));

    let either = OrTransport::new(quic, tcp).map(|either, _| either.into_inner());
    Ok(either.boxed())
}
