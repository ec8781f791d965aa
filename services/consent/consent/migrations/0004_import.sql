-- One row an import of contacts. `heard_at` is renewed every few seconds by the process that runs it: an older one is
-- of a process that died, and the import failed. `about` is what was found out about the file, as JSON.
create table contact_import (
    import_id      uuid primary key,
    number         bigint generated always as identity,
    workspace_id   text not null,
    state          text not null check (state in ('waiting', 'running', 'done', 'failed')),
    key            text,
    digest         bytea not null,
    by             text not null,
    about          json not null,
    bytes_read     bigint not null default 0,
    read           bigint not null default 0,
    imported       bigint not null default 0,
    unchanged      bigint not null default 0,
    refused_count  bigint not null default 0,
    repeated_count bigint not null default 0,
    fault          text,
    started_at     timestamptz not null,
    heard_at       timestamptz not null default clock_timestamp(),
    finished_at    timestamptz
);
create index on contact_import (workspace_id, number);
create index on contact_import (started_at);
-- One at a time in a workspace, and one under an Idempotency-Key.
create unique index on contact_import (workspace_id) where state = 'running';
create unique index on contact_import (workspace_id, key) where state in ('waiting', 'running');

-- Every refused row of an import, for its result file. `cells` is a JSON list of the original cells, as bytes since a
-- cell may hold what a text can't. They are personal: `tags` (of contact id and phone, as in memory) let an erasure find
-- them, and all go 30 days after the import began.
create table contact_import_refused (
    import_id    uuid not null,
    row          bigint not null,
    workspace_id text not null,
    field        text not null,
    detail       text not null,
    cells        bytea not null,
    tags         bytea[] not null,
    prune_after  timestamptz not null,
    primary key (import_id, row)
);
create index on contact_import_refused using gin (tags);
create index on contact_import_refused (prune_after);
