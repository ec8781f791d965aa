-- A workspace's own STOP and START words and buttons. A change is a new row, so the table tells who changed what, when;
-- the highest version holds.
create table keywords (
    workspace_id  text not null,
    version       bigint not null,
    stop          text[] not null,
    start         text[] not null,
    stop_buttons  text[] not null,
    start_buttons text[] not null,
    ignore        text[] not null,
    changed_by    text not null,
    changed_at    timestamptz not null,
    primary key (workspace_id, version)
);
