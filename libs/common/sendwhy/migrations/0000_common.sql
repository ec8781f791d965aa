-- The tables that every service has. None is partitioned by time: a key that is unique only within a day would let a
-- message pass twice over midnight.

-- What a stage decided on a message; a repeated input re-emits exactly this.
create table decision (
    workspace_id text not null,
    message_id   text not null,
    step         text not null,
    event_id     uuid not null,
    topic        text not null,
    key          bytea,
    body         bytea,
    headers      bytea not null,
    prune_after  timestamptz not null,
    decided_at   timestamptz not null default clock_timestamp(),
    primary key (workspace_id, message_id, step)
) partition by hash (workspace_id, message_id);
create table decision_0 partition of decision for values with (modulus 4, remainder 0);
create table decision_1 partition of decision for values with (modulus 4, remainder 1);
create table decision_2 partition of decision for values with (modulus 4, remainder 2);
create table decision_3 partition of decision for values with (modulus 4, remainder 3);
create index on decision (prune_after);

-- How far each consumer group has come, written in the transaction that did the work.
create table reached (
    consumer_group text not null,
    topic          text not null,
    partition      int not null,
    next_offset    bigint not null,
    primary key (consumer_group, topic, partition)
);

-- Events that no Kafka record stands behind (HTTP writes, timers, Meta's answers). A row is here until Kafka has it.
create table outbox (
    event_id     uuid primary key,
    topic        text not null,
    key          bytea,
    body         bytea,
    headers      bytea not null,
    created_at   timestamptz not null default clock_timestamp()
);
create index on outbox (created_at);

-- Answers to writes over HTTP, by Idempotency-Key.
create table idempotency_key (
    workspace_id text not null,
    key          text not null,
    digest       bytea not null,
    status       int,
    answer       bytea,
    created_at   timestamptz not null default clock_timestamp(),
    primary key (workspace_id, key)
);
create index on idempotency_key (created_at);
