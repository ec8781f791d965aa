-- One row a message: the folded state, and columns to search by that are derived from it.
create table message (
    workspace_id   text not null,
    message_id     text not null,
    state          bytea,
    at             timestamptz,
    updated_at     timestamptz,
    outcome        text not null default 'open',
    reason         text,
    service        text,
    origin_kind    text,
    origin_id      text,
    node_id        text,
    contact_id     text,
    phone          text,
    sender_id      text,
    template       text,
    purpose        text,
    wamid          text,
    waiting_cause  text,
    waiting_since  timestamptz,
    waiting_until  timestamptz,
    -- Which transaction changed it last: the live stream's position (live.py).
    changed_by     bigint not null default pg_current_xact_id()::text::bigint,
    primary key (workspace_id, message_id)
) with (fillfactor = 70);
create index message_by_time on message (workspace_id, at desc, message_id desc);
create index message_by_outcome on message (workspace_id, outcome, at desc, message_id desc);
create index message_by_reason on message (workspace_id, reason, at desc) where reason is not null;
create index message_by_origin on message (workspace_id, origin_id, at desc) where origin_id is not null;
create index message_by_contact on message (workspace_id, contact_id, at desc) where contact_id is not null;
create index message_by_phone on message (workspace_id, phone, at desc) where phone is not null;
create index message_by_wamid on message (wamid) where wamid is not null;
create index message_by_change on message (workspace_id, changed_by, message_id);

-- Every event as it came. `body` null: erased with its person.
create table event (
    event_id     uuid not null,
    occurred_at  timestamptz not null,
    workspace_id text,
    message_id   text,
    wamid        text,
    service      text not null,
    kind         text not null,
    note         text,
    body         bytea,
    primary key (event_id, occurred_at)
) partition by range (occurred_at);
create table event_default partition of event default;
create index event_by_message on event (workspace_id, message_id, occurred_at) where message_id is not null;
create index event_by_wamid on event (wamid) where message_id is null and wamid is not null;

-- Raw deliveries as Meta and shops sent them, and what was refused. `parts`: what was found in them.
create table webhook (
    webhook_id  uuid not null,
    received_at timestamptz not null,
    source      text not null,
    app         text,
    refused     text,
    size        int not null,
    body        bytea,
    primary key (webhook_id, received_at)
) partition by range (received_at);
create table webhook_default partition of webhook default;
create index webhook_by_time on webhook (received_at desc, webhook_id desc);

create table webhook_part (
    webhook_id   uuid not null,
    received_at  timestamptz not null,
    position     int not null,
    kind         text not null,
    workspace_id text,
    sender_id    text,
    waba_id      text,
    wamid        text,
    message_id   text,
    primary key (webhook_id, received_at, position)
) partition by range (received_at);
create table webhook_part_default partition of webhook_part default;
create index webhook_part_by_workspace on webhook_part (workspace_id, received_at desc, webhook_id desc);
create index webhook_part_by_message on webhook_part (workspace_id, message_id) where message_id is not null;
create index webhook_part_by_wamid on webhook_part (wamid) where wamid is not null;
create index webhook_part_by_sender on webhook_part (sender_id) where workspace_id is null;

-- What people wrote. `workspace_id` null until the sender is known.
create table inbound (
    event_id     uuid primary key,
    workspace_id text,
    sender_id    text not null,
    phone        text,
    wamid        text not null,
    at           timestamptz not null,
    kind         text not null,
    text         text
);
create index inbound_by_phone on inbound (workspace_id, phone, at desc);
create index inbound_by_sender on inbound (sender_id) where workspace_id is null;
create index inbound_by_time on inbound (at);

-- Whole states, by topic and key, as their owners publish them.
create table known_state (
    topic        text not null,
    key          text not null,
    version      bigint not null,
    workspace_id text,
    phone        text,
    body         bytea not null,
    primary key (topic, key)
);
create index known_state_by_workspace on known_state (workspace_id, topic, key);

-- What of senders the queries need. `free_since`: when it was last told that nothing holds the sender.
create table sender (
    sender_id    text primary key,
    workspace_id text not null,
    waba_id      text not null,
    version      bigint not null,
    is_default   boolean not null,
    free_since   timestamptz
);
create index sender_by_workspace on sender (workspace_id) where is_default;
create index sender_by_waba on sender (waba_id);

-- The last hold of a sender, template, campaign or account. One with `until` in the past is over.
create table hold (
    workspace_id text not null,
    scope        text not null,
    scope_id     text not null,
    event_id     uuid not null,
    told_at      timestamptz not null,
    cause        text not null,
    since        timestamptz not null,
    until        timestamptz,
    primary key (workspace_id, scope, scope_id)
);

create view hold_now as
select h.* from hold h
where (h.until is null or h.until > now())
  and not exists (
      select from sender s
      where (h.scope = 'sender' and s.sender_id = h.scope_id or h.scope = 'account' and s.waba_id = h.scope_id)
        and s.free_since >= h.told_at);

-- A message with what it waits for at this moment. `status` is what people and the API see.
create view message_now as
select m.*, w.cause as wait_cause, w.since as wait_since, w.until as wait_until,
       case when m.outcome = 'accepted' then 'sending'
            when m.outcome <> 'open' then m.outcome
            when w.cause is not null then 'waiting'
            else 'sending' end as status
from message m
left join lateral (
    select cause, since, until from (
        select m.waiting_cause as cause, m.waiting_since as since, m.waiting_until as until
        where m.outcome = 'open' and m.waiting_cause is not null and (m.waiting_until is null or m.waiting_until > now())
        union all
        select h.cause, h.since, h.until
        from hold_now h
        left join sender s on s.workspace_id = m.workspace_id
            and case when m.sender_id is null then s.is_default else s.sender_id = m.sender_id end
        where m.outcome = 'open' and h.workspace_id = m.workspace_id
          and case h.scope
                  when 'sender' then h.scope_id = coalesce(m.sender_id, s.sender_id)
                  when 'account' then h.scope_id in (s.waba_id, m.workspace_id)
                  when 'campaign' then h.scope_id = m.origin_id
                  when 'template' then position('/' || m.template || '/' in '/' || h.scope_id || '/') > 0
              end
    ) waits
    order by since desc limit 1
) w on true
where m.state is not null;

-- Who is logged in to the pages: hashes only. The rights are the token's, looked up at each request.
create table session (
    id_hash      bytea primary key,
    token_digest text not null,
    created_at   timestamptz not null default now(),
    expires_at   timestamptz not null
);
