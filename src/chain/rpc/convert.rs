//! Between alloy's RPC types and ours.

use alloy::consensus::BlockHeader as _;
use alloy::eips::BlockId;
use alloy::primitives::{B256, Bytes, TxKind, U256};
use alloy::rpc::types::{
    Block as RpcBlock, Filter, Log, TransactionInput, TransactionReceipt, TransactionRequest,
};

use crate::chain::hub::convert::{address, ours};
use crate::chain::{Block, BlockRef, Call, LogQuery, NonceAt, RawLog, Receipt};
use crate::types::Hash32;

pub(super) fn block(found: &RpcBlock) -> Block {
    let header = &found.header;
    Block {
        at: BlockRef {
            number: header.number(),
            hash: Hash32(header.hash.0),
        },
        parent: Hash32(header.parent_hash().0),
        timestamp_s: header.timestamp(),
        base_fee: header.base_fee_per_gas().map_or(0, u128::from),
    }
}

pub(super) fn filter(query: LogQuery) -> Filter {
    let words = |topics: Vec<Hash32>| -> Vec<B256> {
        topics
            .into_iter()
            .map(|topic| B256::from(topic.0))
            .collect()
    };
    let [kind, first, second, third] = query.topics.map(words);
    Filter::new()
        .address(address(query.address))
        .from_block(query.from)
        .to_block(query.to)
        .event_signature(kind)
        .topic1(first)
        .topic2(second)
        .topic3(third)
}

/// None when the log is in no block.
pub(super) fn raw_log(log: &Log) -> Option<RawLog> {
    Some(RawLog {
        block: BlockRef {
            number: log.block_number?,
            hash: Hash32(log.block_hash?.0),
        },
        tx: Hash32(log.transaction_hash?.0),
        index: log.log_index?,
        topics: log.topics().iter().map(|topic| Hash32(topic.0)).collect(),
        data: log.data().data.to_vec(),
    })
}

pub(super) fn request(call: &Call) -> TransactionRequest {
    TransactionRequest {
        from: Some(address(call.from)),
        to: Some(
            call.to
                .map_or(TxKind::Create, |to| TxKind::Call(address(to))),
        ),
        value: Some(U256::from(call.value)),
        input: TransactionInput::new(Bytes::from(call.data.clone())),
        ..TransactionRequest::default()
    }
}

pub(super) const fn number_at(at: NonceAt) -> BlockId {
    match at {
        NonceAt::Latest => BlockId::latest(),
        NonceAt::Number(number) => BlockId::number(number),
        NonceAt::Pending => BlockId::pending(),
    }
}

/// None while it is in no block.
pub(super) fn receipt(found: &TransactionReceipt) -> Option<Receipt> {
    Some(Receipt {
        block: BlockRef {
            number: found.block_number?,
            hash: Hash32(found.block_hash?.0),
        },
        succeeded: found.status(),
        gas_used: found.gas_used,
        gas_price: found.effective_gas_price,
        created: found.contract_address.map(ours),
    })
}
