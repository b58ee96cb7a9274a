-- What can be learned again from the network. Never the truth about money; a file that does not
-- open is deleted and made anew.

create table peer (
    peer           text    primary key,                                        -- peer id
    addrs          text    not null,                                           -- JSON array of multiaddresses
    last_ok_ms     integer not null check (last_ok_ms >= 0),                   -- last success; 0 = never
    last_fail_ms   integer not null check (last_fail_ms >= 0)                  -- last failure; 0 = never
) strict, without rowid;

create table offer (
    offer_hash     blob    primary key check (length(offer_hash) = 32),        -- sha256 of the signed offer
    not_after      integer not null check (not_after >= 0),                    -- last moment it may be used
    bytes          blob    not null                                            -- the signed offer
) strict, without rowid;

create table terms (
    terms_hash     blob    primary key check (length(terms_hash) = 32),        -- sha256 of the terms
    at_ms          integer not null check (at_ms >= 0),                        -- when they were learned
    bytes          blob    not null                                            -- the terms
) strict, without rowid;

create table score (
    peer           text    primary key,                                        -- seller
    at_ms          integer not null check (at_ms >= 0),                        -- when it was written
    bytes          blob    not null                                            -- what the router knows of it
) strict, without rowid;

create table kv (
    key            text    primary key,                                        -- owner's name for the value
    value          text    not null                                            -- anything small
) strict, without rowid;
