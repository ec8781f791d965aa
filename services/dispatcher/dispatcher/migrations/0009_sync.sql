-- A person came by an ad or a button: their conversation is free for 72 h once we answer. Evidence only.
alter table conversation_window add column free_entry_at timestamptz;

-- By which template a message goes ("name/language"): found when Meta moves that template to MARKETING. Only messages
-- that need no subscription yet are looked for, which a campaign's million are not.
alter table message add column template text;
create index message_of_template on message (sender_id, template)
    where state = 'waiting' and not needs_subscription and template is not null;
create table moved_template (
    waba_id  text not null,
    template text not null,
    moved_at timestamptz not null,
    primary key (waba_id, template)
);

-- When an event last told of a template, by our clock: a list that was asked for before knows less.
alter table template add column reported_at timestamptz;

-- Since when reading from Meta fails by this sender's token, and why; when its number was last told by Meta, by a sync
-- or by an event, whose arrival is by our clock.
alter table sender add column sync_failed_since timestamptz;
alter table sender add column sync_failed_at timestamptz;
alter table sender add column sync_error text;
alter table sender add column number_said_at timestamptz;
alter table sender add column number_reported_at timestamptz;

-- The last sync of an account, and the last that changed something.
create table account_sync (
    waba_id    text primary key,
    sender_id  text not null,
    synced_at  timestamptz not null,
    templates  int not null,
    incomplete text,
    changed_at timestamptz,
    changes    bytea not null default '[]',
    more       int not null default 0
);

-- What Meta last told of a sender or its account, by field; what we don't know stands under "unknown".
create table sender_report (
    sender_id text not null,
    field     text not null,
    at        timestamptz not null,
    event     text not null,
    detail    text not null,
    known     boolean not null,
    primary key (sender_id, field)
);

-- Who drives a sender, and what it really sent.
create table driving (
    sender_id        text primary key,
    replica          text not null,
    seen_at          timestamptz not null,
    sent_last_minute int not null
);
