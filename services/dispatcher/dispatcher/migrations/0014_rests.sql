-- The rest that a number keeps as Meta refused for the sum of calls: what messages that expire in it waited for.
alter table driving add column rest bytea;

-- When Meta last said of an account that it may send again, by Meta's time: an older restriction that comes later, as
-- webhooks keep no order, holds nobody.
create table account_lift (
    waba_id   text primary key,
    lifted_at timestamptz not null
);

-- When a number was last read from Meta (null: it is to be read now), and how many share its account: so many calls
-- come out of the account's hourly ones.
alter table sender add column number_synced_at timestamptz;
alter table sender add column account_numbers int not null default 1;
update sender set number_synced_at = templates_synced_at,
    account_numbers = (select count(*) from sender other where other.waba_id = sender.waba_id);

-- Which of an account's numbers reads its templates, for one workspace: none other until then; and how often in a row
-- that failed.
create table sync_turn (
    workspace_id text not null,
    waba_id      text not null,
    until        timestamptz not null,
    failures     int not null default 0,
    primary key (workspace_id, waba_id)
);

-- Cancels have an end, as messages have.
create index cancellation_at on cancellation (at);
