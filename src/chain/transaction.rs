//! EIP-1559 transactions: signed with the payment key, and read back.
//!
//! Signatures are deterministic, so the same fields give the same bytes and the same hash: a
//! restart between signing and broadcasting cannot make a second transaction.

use alloy::consensus::transaction::SignerRecoverable;
use alloy::consensus::{SignableTransaction, Transaction as _, TxEip1559, TxEnvelope};
use alloy::eips::eip2718::{Decodable2718, Encodable2718};
use alloy::primitives::{Address, Bytes, Signature, TxKind, U256, keccak256};

use super::ChainError;
use crate::keys::PaymentKey;
use crate::types::{EvmAddress, Hash32};

/// The fields of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsigned {
    /// Bound to this chain.
    pub chain_id: u64,
    /// The sender's count.
    pub nonce: u64,
    /// The contract; none makes one.
    pub to: Option<EvmAddress>,
    /// Wei.
    pub value: u128,
    /// Function and arguments.
    pub data: Vec<u8>,
    /// Most gas it may use.
    pub gas_limit: u64,
    /// Most wei per gas.
    pub max_fee: u128,
    /// Most of it that goes to the block's maker.
    pub max_priority_fee: u128,
}

/// A signed transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Its id.
    pub hash: Hash32,
    /// As it is broadcast.
    pub raw: Vec<u8>,
}

/// keccak-256, as contracts compute it.
#[must_use]
pub fn keccak(bytes: &[u8]) -> Hash32 {
    Hash32(keccak256(bytes).0)
}

/// Signs a transaction.
#[must_use]
pub fn sign(tx: &Unsigned, key: &PaymentKey) -> Signed {
    let typed = TxEip1559 {
        chain_id: tx.chain_id,
        nonce: tx.nonce,
        gas_limit: tx.gas_limit,
        max_fee_per_gas: tx.max_fee,
        max_priority_fee_per_gas: tx.max_priority_fee,
        to: tx
            .to
            .map_or(TxKind::Create, |to| TxKind::Call(Address::from(to.0))),
        value: U256::from(tx.value),
        access_list: alloy::eips::eip2930::AccessList::default(),
        input: Bytes::from(tx.data.clone()),
    };
    let digest = Hash32(typed.signature_hash().0);
    let bytes = key.sign_hash(&digest);
    let (scalars, v) = bytes.split_at(64);
    let signature = Signature::from_bytes_and_parity(scalars, v == [28]);
    let envelope = TxEnvelope::from(typed.into_signed(signature));
    Signed {
        hash: Hash32(envelope.tx_hash().0),
        raw: envelope.encoded_2718(),
    }
}

/// Reads a signed transaction and who signed it.
///
/// # Errors
/// When it is no EIP-1559 transaction or its signature fits no key.
pub fn decode(raw: &[u8]) -> Result<(EvmAddress, Hash32, Unsigned), ChainError> {
    let bad = |what: &str| ChainError::Malformed(format!("a transaction: {what}"));
    let envelope = TxEnvelope::decode_2718_exact(raw).map_err(|e| bad(&e.to_string()))?;
    let signer = envelope.recover_signer().map_err(|e| bad(&e.to_string()))?;
    let TxEnvelope::Eip1559(signed) = &envelope else {
        return Err(bad("not of type 2"));
    };
    let tx = signed.tx();
    let unsigned = Unsigned {
        chain_id: tx.chain_id,
        nonce: tx.nonce,
        to: tx.to().map(|to| EvmAddress(to.into_array())),
        value: u128::try_from(tx.value).map_err(|_| bad("too much value"))?,
        data: tx.input.to_vec(),
        gas_limit: tx.gas_limit,
        max_fee: tx.max_fee_per_gas,
        max_priority_fee: tx.max_priority_fee_per_gas,
    };
    Ok((
        EvmAddress(signer.into_array()),
        Hash32(envelope.tx_hash().0),
        unsigned,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signed_transaction_reads_back_with_its_signer() {
        let key = PaymentKey::from_bytes(&[7; 32]).unwrap();
        for to in [None, Some(EvmAddress([9; 20]))] {
            let tx = Unsigned {
                chain_id: 31_337,
                nonce: 5,
                to,
                value: 3,
                data: vec![1, 2, 3],
                gas_limit: 100_000,
                max_fee: 2_000_000_000,
                max_priority_fee: 1_000_000,
            };
            let signed = sign(&tx, &key);
            assert_eq!(signed, sign(&tx, &key), "deterministic");
            assert_eq!(
                decode(&signed.raw).unwrap(),
                (key.address(), signed.hash, tx)
            );
            assert_eq!(keccak(&signed.raw), signed.hash);
        }
        assert!(decode(b"nonsense").is_err());
    }
}
