create table sender (
    sender_id           text primary key,
    workspace_id        text not null,
    waba_id             text not null,
    portfolio_id        text not null,
    app_id              text,
    is_default          boolean not null default false,
    token               bytea not null,
    display_phone_number text,
    quality             text,
    messages_per_second int not null default 80,
    messaging_limit     int,
    paused_at           timestamptz,
    hold                bytea,
    hold_since          timestamptz,
    hold_until          timestamptz,
    hold_strikes        int not null default 0,
    templates_synced_at timestamptz,
    sync_wanted_at      timestamptz,
    fence               bigint not null default 0,
    version             bigint not null default 1,
    updated_at          timestamptz not null default clock_timestamp()
);
create unique index sender_default on sender (workspace_id) where is_default;
create index on sender (waba_id);

-- The row whose lock serializes the count of unique people per moving 24 h.
create table portfolio (portfolio_id text primary key);
create table reached_person (
    portfolio_id text not null,
    phone        text not null,
    reached_at   timestamptz not null,
    primary key (portfolio_id, phone)
);
create index on reached_person (portfolio_id, reached_at);

create table template (
    waba_id          text not null,
    name             text not null,
    language         text not null,
    status           text not null,
    category         text not null,
    parameter_format text not null,
    components       bytea not null,
    quality          text,
    rejected_reason  text,
    said_by          text not null,
    said_at          timestamptz not null,
    synced_at        timestamptz,
    version          bigint not null default 1,
    primary key (waba_id, name, language)
);

create table conversation_window (
    sender_id text not null,
    phone     text not null,
    opened_at timestamptz not null,
    primary key (sender_id, phone)
);

-- How far message.received has been read: a closed window is believed only then.
create table inbound_read (
    partition  int primary key,
    read_until timestamptz not null
);

create table contact (
    workspace_id    text not null,
    contact_id      text not null,
    version         bigint not null,
    marketing_state text not null,
    body            bytea not null,
    primary key (workspace_id, contact_id)
);

create table marketing_cap (
    workspace_id text not null,
    phone        text not null,
    until        timestamptz not null,
    primary key (workspace_id, phone)
);

create table campaign (
    workspace_id text not null,
    campaign_id  text not null,
    per_minute   int,
    per_day      int,
    next_slot_at timestamptz,
    day_start    timestamptz,
    day_count    int not null default 0,
    paused_at    timestamptz,
    cancelled_at timestamptz,
    primary key (workspace_id, campaign_id)
);

-- The queue, and the memory of every message that ever came in: a second send.funded finds its row here.
create table message (
    workspace_id   text not null,
    message_id     text not null,
    sender_id      text,
    lane           smallint not null,
    campaign_id    text,
    contact_id     text,
    phone          text,
    needs_subscription boolean not null,
    not_before     timestamptz not null,
    expires_at     timestamptz not null,
    queued_at      timestamptz not null,
    state          text not null check (state in ('waiting', 'in_flight', 'unknown', 'accepted', 'rejected', 'recalled')),
    waiting_for    text not null default 'turn',
    waiting_since  timestamptz,
    slotted        boolean not null default false,
    attempts       int not null default 0,
    tries          bytea not null default '[]',
    fence          bigint,
    in_flight_at   timestamptz,
    wamid          text,
    outcome        text,
    funded         bytea not null,
    trace          bytea,
    primary key (workspace_id, message_id)
) partition by hash (workspace_id, message_id);
create table message_0 partition of message for values with (modulus 4, remainder 0);
create table message_1 partition of message for values with (modulus 4, remainder 1);
create table message_2 partition of message for values with (modulus 4, remainder 2);
create table message_3 partition of message for values with (modulus 4, remainder 3);
create index message_due on message (sender_id, lane, not_before) where state = 'waiting';
create index message_expiry on message (expires_at) where state = 'waiting';
create index message_open on message (sender_id, in_flight_at) where state in ('in_flight', 'unknown');
create index message_contact on message (workspace_id, contact_id) where state = 'waiting';
create index message_campaign on message (workspace_id, campaign_id) where state = 'waiting';

-- A cancel that came before its request.
create table cancellation (
    workspace_id text not null,
    message_id   text not null,
    cancelled_by text,
    at           timestamptz not null,
    primary key (workspace_id, message_id)
);

-- Replicas that are alive, so that each takes its share of the senders.
create table replica (
    name    text primary key,
    seen_at timestamptz not null
);
