//! Checks the signatures that the ledger keeps, for `node ledger verify` and `node ledger show`.
//!
//! The ledger knows rows, the protocol knows signatures; this is where both meet.

use bytes::Bytes;

use super::onchain::{MODE_ON_CHAIN, paper};
use crate::chain::transaction::{self, keccak};
use crate::keys;
use crate::ledger::audit::SignatureCheck;
use crate::ledger::{
    ChannelRow, FinalRow, IntentRow, OfferRow, OpenRow, Role, SentRow, VoucherRow,
};
use crate::protocol::offer::SignedOffer;
use crate::protocol::session::Open;
use crate::protocol::voucher::{HubChannel, VoucherDomain};
use crate::protocol::{
    ChannelDescriptor, EvmSignature, IdentitySignature, SignedHead, SignedReceipt, Voucher,
};
use crate::types::{MicroUsd, PeerId};

/// Checks rows of the node `me`.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Whose ledger it is.
    pub me: PeerId,
    /// Its network, for offers.
    pub network: String,
}

impl SignatureCheck for Evidence {
    fn channel(&self, row: &ChannelRow) -> Result<(), String> {
        let named = named(row)?;
        if named.domain.channel_id(&named.descriptor) != row.channel {
            return Err("the channel's id is not its descriptor's".into());
        }
        let (buyer, seller) = match row.role {
            Role::Buy => (self.me, row.peer),
            Role::Sell => (row.peer, self.me),
        };
        let open = Open {
            descriptor: Vec::new(),
            epoch: row.epoch,
            signature: IdentitySignature(row.open_signature),
            opening: None,
        };
        open.verify(row.channel, &buyer).map_err(text)?;
        match named.on_hub {
            Some(channel) => paper::check_opening(&channel, &buyer, &seller, row.epoch),
            None => Ok(()),
        }
    }

    fn voucher(&self, channel: &ChannelRow, voucher: &VoucherRow) -> Result<(), String> {
        let named = named(channel)?;
        Voucher {
            channel: voucher.channel,
            cumulative: voucher.cumulative,
        }
        .verify(
            named.domain,
            &EvmSignature(voucher.signature),
            &named.descriptor.voucher_signer,
        )
        .map_err(text)
    }

    fn intent(&self, row: &IntentRow) -> Result<(), String> {
        if keccak(&row.calldata) != row.calldata_hash {
            return Err("the calldata's hash is another".into());
        }
        Ok(())
    }

    fn transaction(&self, intent: &IntentRow, sent: &SentRow) -> Result<(), String> {
        let (signer, hash, tx) =
            transaction::decode(&sent.raw).map_err(|error| error.to_string())?;
        let does_what_was_intended = tx.chain_id == intent.chain_id
            && tx.nonce == intent.nonce
            && tx.to == intent.target
            && tx.value == u128::from(intent.value)
            && tx.data == intent.calldata
            && tx.gas_limit == intent.gas_limit;
        if !does_what_was_intended || hash != sent.tx {
            return Err("the signed transaction is not the intended one".into());
        }
        if signer != intent.sender {
            return Err("the transaction is signed by another key".into());
        }
        Ok(())
    }

    fn head(&self, open: &OpenRow) -> Result<(), String> {
        let signed = SignedHead::decode(&Bytes::from(open.signed_head.clone())).map_err(text)?;
        signed.verify().map_err(text)?;
        let head = &signed.head;
        let (buyer, seller) = match open.role {
            Role::Buy => (self.me, open.peer),
            Role::Sell => (open.peer, self.me),
        };
        let same = signed.attempt_id() == open.attempt_id
            && head.request_id == open.request_id
            && head.buyer == buyer
            && head.seller == seller
            && head.channel == open.channel
            && head.max_cost == open.max_cost
            && head.offer_hash == open.offer_hash;
        if same {
            Ok(())
        } else {
            Err("the signed head says something else than the row".into())
        }
    }

    fn receipt(&self, open: &OpenRow, booked: &FinalRow, bytes: &[u8]) -> Result<(), String> {
        let seller = match open.role {
            Role::Buy => open.peer,
            Role::Sell => self.me,
        };
        let bytes = Bytes::copy_from_slice(bytes);
        let signed = SignedReceipt::decode_and_verify(&bytes, &seller).map_err(text)?;
        let receipt = &signed.receipt;
        if receipt.attempt_id != open.attempt_id || receipt.request_id != open.request_id {
            return Err("the receipt is another attempt's".into());
        }
        if booked.billed > receipt.cost.max(MicroUsd::ZERO) {
            return Err(format!(
                "{} USD booked, receipt says {}",
                booked.billed, receipt.cost
            ));
        }
        Ok(())
    }

    fn offer(&self, row: &OfferRow) -> Result<(), String> {
        // Checked at the time it was made: an offer is allowed to be old here.
        let made_ms = row.not_after.saturating_sub(1);
        let signed = SignedOffer::decode_and_verify(&row.bytes, &self.network, made_ms)
            .map_err(|e| e.to_string())?;
        if signed.hash == row.hash {
            Ok(())
        } else {
            Err("the offer's hash differs".into())
        }
    }

    fn checkpoint(&self, message: &[u8], signature: &[u8; 64]) -> Result<(), String> {
        keys::verify(&self.me, message, signature).map_err(|e| e.to_string())
    }
}

/// What a channel's row names, by its mode.
struct Named {
    domain: VoucherDomain,
    descriptor: ChannelDescriptor,
    on_hub: Option<HubChannel>,
}

fn named(row: &ChannelRow) -> Result<Named, String> {
    if row.mode == MODE_ON_CHAIN {
        let channel = HubChannel::from_bytes(&row.descriptor).map_err(text)?;
        return Ok(Named {
            domain: VoucherDomain::Hub(channel.domain),
            descriptor: channel.descriptor.clone(),
            on_hub: Some(channel),
        });
    }
    Ok(Named {
        domain: VoucherDomain::Credit,
        descriptor: ChannelDescriptor::from_bytes(&row.descriptor).map_err(text)?,
        on_hub: None,
    })
}

fn text(error: crate::protocol::DecodeError) -> String {
    error.to_string()
}
