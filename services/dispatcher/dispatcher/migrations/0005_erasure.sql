-- Messages and people (by keyed tags) that were erased: what comes of them later is known again.
create table erased_message (
    workspace_id text not null,
    message_id   text not null,
    erasure_id   uuid not null,
    noted_at     timestamptz not null default clock_timestamp(),
    primary key (workspace_id, message_id)
);
create index on erased_message (noted_at);

create table erased_person (
    workspace_id text not null,
    tag          bytea not null,
    erased_at    timestamptz not null,
    primary key (workspace_id, tag)
);
create index on erased_person (erased_at);

-- Phone numbers are kept no longer than what they are kept for: windows, limits and caps are over after 24 h.
create index on conversation_window (opened_at);
create index on reached_person (reached_at);
create index on marketing_cap (until);
