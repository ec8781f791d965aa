-- What an entry's price came from and what led to it, so that "why was I charged?" has an answer for good. Entries from
-- before this have null here: the ledger is append-only.
alter table ledger
    add column country            text,
    add column cause_kind         text,
    add column cause_reason       text,
    add column price_calling_code text,
    add column price_valid_from   timestamptz;

-- `meta_…`: what Meta's webhooks said of this message's price, and at which receipt.
alter table charge
    add column country       text,
    add column meta_category text,
    add column meta_type     text,
    add column meta_model    text,
    add column meta_billable boolean,
    add column meta_receipt  int;

-- How many messages of one origin were funded and refused so far, for the evidence of INSUFFICIENT_CREDITS. Written
-- under the account's lock. `origin_id` is '' where the origin has no id.
create table tally (
    workspace_id text not null,
    origin_kind  text not null,
    origin_id    text not null,
    funded       bigint not null,
    refused      bigint not null,
    primary key (workspace_id, origin_kind, origin_id)
) with (fillfactor = 50);
insert into tally (workspace_id, origin_kind, origin_id, funded, refused)
select workspace_id, origin_kind, coalesce(origin_id, ''), count(*), 0
from ledger where kind = 'reserve' and origin_kind is not null
group by 1, 2, 3;

-- A threshold of the last top-up that was reached: each once a top-up. `version` is that of the entry that reached it.
create table alert (
    workspace_id text not null,
    version      bigint not null,
    percent      int not null,
    balance      bigint not null,
    last_top_up  bigint not null,
    at           timestamptz not null,
    primary key (workspace_id, version, percent)
);

-- Where Meta's view of a message's price differs from ours; `stands` is false once it no longer does.
create table pricing_difference (
    position      bigint generated always as identity primary key,
    workspace_id  text not null,
    message_id    text not null,
    kind          text not null,
    stands        boolean not null,
    credits       int not null,
    category      text not null,
    is_charged    boolean not null,
    meta_category text,
    meta_type     text,
    meta_model    text,
    meta_billable boolean,
    at            timestamptz not null,
    unique (workspace_id, message_id, kind)
);
create index on pricing_difference (workspace_id, position) where stands;

-- Sums of the ledger by quarter of an hour (every time zone's midnight is on one), for statements. The reconciliation
-- job adds what is new; `movement` has the entries that it has not added yet as well, so a statement is always exact.
create table turnover (
    workspace_id text not null,
    quarter      timestamptz not null,
    kind         text not null,
    origin_kind  text,
    origin_id    text,
    category     text,
    country      text,
    entries      bigint not null,
    credits      bigint not null,
    amount       bigint not null,
    unique nulls not distinct (workspace_id, quarter, kind, origin_kind, origin_id, category, country)
);

-- From now on this also says how far `turnover` has come; `held` is what the entries so far hold in reservations.
alter table reconciled
    add column held    bigint not null default 0,
    add column entries bigint not null default 0;
delete from reconciled;
insert into reconciled (workspace_id, version, total) select workspace_id, 0, 0 from account;

create view movement as
select workspace_id, quarter, kind, origin_kind, origin_id, category, country, entries, credits, amount
from turnover
union all
select l.workspace_id, date_bin('15 minutes', l.at, timestamptz '2000-01-01 00:00:00+00'), l.kind, l.origin_kind,
       l.origin_id, l.category, l.country, 1, coalesce(l.price, abs(l.amount)), l.amount
from reconciled r join ledger l on l.workspace_id = r.workspace_id and l.version > r.version;
