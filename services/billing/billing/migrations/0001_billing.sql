-- A workspace's credits. Every write happens under this row's lock, so the ledger of one workspace has one writer.
create table account (
    workspace_id        text primary key,
    balance             bigint not null default 0 check (balance >= 0),
    reserved            bigint not null default 0 check (reserved >= 0),
    version             bigint not null default 0,
    last_top_up         bigint,
    low_balance_percent int
) with (fillfactor = 50);

-- Append-only and kept. `version` numbers a workspace's entries without gaps and is the account's version after it.
create table ledger (
    entry_id      bigint generated always as identity primary key,
    workspace_id  text not null,
    version       bigint not null,
    kind          text not null check (kind in (
        'reserve', 'capture', 'release', 'refund', 'recapture', 'waive', 'top_up', 'adjustment')),
    amount        bigint not null,
    balance_after bigint not null check (balance_after >= 0),
    cause         text not null,
    actor         text,
    message_id    text,
    category      text,
    calling_code  text,
    price         int,
    assumed       boolean,
    origin_kind   text,
    origin_id     text,
    at            timestamptz not null,
    unique (workspace_id, version),
    check (case
        when kind in ('reserve', 'recapture') then amount = -price
        when kind in ('release', 'refund') then amount = price
        when kind in ('capture', 'waive') then amount = 0
        when kind = 'top_up' then amount > 0
        else amount <> 0 end),
    check ((message_id is null) = (kind in ('top_up', 'adjustment')))
);
create unique index ledger_once_a_message on ledger (workspace_id, message_id, kind) where message_id is not null;
-- The rare kinds, which a person looks for among millions of others.
create index ledger_rare on ledger (workspace_id, kind, version)
    where kind in ('refund', 'recapture', 'waive', 'top_up', 'adjustment');

create function refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'the ledger is append-only: book an adjustment instead';
end $$;
create trigger append_only before update or delete or truncate on ledger execute function refuse_change();

-- A message's money, so that a late or repeated event finds what was booked. Goes when its decision goes.
create table charge (
    workspace_id text not null,
    message_id   text not null,
    price        int not null check (price >= 0),
    category     text not null,
    calling_code text,
    assumed      boolean not null,
    origin_kind  text,
    origin_id    text,
    booked       text[] not null,
    receipt      int not null default 0,
    failed       boolean not null default false,
    prune_after  timestamptz not null,
    primary key (workspace_id, message_id)
) partition by hash (workspace_id, message_id);
create table charge_0 partition of charge for values with (modulus 4, remainder 0) with (fillfactor = 70);
create table charge_1 partition of charge for values with (modulus 4, remainder 1) with (fillfactor = 70);
create table charge_2 partition of charge for values with (modulus 4, remainder 2) with (fillfactor = 70);
create table charge_3 partition of charge for values with (modulus 4, remainder 3) with (fillfactor = 70);
create index on charge (prune_after);

create table price (
    workspace_id text not null,
    category     text not null,
    calling_code text,
    credits      int not null check (credits >= 0),
    valid_from   timestamptz not null,
    unique nulls not distinct (workspace_id, category, calling_code, valid_from)
);

-- How far each account was reconciled with its ledger, so that the next look only adds what is new.
create table reconciled (
    workspace_id text primary key,
    version      bigint not null,
    total        bigint not null
);

-- Copies of what the dispatcher publishes, for a template's category.
create table sender (
    sender_id    text primary key,
    workspace_id text not null,
    waba_id      text not null,
    is_default   boolean not null,
    version      bigint not null
);
create index on sender (workspace_id) where is_default;

create table template (
    waba_id  text not null,
    name     text not null,
    language text not null,
    category text not null,
    version  bigint not null,
    primary key (waba_id, name, language)
);
