-- The proof of each erasure: who asked, what was ordered, and what each service reported. Nothing personal is in it;
-- `tag` is that of the contact id.
create table erasure (
    workspace_id text not null,
    erasure_id   uuid not null,
    tag          bytea not null,
    cause        text not null,
    asked_by     text not null,
    asked_at     timestamptz not null,
    number       bigint generated always as identity,
    primary key (workspace_id, erasure_id)
);
create unique index erasure_by_number on erasure (workspace_id, number);

-- Which identities an erasure covered, by their tags.
create table erasure_of (
    workspace_id text not null,
    tag          bytea not null,
    erasure_id   uuid not null,
    primary key (workspace_id, tag, erasure_id)
);

-- `body`: the order itself, to give it again; nothing personal is in it.
create table erasure_order (
    order_id     uuid primary key,
    workspace_id text not null,
    erasure_id   uuid not null,
    messages     int not null,
    body         bytea,
    ordered_at   timestamptz not null
);
create index on erasure_order (workspace_id, erasure_id);
create index on erasure_order (ordered_at);

create table erasure_report (
    order_id    uuid not null,
    service     text not null,
    tables      bytea not null,
    reported_at timestamptz not null,
    primary key (order_id, service)
);

-- What shops asked for by their mandatory webhooks. The contact's id goes when the contact is erased.
create table privacy_request (
    request_id   uuid primary key,
    workspace_id text not null,
    kind         text not null check (kind in ('data_request', 'redact', 'shop_redact')),
    contact_id   text,
    erasure_id   uuid,
    shop         text,
    asked_at     timestamptz not null,
    number       bigint generated always as identity
);
create index on privacy_request (workspace_id, number);
create index on privacy_request (workspace_id, contact_id) where contact_id is not null;
