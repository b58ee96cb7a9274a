-- The durable truth. Every table is append-only and hash-chained: `seq` counts rows over all
-- tables together, without a gap, and `hash` = sha256(previous row's hash, table name, seq, every
-- other column in declared order). `node ledger verify` recomputes it all. Money is in micro-USD,
-- times are milliseconds since 1970 UTC, peers are libp2p peer id bytes, hashes and channels have 32
-- bytes, requests and attempts 16. Lengths are checked by the program: a function in a check makes
-- SQLite keep a journal per statement, which costs a tenth of a batch.

create table channel (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- when the row was written
    role           text    not null check (role in ('buy', 'sell')),            -- this node's side of the channel
    channel        blob    not null,                                            -- EIP-712 digest of the descriptor
    peer           blob    not null,                                            -- the other side
    mode           text    not null,                                            -- channel, credit or free; never changes
    descriptor     blob    not null,                                            -- what the channel id is the digest of
    epoch          integer not null check (epoch >= 0),                         -- rises after an agreed close
    deposit        integer not null check (deposit >= 0),                       -- most that vouchers may add up to; the newest row counts
    open_signature blob    not null                                             -- buyer's identity over the channel id
) strict;
create index channel_by_id on channel (channel);

create table offer (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- when the row was written
    offer_hash     blob    not null unique,                                     -- sha256 of the signed offer
    model          text    not null,                                            -- model that is offered
    not_after      integer not null check (not_after >= 0),                     -- last moment the offer may be used
    bytes          blob    not null                                             -- the signed offer
) strict;

create table attempt_open (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- admission
    attempt_id     blob    not null unique,                                     -- joins the two ledgers; opens once
    request_id     blob    not null,                                            -- the client's request
    attempt        integer not null check (attempt >= 0),                       -- number of the attempt within the request
    role           text    not null check (role in ('buy', 'sell')),            -- bought or sold
    peer           blob    not null,                                            -- the other side
    client         text    not null,                                            -- label of the local client
    model_asked    text    not null,                                            -- model named by the client
    model          text    not null,                                            -- model of the offer
    offer_hash     blob    not null,                                            -- offer that the signed head names
    price_input       integer not null check (price_input >= 0),                -- micro-USD per million fresh input tokens
    price_cache_read  integer not null check (price_cache_read >= 0),           -- micro-USD per million cached input tokens
    price_cache_write integer not null check (price_cache_write >= 0),          -- micro-USD per million cache write tokens
    price_output      integer not null check (price_output >= 0),               -- micro-USD per million output tokens
    channel        blob    not null,                                            -- channel that pays; zero bytes when free
    max_cost       integer not null check (max_cost >= 0),                      -- most the attempt may cost
    prefill        integer not null check (prefill >= 0),                       -- cost known before the work
    voucher_before integer not null check (voucher_before >= 0),                -- cumulative signed (buyer) or held (seller) at admission
    signed_head    blob    not null                                             -- head signed by the buyer; hashes and counts only
) strict;
create index attempt_open_by_request on attempt_open (request_id);

create table attempt_delivered (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- end of delivery
    open_seq       integer not null unique references attempt_open (seq),       -- the attempt's open row; delivered once
    status         integer not null check (status >= 0),                        -- HTTP status
    usage_input       integer check (usage_input >= 0),                         -- fresh input tokens; null = not reported, as below
    usage_cache_read  integer check (usage_cache_read >= 0),                    -- input tokens read from a cache
    usage_cache_write integer check (usage_cache_write >= 0),                   -- input tokens written to a cache
    usage_output      integer check (usage_output >= 0),                        -- output tokens, reasoning included
    usage_reasoning   integer check (usage_reasoning >= 0),                     -- reasoning part of the output
    own_input      integer check (own_input >= 0),                              -- own count of the input tokens
    own_output     integer check (own_output >= 0),                             -- own count of the output tokens
    cost           integer not null check (cost >= 0),                          -- buyer: own bound; seller: the receipt's cost
    receipt        blob                                                         -- receipt as signed by the seller
) strict;

create table attempt_final (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- when the attempt was booked
    open_seq       integer not null unique references attempt_open (seq),       -- the attempt's open row; charged at most once
    outcome        text    not null check (outcome in ('accepted', 'failed', 'written_off')), -- how it ended
    status         integer not null check (status >= 0),                        -- HTTP status; 499 client gone, 502 cut
    billed         integer not null check (billed >= 0),                        -- accepted cost; the loss when written off
    model_served   text    not null,                                            -- model named in the answer
    usage_input       integer check (usage_input >= 0),                         -- fresh input tokens; null = not reported, as below
    usage_cache_read  integer check (usage_cache_read >= 0),                    -- input tokens read from a cache
    usage_cache_write integer check (usage_cache_write >= 0),                   -- input tokens written to a cache
    usage_output      integer check (usage_output >= 0),                        -- output tokens, reasoning included
    usage_reasoning   integer check (usage_reasoning >= 0),                     -- reasoning part of the output
    own_input      integer check (own_input >= 0),                              -- own count of the input tokens
    own_output     integer check (own_output >= 0),                             -- own count of the output tokens
    ttft_ms        integer check (ttft_ms >= 0),                                -- time to the first token
    total_ms       integer not null check (total_ms >= 0),                      -- admission to the last byte
    disputed       integer not null check (disputed in (0, 1)),                 -- 1 = the bound was paid, not the receipt
    receipt        blob,                                                        -- receipt as signed by the seller
    error          text,                                                        -- short code of a failure; excuses a missing receipt
    check (outcome <> 'failed' or billed = 0)
) strict;

create table voucher (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- signed or received
    role           text    not null check (role in ('buy', 'sell')),            -- buy: we signed it; sell: we hold it
    channel        blob    not null,                                            -- channel it is for
    cumulative     integer not null check (cumulative >= 0),                    -- all that was ever signed on the channel
    step           integer not null check (step >= 0),                          -- cumulative less that of the channel's voucher before
    signature      blob    not null,                                            -- voucher signer's EIP-712 signature
    attempt        blob                                                         -- attempt it was signed for
) strict;
create index voucher_by_channel on voucher (channel);

create table settlement (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- when it was booked
    role           text    not null check (role in ('buy', 'sell')),            -- buy: we paid; sell: we were paid
    channel        blob    not null,                                            -- channel it pays off
    peer           blob    not null,                                            -- the other side
    amount         integer not null check (amount >= 0),                        -- paid outside
    note           text    not null                                             -- the user's own words
) strict;

create table budget (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- when it was set
    model          text,                                                        -- one model; null = all together
    daily          integer check (daily >= 0),                                  -- most a local day may cost; null = no limit
    monthly        integer check (monthly >= 0)                                 -- most a local month may cost; null = no limit
) strict;

create table rollup (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    bucket_ms      integer not null check (bucket_ms >= 0),                     -- start of the quarter hour
    role           text    not null check (role in ('buy', 'sell')),            -- bought or sold
    model          text    not null,                                            -- model of the offer; empty for vouchers without an attempt
    peer           blob    not null,                                            -- the other side
    client         text    not null,                                            -- label of the local client
    accepted       integer not null check (accepted >= 0),                      -- attempts accepted
    failed         integer not null check (failed >= 0),                        -- attempts failed
    written_off    integer not null check (written_off >= 0),                   -- attempts written off
    reported       integer not null check (reported >= 0),                      -- attempts whose usage was reported
    input          integer not null check (input >= 0),                         -- fresh input tokens
    cache_read     integer not null check (cache_read >= 0),                    -- cached input tokens
    cache_write    integer not null check (cache_write >= 0),                   -- cache write tokens
    output         integer not null check (output >= 0),                        -- output tokens
    reasoning      integer not null check (reasoning >= 0),                     -- reasoning tokens
    billed         integer not null check (billed >= 0),                        -- accepted cost
    lost           integer not null check (lost >= 0),                          -- cost written off
    authorised     integer not null check (authorised >= 0),                    -- steps of vouchers
    disputed       integer not null check (disputed >= 0)                       -- attempts paid by the bound
) strict;

create table balance (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    role           text    not null check (role in ('buy', 'sell')),            -- this node's side
    channel        blob    not null,                                            -- the channel
    voucher        integer not null check (voucher >= 0),                       -- highest cumulative so far
    accepted       integer not null check (accepted >= 0),                      -- accepted cost so far
    lost           integer not null check (lost >= 0),                          -- cost written off so far
    settled        integer not null check (settled >= 0)                        -- settlements so far
) strict;
create index balance_by_channel on balance (channel, role);

create table checkpoint (
    seq            integer primary key,                                         -- place of the row in the one chain over all tables
    hash           blob    not null,                                            -- chain hash of this row
    at_ms          integer not null check (at_ms >= 0),                         -- when it was made
    covers         integer not null check (covers >= 0),                        -- last row that the rollup and balance rows before this one count
    unfinished     blob    not null,                                            -- seq of each open row without a final, 8 bytes big endian
    signature      blob                                                         -- node identity over the chain up to here; null without a signer
) strict;

create trigger channel_keeps            before update on channel           begin select raise(abort, 'ledger rows never change'); end;
create trigger channel_stays            before delete on channel           begin select raise(abort, 'ledger rows never go'); end;
create trigger offer_keeps              before update on offer             begin select raise(abort, 'ledger rows never change'); end;
create trigger offer_stays              before delete on offer             begin select raise(abort, 'ledger rows never go'); end;
create trigger attempt_open_keeps       before update on attempt_open      begin select raise(abort, 'ledger rows never change'); end;
create trigger attempt_open_stays       before delete on attempt_open      begin select raise(abort, 'ledger rows never go'); end;
create trigger attempt_delivered_keeps  before update on attempt_delivered begin select raise(abort, 'ledger rows never change'); end;
create trigger attempt_delivered_stays  before delete on attempt_delivered begin select raise(abort, 'ledger rows never go'); end;
create trigger attempt_final_keeps      before update on attempt_final     begin select raise(abort, 'ledger rows never change'); end;
create trigger attempt_final_stays      before delete on attempt_final     begin select raise(abort, 'ledger rows never go'); end;
create trigger voucher_keeps            before update on voucher           begin select raise(abort, 'ledger rows never change'); end;
create trigger voucher_stays            before delete on voucher           begin select raise(abort, 'ledger rows never go'); end;
create trigger settlement_keeps         before update on settlement        begin select raise(abort, 'ledger rows never change'); end;
create trigger settlement_stays         before delete on settlement        begin select raise(abort, 'ledger rows never go'); end;
create trigger budget_keeps             before update on budget            begin select raise(abort, 'ledger rows never change'); end;
create trigger budget_stays             before delete on budget            begin select raise(abort, 'ledger rows never go'); end;
create trigger rollup_keeps             before update on rollup            begin select raise(abort, 'ledger rows never change'); end;
create trigger rollup_stays             before delete on rollup            begin select raise(abort, 'ledger rows never go'); end;
create trigger balance_keeps            before update on balance           begin select raise(abort, 'ledger rows never change'); end;
create trigger balance_stays            before delete on balance           begin select raise(abort, 'ledger rows never go'); end;
create trigger checkpoint_keeps         before update on checkpoint        begin select raise(abort, 'ledger rows never change'); end;
create trigger checkpoint_stays         before delete on checkpoint        begin select raise(abort, 'ledger rows never go'); end;
