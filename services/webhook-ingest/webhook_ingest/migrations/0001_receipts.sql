-- Our copy of what the dispatcher knows of numbers: whose each is, and which app speaks for it.
create table sender (
    sender_id    text primary key,
    workspace_id text not null,
    waba_id      text not null,
    app_id       text,
    version      bigint not null
);
create index on sender (waba_id);
create index on sender (workspace_id);

-- One row for each message of a known number; a wamid counts only together with the number that it came from, so that
-- one app's webhooks can't touch another's messages. rank: -1 nothing yet, 0 accepted, 1 sent, 2 delivered, 3 read,
-- 4 played. recipient: the contact id, or the phone where there was none.
create table message (
    sender_id    text not null,
    wamid        text not null,
    workspace_id text,
    message_id   text,
    recipient    text,
    rank         smallint not null default -1,
    failed       boolean not null default false,
    accepted_at  timestamptz,
    delivered_at timestamptz,
    deadline     timestamptz,
    overdue_at   timestamptz,
    prune_after  timestamptz not null,
    primary key (sender_id, wamid)
) partition by hash (sender_id, wamid);
create table message_0 partition of message for values with (modulus 4, remainder 0);
create table message_1 partition of message for values with (modulus 4, remainder 1);
create table message_2 partition of message for values with (modulus 4, remainder 2);
create table message_3 partition of message for values with (modulus 4, remainder 3);
create index on message (deadline) where deadline is not null and rank < 2 and not failed and overdue_at is null;
create index on message (sender_id, recipient, accepted_at) where recipient is not null;
create index on message (prune_after);

-- The key table that makes repeats harmless: each status of a message once, with the record that told it first.
-- body: the event as it went out without a message_id, until the message becomes known (joined).
create table seen_status (
    sender_id       text not null,
    wamid           text not null,
    status          text not null,
    kafka_partition int not null,
    kafka_offset    bigint not null,
    body            bytea,
    joined          boolean not null default false,
    primary key (sender_id, wamid, status)
) partition by hash (sender_id, wamid);
create table seen_status_0 partition of seen_status for values with (modulus 4, remainder 0);
create table seen_status_1 partition of seen_status for values with (modulus 4, remainder 1);
create table seen_status_2 partition of seen_status for values with (modulus 4, remainder 2);
create table seen_status_3 partition of seen_status for values with (modulus 4, remainder 3);

-- What was told about numbers that we don't know (yet). body: a webhook with that one element, read again when the
-- number's sender.updated comes.
create table unclaimed (
    event_id        uuid primary key,
    sender_id       text,
    app_id          text not null,
    kafka_partition int not null,
    kafka_offset    bigint not null,
    received_at     timestamptz not null,
    body            bytea not null
);
create index on unclaimed (sender_id);
create index on unclaimed (received_at);
