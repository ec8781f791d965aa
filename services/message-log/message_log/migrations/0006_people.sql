-- Local accounts, beside the API tokens: who may log in to the pages with a name and a password.
create table account (
    name          text primary key,
    password_hash text not null,
    created_at    timestamptz not null default clock_timestamp(),
    created_by    text not null,
    disabled_at   timestamptz,
    failures      int not null default 0,
    failed_at     timestamptz
);
create table account_role (
    name      text not null references account,
    workspace text not null,
    role      smallint not null check (role between 1 and 3),
    primary key (name, workspace)
);

-- A session is an account's or a token's.
alter table session alter column token_digest drop not null;
alter table session add column account text references account;
alter table session add check (num_nonnulls(token_digest, account) = 1);

-- What people did at the pages: append-only.
create table audit (
    audit_id     bigint generated always as identity primary key,
    at           timestamptz not null default clock_timestamp(),
    workspace_id text not null,
    who          text not null,
    action       text not null,
    target       text not null,
    result       text not null
);
create index audit_by_workspace on audit (workspace_id, audit_id desc);
