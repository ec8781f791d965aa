-- Messages of erased people: one that is consented before and comes later is funded without its person.
create table erased_message (
    workspace_id text not null,
    message_id   text not null,
    erasure_id   uuid not null,
    noted_at     timestamptz not null default clock_timestamp(),
    primary key (workspace_id, message_id)
);
create index on erased_message (noted_at);
