-- Each reading of a status once: a better parser, or another device's word, is another one. reading: a digest of what was
-- understood ('' for what was told before this migration); observed_at: as its event has it; reason: its code.
alter table seen_status add column reading bytea not null default '';
alter table seen_status add column observed_at timestamptz not null default now();
alter table seen_status add column reason text;
alter table seen_status drop constraint seen_status_pkey;
alter table seen_status add primary key (sender_id, wamid, status, reading);
-- Statuses of messages that nobody knows (yet).
create index seen_status_unmatched on seen_status (sender_id, observed_at) where body is not null and not joined;

-- silence: by which reason a message ended for want of a receipt.
alter table message add column silence text;
create index message_accepted on message (sender_id, accepted_at) where accepted_at is not null;
create index message_unanswered on message (sender_id, accepted_at)
    where accepted_at is not null and rank = 0 and not failed and overdue_at is null;
-- Of the awaited ones the oldest is asked for as well as the next deadline.
drop index message_deadline_idx;
create index message_awaited on message (deadline) include (accepted_at)
    where deadline is not null and rank < 2 and not failed and overdue_at is null;

-- What was told beside statuses, by the id of its event: each once, with the record that told it first.
create table seen_report (
    event_id        uuid primary key,
    kafka_partition int not null,
    kafka_offset    bigint not null,
    seen_at         timestamptz not null
);
create index on seen_report (seen_at);
create index unclaimed_by_time on unclaimed (received_at, event_id);

-- When a number was last heard of, and how late Meta's statuses were then. app_id: the last one that spoke for it
-- without being its own.
create table sender_pulse (
    sender_id     text primary key,
    heard_at      timestamptz,
    late_seconds  double precision,
    foreign_at    timestamptz
);

-- The numbers that are silent now, as the timer has judged them.
create table silent_sender (
    sender_id    text primary key,
    cause        text not null,
    since        timestamptz not null,
    evidence     jsonb not null,
    judged_at    timestamptz not null
);
