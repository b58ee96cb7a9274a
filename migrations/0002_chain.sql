-- What the node does on a chain and learns from it. Append-only and hash-chained as the tables of
-- 0001; the same rules hold. Wei and wei per gas are whole numbers below 2^63 (9.2 coins).

create table tx_intent (
    seq              integer primary key,                                        -- place of the row in the one chain over all tables
    hash             blob    not null,                                           -- chain hash of this row
    at_ms            integer not null check (at_ms >= 0),                        -- when it was decided
    intent           blob    not null unique,                                    -- names it; 16 bytes
    chain_id         integer not null check (chain_id >= 0),                     -- the chain
    sender           blob    not null,                                           -- who sends it; 20 bytes
    nonce            integer not null check (nonce >= 0),                        -- the sender's count; one intent's for ever
    target           blob,                                                       -- the contract; null makes one
    value            integer not null check (value >= 0),                        -- wei
    calldata         blob    not null,                                           -- function and arguments
    calldata_hash    blob    not null,                                           -- keccak-256 of it
    gas_limit        integer not null check (gas_limit >= 0),                    -- most gas it may use
    purpose          text    not null,                                           -- what for
    channel          blob,                                                       -- channel it changes; null when it is none or several
    gain             integer not null check (gain >= 0),                         -- what it gains
    unique (chain_id, sender, nonce)
) strict;

create table tx_sent (
    seq              integer primary key,                                        -- place of the row in the one chain over all tables
    hash             blob    not null,                                           -- chain hash of this row
    at_ms            integer not null check (at_ms >= 0),                        -- when it was signed; before it was broadcast
    intent           blob    not null references tx_intent (intent),             -- the intent; each raise of the fees is another row
    tx_hash          blob    not null unique,                                    -- id of the transaction
    max_fee          integer not null check (max_fee >= 0),                      -- most wei per gas
    max_priority_fee integer not null check (max_priority_fee >= 0),             -- most of it for the block's maker
    raw              blob    not null                                            -- as it is broadcast
) strict;
create index tx_sent_by_intent on tx_sent (intent);

create table tx_outcome (
    seq              integer primary key,                                        -- place of the row in the one chain over all tables
    hash             blob    not null,                                           -- chain hash of this row
    at_ms            integer not null check (at_ms >= 0),                        -- when it was seen
    intent           blob    not null references tx_intent (intent),             -- the intent
    step             text    not null check (step in ('mined', 'reverted', 'reorged', 'confirmed', 'displaced')), -- what happened; nothing follows confirmed and displaced
    tx_hash          blob,                                                       -- transaction it is about; null when displaced, as below
    block_number     integer check (block_number >= 0),                          -- height of its block
    block_hash       blob,                                                       -- its block
    succeeded        integer not null check (succeeded in (0, 1)),               -- 1 = it did what it should
    fee              integer not null check (fee >= 0)                           -- wei paid for gas
) strict;
create index tx_outcome_by_intent on tx_outcome (intent);

create table chain_event (
    seq              integer primary key,                                        -- place of the row in the one chain over all tables
    hash             blob    not null,                                           -- chain hash of this row
    at_ms            integer not null check (at_ms >= 0),                        -- when it was learned
    chain_id         integer not null check (chain_id >= 0),                     -- the chain
    hub              blob    not null,                                           -- the contract; 20 bytes
    stage            text    not null check (stage in ('seen', 'confirmed', 'removed')), -- how far it is believed; only confirmed counts
    kind             text    not null,                                           -- what happened
    channel          blob,                                                       -- channel it is about; null for vaults
    amount           integer not null check (amount >= 0),                       -- sum it is about; saturates for worthless tokens
    block_number     integer not null check (block_number >= 0),                 -- height of its block
    block_hash       blob    not null,                                           -- its block
    tx_hash          blob    not null,                                           -- transaction that caused it
    log_index        integer not null check (log_index >= 0),                    -- place among the block's logs
    topics           blob    not null,                                           -- event signature and indexed fields, 32 bytes each
    data             blob    not null                                            -- the other fields
) strict;
create index chain_event_by_block on chain_event (hub, block_number);
create index chain_event_by_channel on chain_event (channel);

create table chain_cursor (
    seq              integer primary key,                                        -- place of the row in the one chain over all tables
    hash             blob    not null,                                           -- chain hash of this row
    at_ms            integer not null check (at_ms >= 0),                        -- when it was written
    chain_id         integer not null check (chain_id >= 0),                     -- the chain
    hub              blob    not null,                                           -- the contract; 20 bytes
    block_number     integer not null check (block_number >= 0),                 -- a restarted watcher reads on above this block
    block_hash       blob    not null                                            -- that block
) strict;
create index chain_cursor_by_hub on chain_cursor (hub);

create trigger tx_intent_keeps before update on tx_intent begin select raise(abort, 'ledger rows never change'); end;
create trigger tx_intent_stays before delete on tx_intent begin select raise(abort, 'ledger rows never go'); end;
create trigger tx_sent_keeps before update on tx_sent begin select raise(abort, 'ledger rows never change'); end;
create trigger tx_sent_stays before delete on tx_sent begin select raise(abort, 'ledger rows never go'); end;
create trigger tx_outcome_keeps before update on tx_outcome begin select raise(abort, 'ledger rows never change'); end;
create trigger tx_outcome_stays before delete on tx_outcome begin select raise(abort, 'ledger rows never go'); end;
create trigger chain_event_keeps before update on chain_event begin select raise(abort, 'ledger rows never change'); end;
create trigger chain_event_stays before delete on chain_event begin select raise(abort, 'ledger rows never go'); end;
create trigger chain_cursor_keeps before update on chain_cursor begin select raise(abort, 'ledger rows never change'); end;
create trigger chain_cursor_stays before delete on chain_cursor begin select raise(abort, 'ledger rows never go'); end;
