//! Golden vectors and properties of delegation texts and sign-ins.
//!
//! Texts, signatures and hashes were made by other programs (eth-account 0.14 and Python's
//! cryptography 50) from the seeds 01…01 (node), 02…02 (EVM wallet) and 03…03 (Solana wallet).

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

use super::*;
use crate::keys::{Identity, PaymentKey, personal_hash, to_checksum};

const NOW: UnixMs = 1_767_323_045_000; // 2026-01-02T03:04:05Z
const DAY_MS: u64 = 86_400_000;
const NODE_ID: &str = "12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5";
const EVM_TEXT: &str = "127.0.0.1:5005 wants you to sign in with your Ethereum account:
0x5050A4F4b3f9338C3472dcC01A87C76A144b3c9c

I let this Souk node act for my account, in the role and up to the daily cap named below.

URI: http://127.0.0.1:5005/
Version: 1
Chain ID: 8453
Nonce: 0123456789abcdef
Issued At: 2026-01-02T03:04:05Z
Expiration Time: 2026-01-31T03:04:05Z
Resources:
- urn:souk:deleg/v1:node:12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5
- urn:souk:deleg/v1:role:buy
- urn:souk:deleg/v1:daily-cap:5000000";
const EVM_SIGNATURE: &str = "7aa8ad190d0df3da1cb75a5fd1bf1c3c91c03daa631a0ad4b71e06874de4fa5846a44260864e1b46243903da10110fd3b23508087a6949bfc478cccee895a57b1c";
const EVM_HASH: &str = "6b779b77bdb052b0898b2f4cb79f3c1a6e432c98884f5876ea3692a969aa5ac5";
const SOLANA_TEXT: &str = "127.0.0.1:5005 wants you to sign in with your Solana account:
GyGKxMyg1p9SsHfm15MkNUu1u9TN2JtTspcdmrtGUdse

I let this Souk node act for my account, in the role and up to the daily cap named below.

URI: http://127.0.0.1:5005/
Version: 1
Chain ID: 5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp
Nonce: 0123456789abcdef
Issued At: 2026-01-02T03:04:05Z
Expiration Time: 2026-01-31T03:04:05Z
Resources:
- urn:souk:deleg/v1:node:12D3KooWK99VoVxNE7XzyBwXEzW7xhK7Gpv85r9F3V3fyKSUKPH5
- urn:souk:deleg/v1:role:buy
- urn:souk:deleg/v1:daily-cap:5000000";
const SOLANA_SIGNATURE: &str = "4c6349fecacbccdbbe7001e23141e517c31df9710524ac0e1f3a25fe2225da5337ea71367351264ed9ffd8c36a9fd2d871b02ebcea771aa816b5842348f52101";
const SOLANA_HASH: &str = "db3b7260c1c55a14b2d497f86754f75ba02b4818465b2fc8768d882e06aa21e5";
const SIGN_IN_EVM_SIGNATURE: &str = "0xee3f476ad48e775a68e1a1af0d2f7dc93b20c334a21b6d08d35a6338d3cc4e3f547e0ec0b82022b7ac79b8cbd84408ba125323a9950880d299b260658696ef201c";
const SIGN_IN_SOLANA_SIGNATURE: &str =
    "4wLFhdbDWD1PV4ghEtLuPFRNC56WQKyYxK6PzWV3SBKPtKo7jALyLcpsqoCDepPrKAtHXgEmywqR9LsdTUiSUoLR";
const HOST: &str = "127.0.0.1:5005";

fn node() -> PeerId {
    NODE_ID.parse().unwrap()
}
fn evm_wallet() -> PaymentKey {
    PaymentKey::from_bytes(&[2; 32]).unwrap()
}
fn solana_wallet() -> Identity {
    Identity::from_seed(&[3; 32])
}
fn vectors() -> [(&'static str, Vec<u8>, &'static str); 2] {
    [
        (EVM_TEXT, hex::decode(EVM_SIGNATURE).unwrap(), EVM_HASH),
        (
            SOLANA_TEXT,
            hex::decode(SOLANA_SIGNATURE).unwrap(),
            SOLANA_HASH,
        ),
    ]
}
/// Signs with the wallet the text names, so that only the text decides.
fn sign(text: &str) -> Vec<u8> {
    if text.contains("Ethereum account") {
        evm_wallet()
            .sign_hash(&personal_hash(text.as_bytes()))
            .to_vec()
    } else {
        solana_wallet().sign(text.as_bytes()).to_vec()
    }
}
fn check(text: &str) -> Result<VerifiedDelegation, DelegationError> {
    verify(text, &sign(text), NOW, &node())
}

#[test]
fn both_golden_delegations_verify_and_say_what_they_delegate() {
    assert_eq!(Identity::from_seed(&[1; 32]).peer_id(), node());
    let accounts = [
        "eip155:8453:0x5050A4F4b3f9338C3472dcC01A87C76A144b3c9c",
        "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp:GyGKxMyg1p9SsHfm15MkNUu1u9TN2JtTspcdmrtGUdse",
    ];
    for ((text, signature, text_hash), account) in vectors().into_iter().zip(accounts) {
        let verified = verify(text, &signature, NOW, &node()).unwrap();
        assert_eq!(verified.account, account);
        assert_eq!(verified.role, DelegatedRole::Buy);
        assert_eq!(verified.daily_cap, MicroUsd::from_usd(5));
        assert_eq!(verified.issued_ms, NOW);
        assert_eq!(verified.expires_ms, NOW + 29 * DAY_MS);
        assert_eq!(verified.hash.to_string(), text_hash);
        assert_eq!(sign(text), signature, "our own wallets sign the same bytes");
    }
}

#[test]
fn a_draft_gives_the_golden_text() {
    let solana = solana_wallet().solana_address();
    let evm = to_checksum(&evm_wallet().address());
    for (namespace, address, chain_id, want) in [
        (Namespace::Eip155, &evm, "8453", EVM_TEXT),
        (
            Namespace::Solana,
            &solana,
            "5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp",
            SOLANA_TEXT,
        ),
    ] {
        let draft = Draft {
            namespace,
            address,
            chain_id,
            domain: HOST,
            uri: "http://127.0.0.1:5005/",
            nonce: "0123456789abcdef",
            node: node(),
            role: DelegatedRole::Buy,
            daily_cap: MicroUsd::from_usd(5),
            issued_ms: NOW + 999,
            expires_ms: NOW + 29 * DAY_MS,
        };
        assert_eq!(Delegation::draft(&draft).unwrap().1, want);
        let long = Draft {
            expires_ms: NOW + 31 * DAY_MS,
            ..draft.clone()
        };
        assert_eq!(
            Delegation::draft(&long).unwrap_err(),
            DelegationError::Lifetime
        );
        let split = Draft {
            uri: "http://a/\nVersion: 1",
            ..draft
        };
        assert!(Delegation::draft(&split).is_err());
    }
}

#[test]
fn another_node_and_times_outside_are_refused() {
    for (text, signature, _) in vectors() {
        let at = |now| verify(text, &signature, now, &node());
        assert_eq!(
            verify(
                text,
                &signature,
                NOW,
                &Identity::from_seed(&[9; 32]).peer_id()
            ),
            Err(DelegationError::OtherNode)
        );
        assert_eq!(at(NOW - SKEW_MS - 1), Err(DelegationError::NotYet));
        assert!(at(NOW - SKEW_MS).is_ok());
        assert!(at(NOW + 29 * DAY_MS - 1).is_ok());
        assert_eq!(at(NOW + 29 * DAY_MS), Err(DelegationError::Expired));
    }
}

#[test]
fn well_signed_texts_that_are_no_canonical_delegation_are_refused() {
    for (text, _, _) in vectors() {
        for (from, to) in [
            ("Version: 1", "Version: 2"),
            ("\nVersion: 1", ""),
            ("Version: 1", "Version: 1\nVersion: 1"),
            ("Version: 1\nChain ID", "Version: 1\r\nChain ID"),
            ("Nonce: 0123456789abcdef", "Nonce: short"),
            ("Nonce: 0123456789abcdef", "Nonce: 0123456789 abcdef"),
            ("2026-01-31T03:04:05Z", "2026-02-02T03:04:05Z"),
            ("2026-01-31T03:04:05Z", "2026-01-02T03:04:05Z"),
            ("2026-01-31T03:04:05Z", "2025-01-02T03:04:05Z"),
            ("2026-01-31T03:04:05Z", "2026-01-31 03:04:05Z"),
            ("2026-01-31T03:04:05Z", "tomorrow"),
            ("\nExpiration Time: 2026-01-31T03:04:05Z", ""),
            ("Resources:", "Request ID: x\nResources:"),
            ("Resources:", "Not Before: 2026-01-02T03:04:05Z\nResources:"),
            ("- urn:souk:deleg/v1:role:buy\n", ""),
            ("role:buy", "role:Buy"),
            ("role:buy", "role:admin"),
            ("daily-cap:5000000", "daily-cap:05000000"),
            ("daily-cap:5000000", "daily-cap:+5000000"),
            ("daily-cap:5000000", "daily-cap:-1"),
            ("daily-cap:5000000", "daily-cap:99999999999999999999"),
            ("daily-cap:5000000", "daily-cap:5000000\n"),
            ("daily-cap:5000000", "daily-cap:5000000\n- urn:x"),
            ("I let this Souk node", "I let that Souk node"),
            ("\n\nI let", "\n\n\nI let"),
            ("http://127.0.0.1:5005/", "127.0.0.1"),
            ("127.0.0.1:5005 wants", "127.0.0.1:5005/ wants"),
            ("127.0.0.1:5005 wants", "\u{430}pple.com wants"),
            ("account:", "account: "),
            ("Chain ID: ", "Chain ID: 0 "),
            ("5050A4F4", "5050a4f4"),
            ("GyGK", "GyG0"),
        ] {
            let changed = text.replacen(from, to, 1);
            if changed != text {
                assert!(check(&changed).is_err(), "{from:?} -> {to:?}");
            }
        }
        let long = text.replace(
            "http://127.0.0.1:5005/",
            &format!("http:{}", "a".repeat(4_096)),
        );
        assert_eq!(check(&long), Err(MessageError::TooLong.into()));
    }
    assert!(verify("", &[], NOW, &node()).is_err());
}

#[test]
fn signatures_of_the_wrong_length_or_of_the_other_kind_are_refused() {
    let [(evm, evm_signature, _), (solana, solana_signature, _)] = vectors();
    for (text, signature) in [
        (evm, &solana_signature[..]),
        (solana, &evm_signature),
        (evm, &evm_signature[..64]),
        (solana, &solana_signature[..63]),
        (evm, &[]),
    ] {
        assert!(verify(text, signature, NOW, &node()).is_err());
    }
    let stranger = PaymentKey::from_bytes(&[7; 32]).unwrap();
    let other = stranger.sign_hash(&personal_hash(evm.as_bytes()));
    assert_eq!(
        verify(evm, &other, NOW, &node()),
        Err(MessageError::OtherSigner.into())
    );
}

#[test]
fn every_single_byte_of_the_text_counts() {
    for (text, signature, _) in vectors() {
        for at in 0..text.len() {
            for byte in [b' ', b'\n', b'0', b'z', text.as_bytes()[at] ^ 1] {
                let mut bytes = text.as_bytes().to_vec();
                if bytes[at] == byte {
                    continue;
                }
                bytes[at] = byte;
                let changed = String::from_utf8(bytes).unwrap();
                assert!(verify(&changed, &signature, NOW, &node()).is_err());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn any_altered_byte_of_text_or_signature_is_refused(
        which in 0usize..2, at in any::<prop::sample::Index>(), byte in any::<u8>(), in_text in any::<bool>(),
    ) {
        let (text, mut signature, _) = vectors()[which].clone();
        let mut bytes = text.as_bytes().to_vec();
        let target = if in_text { &mut bytes } else { &mut signature };
        let i = at.index(target.len());
        prop_assume!(target[i] != byte);
        target[i] = byte;
        if let Ok(changed) = String::from_utf8(bytes) {
            prop_assert!(verify(&changed, &signature, NOW, &node()).is_err());
        }
    }

    #[test]
    fn what_parses_prints_as_it_was(
        host in "[a-z.:]{1,20}", statement in proptest::option::of("[ -~]{1,40}"),
        nonce in "[a-zA-Z0-9]{8,64}", ms in 0u64..4_000_000_000_000,
        resources in proptest::collection::vec("urn:[a-z:/]{1,20}", 0..4), solana in any::<bool>(),
    ) {
        let message = Message {
            namespace: if solana { Namespace::Solana } else { Namespace::Eip155 },
            domain: host.clone(),
            address: if solana { solana_wallet().solana_address() } else { to_checksum(&evm_wallet().address()) },
            statement,
            uri: format!("http://{host}/"),
            version: "1".into(),
            chain_id: "1".into(),
            nonce,
            issued_at: message::format_time(ms).unwrap(),
            expiration_time: None,
            not_before: Some(message::format_time(ms).unwrap()),
            request_id: None,
            resources,
        };
        let text = message.to_text();
        // A statement that looks like the field after it has no text form; it must not parse as
        // another message.
        match Message::parse(&text) {
            Ok(back) => {
                prop_assert_eq!(back.to_text(), text);
                prop_assert_eq!(back, message);
            }
            Err(_) => prop_assert!(message.statement.is_some_and(|s| s.starts_with("URI: "))),
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "(\\PC|\n){0,300}") {
        prop_assert!(Delegation::parse(&text).is_err());
        prop_assert!(SignInProof::from_header(&text).is_err());
    }
}

fn evm_header() -> serde_json::Value {
    serde_json::json!({
        "domain": HOST, "address": to_checksum(&evm_wallet().address()),
        "uri": "http://127.0.0.1:5005/v1/models", "version": "1", "chainId": "eip155:8453",
        "type": "eip191", "signatureScheme": "eip191", "nonce": "abcdefgh12345678",
        "issuedAt": "2026-01-02T03:04:05.000Z", "signature": SIGN_IN_EVM_SIGNATURE,
    })
}
fn solana_header() -> serde_json::Value {
    serde_json::json!({
        "domain": HOST, "address": solana_wallet().solana_address(),
        "statement": "Sign in to my own node",
        "uri": "http://127.0.0.1:5005/v1/models", "version": "1",
        "chainId": "solana:5eykt4UsFv8P8NJdTREpY1vzqKqZKvdp", "type": "ed25519",
        "nonce": "abcdefgh12345678", "issuedAt": "2026-01-02T03:04:05.000Z",
        "expirationTime": "2026-01-02T03:04:35.000Z",
        "resources": ["http://127.0.0.1:5005/v1/models"],
        "signature": SIGN_IN_SOLANA_SIGNATURE,
    })
}
fn sign_in(
    header: &serde_json::Value,
    now_ms: UnixMs,
    nonces: &NonceSet,
) -> Result<SignedIn, SignInError> {
    let proof = SignInProof::from_header(&BASE64_STANDARD.encode(header.to_string()))?;
    let allowed = [
        to_checksum(&evm_wallet().address()).to_lowercase(),
        solana_wallet().solana_address(),
    ];
    verify_sign_in(&proof, HOST, now_ms, &allowed, nonces)
}
fn running() -> NonceSet {
    NonceSet::new(NOW - DAY_MS)
}

#[test]
fn both_golden_sign_ins_are_accepted_once() {
    for header in [evm_header(), solana_header()] {
        let nonces = running();
        let signed_in = sign_in(&header, NOW + 1_000, &nonces).unwrap();
        assert_eq!(signed_in.address, header["address"]);
        assert!(
            signed_in
                .account
                .starts_with(header["chainId"].as_str().unwrap())
        );
        assert_eq!(
            sign_in(&header, NOW + 2_000, &nonces),
            Err(SignInError::Replayed)
        );
    }
}

#[test]
fn a_sign_in_holds_for_its_window_only() {
    let at = |header: &serde_json::Value, now| sign_in(header, now, &running());
    assert!(at(&evm_header(), NOW + sign_in::WINDOW_MS).is_ok());
    for (header, now) in [
        (evm_header(), NOW + sign_in::WINDOW_MS + 1),
        (evm_header(), NOW - 5_001),
        (solana_header(), NOW + 30_000),
    ] {
        assert_eq!(at(&header, now), Err(SignInError::NotNow));
    }
    let restarted = NonceSet::new(NOW + 1);
    assert_eq!(
        sign_in(&evm_header(), NOW + 1_000, &restarted),
        Err(SignInError::NotNow)
    );
}

#[test]
fn another_host_a_stranger_and_changed_fields_are_refused() {
    let proof =
        SignInProof::from_header(&BASE64_STANDARD.encode(evm_header().to_string())).unwrap();
    let allowed = [to_checksum(&evm_wallet().address())];
    let on = |host, allowed: &[String]| verify_sign_in(&proof, host, NOW, allowed, &running());
    assert!(on(HOST, &allowed).is_ok());
    assert_eq!(on("127.0.0.1:5006", &allowed), Err(SignInError::OtherHost));
    assert_eq!(on("", &allowed), Err(SignInError::OtherHost));
    assert_eq!(on(HOST, &[]), Err(SignInError::NotAllowed));
    for (name, value) in [
        ("nonce", "abcdefgh12345679"),
        ("issuedAt", "2026-01-02T03:04:06.000Z"),
        ("uri", "http://127.0.0.1:5005/v1/chat/completions"),
        ("uri", "http://127.0.0.1:5005@evil.example/"),
        ("domain", "evil.example"),
        ("statement", "x\n\nURI: y"),
        ("chainId", "eip155:1"),
        ("chainId", "solana:8453"),
        ("type", "eip1271"),
        ("version", "2"),
        ("signature", "0x00"),
        ("requestId", "1"),
    ] {
        let mut header = evm_header();
        header[name] = value.into();
        let nonces = running();
        assert!(sign_in(&header, NOW, &nonces).is_err(), "{name}");
        assert!(
            sign_in(&evm_header(), NOW, &nonces).is_ok(),
            "a refused sign-in uses no nonce up"
        );
    }
}

#[test]
fn headers_that_are_no_proof_are_refused() {
    let long = "A".repeat(sign_in::HEADER_BYTES_MAX + 1);
    for header in ["", "%%%", "e30=", "bnVsbA", &long] {
        assert!(matches!(
            SignInProof::from_header(header),
            Err(SignInError::Header(_))
        ));
    }
    let unpadded = BASE64_STANDARD.encode(evm_header().to_string());
    assert!(SignInProof::from_header(unpadded.trim_end_matches('=')).is_ok());
}

#[test]
fn a_sign_in_is_no_delegation() {
    let proof =
        SignInProof::from_header(&BASE64_STANDARD.encode(solana_header().to_string())).unwrap();
    assert!(matches!(
        Delegation::parse(&proof.message.to_text()),
        Err(DelegationError::NotADelegation(_))
    ));
}
