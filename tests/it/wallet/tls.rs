//! RPC over TLS: an `https://` node works, and one whose certificate nobody vouches for does not.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::{World, configure, stderr, sum};
use souk::types::MicroUsd;

/// A TLS server in front of a port, and the authority that vouches for it.
struct Tls {
    port: u16,
    authority: String,
    task: JoinHandle<()>,
}

impl Tls {
    async fn start(target: u16) -> Self {
        drop(rustls::crypto::ring::default_provider().install_default());
        let authority_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &authority, &authority_key).unwrap();
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else {
                        return;
                    };
                    let mut node = TcpStream::connect(("127.0.0.1", target)).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut node).await;
                });
            }
        });
        Self {
            port,
            authority: authority.pem(),
            task,
        }
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_https_node_is_used_when_its_certificate_is_good_and_refused_otherwise() {
    let world = World::start().await;
    let home = world.rich(20, false).await;
    let anvil = &world.chain.world.anvil;
    let tls = Tls::start(anvil.port).await;
    let url = format!("https://localhost:{}/?key=a-secret-key", tls.port);
    configure(&home, &world.config("").replace(&anvil.url(), &url));
    let file = home.path().join("authority.pem");
    std::fs::write(&file, &tls.authority).unwrap();
    let args = ["wallet", "balance", "--json"];

    let good = home.run_with(&args, &[("SSL_CERT_FILE", file.to_str().unwrap())]);
    assert!(good.status.success(), "{}", stderr(&good));
    let balance = serde_json::from_slice(&good.stdout).unwrap();
    assert_eq!(sum(&balance, "wallet_micro_usd"), MicroUsd::from_usd(20));

    let unknown = home.run(&args);
    assert_eq!(unknown.status.code(), Some(4), "{}", stderr(&unknown));
    let said = stderr(&unknown);
    assert!(said.to_lowercase().contains("certificate"), "{said}");
    assert!(!said.contains("a-secret-key"), "{said}");
}
