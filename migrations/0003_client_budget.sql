-- Spending limits of one local client. Append-only and hash-chained as the tables of 0001.

create table client_budget (
    seq     integer primary key,                     -- place of the row in the one chain over all tables
    hash    blob    not null,                        -- chain hash of this row
    at_ms   integer not null check (at_ms >= 0),     -- when it was set
    client  text    not null,                        -- the client, as attempt_open names it
    model   text,                                    -- one model; null = all together
    daily   integer check (daily >= 0),              -- most a local day may cost; null = no limit
    monthly integer check (monthly >= 0)             -- most a local month may cost; null = no limit
) strict;

create trigger client_budget_keeps before update on client_budget begin select raise(abort, 'ledger rows never change'); end;
create trigger client_budget_stays before delete on client_budget begin select raise(abort, 'ledger rows never go'); end;
