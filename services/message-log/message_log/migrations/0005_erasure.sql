-- When a message's person was erased: it holds for events that come later, also where nothing of it has come yet.
alter table message add column erased_at timestamptz;
create index message_unseen on message (erased_at) where state is null;

-- Which events of no message tell of whom, by keyed tags.
create table event_of (
    workspace_id text not null,
    tag          bytea not null,
    event_id     uuid not null,
    occurred_at  timestamptz not null,
    primary key (workspace_id, tag, event_id)
);
create index on event_of (event_id);
create index on event_of (occurred_at);

-- Erased people, by keyed tags: what they wrote before and comes later is not kept.
create table erased_person (
    workspace_id text not null,
    tag          bytea not null,
    erased_at    timestamptz not null,
    primary key (workspace_id, tag)
);
create index on erased_person (erased_at);

-- Records that nobody could read are raw bytes, and go when those go.
create index event_dead_bytes on event (occurred_at) where kind = 'dead_letter' and body is not null;
