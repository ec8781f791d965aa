-- Many requests judged at once: a file that somebody wants to send (kind file), or failed messages that somebody wants to
-- send again (kind again). All of it goes a day after the last run. `run` fences: only its last taker may write; a run
-- whose `beat_at` is old is over, whatever `state` says.
create table audience (
    audience_id  uuid primary key,
    workspace_id text not null,
    kind         text not null check (kind in ('file', 'again')),
    name         text not null,
    by_name      text not null,
    created_at   timestamptz not null default clock_timestamp(),
    expires_at   timestamptz not null,
    state        text not null,
    run          int not null default 0,
    beat_at      timestamptz,
    lines        int not null,
    matched      int not null,
    judged_at    timestamptz,
    facts        jsonb not null default '{}',
    told         text
);
create index audience_by_workspace on audience (workspace_id, kind, created_at desc);
create index audience_by_expiry on audience (expires_at);

-- `outcome` null: not judged yet. `body`: the line as it came; a message that is sent again has its own in `event`.
create table audience_line (
    audience_id uuid not null references audience on delete cascade,
    number      int not null,
    message_id  text,
    body        bytea,
    outcome     text,
    why         text,
    cause       text,
    service     text,
    detail      text,
    field       text,
    until       timestamptz,
    credits     int not null default 0,
    sent_as     text,
    primary key (audience_id, number)
);

-- What was sent again from here: known at once, before the request comes back by Kafka.
create table resend (
    workspace_id text not null,
    message_id   text not null,
    resend_of    text not null,
    by_name      text not null,
    at           timestamptz not null default clock_timestamp(),
    primary key (workspace_id, message_id)
);
create index resend_by_original on resend (workspace_id, resend_of);
create index resend_by_time on resend (at);

-- Which message a request said that it repeats. Filled as events come.
alter table message add column resend_of text;
create index message_by_original on message (workspace_id, resend_of) where resend_of is not null;

create view repeat as
select workspace_id, message_id, resend_of from message where resend_of is not null
union
select workspace_id, message_id, resend_of from resend;
