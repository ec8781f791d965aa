-- Why senders don't send now, by what Meta's refusal is about: a number, a token, an account or a portfolio, each within
-- one workspace (whoever names another's account may not stop it). What stands is reflected in `hold`, `hold_since` and
-- `hold_until` of every sender that it concerns. A lifted hold stays, so that what was told before changes nothing.
create table hold (
    workspace_id  text not null,
    scope         text not null check (scope in ('sender', 'token', 'account', 'portfolio')),
    scope_id      text not null,
    cause         bytea not null,
    said_by       text not null,
    since         timestamptz not null,
    until         timestamptz, -- the end, where Meta told one
    probe_at      timestamptz, -- from when on one message may try; null: somebody has to repair it
    probing_until timestamptz, -- that one message is out
    strikes       int not null default 0,
    lifted_at     timestamptz,
    primary key (workspace_id, scope, scope_id)
);
insert into hold (workspace_id, scope, scope_id, cause, said_by, since, probe_at, strikes)
select workspace_id, 'sender', sender_id, hold, 'dispatcher', coalesce(hold_since, clock_timestamp()), hold_until,
       hold_strikes
from sender where hold is not null;

-- Tells senders that share a token, without telling the token.
alter table sender add column token_tag text;
alter table sender drop column hold_strikes;
create index on sender (workspace_id);
