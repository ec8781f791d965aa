-- The calling code of the phone a message went to, "52". Filled as events come; messages of which none comes any more
-- get theirs when the log is built anew from the topics.
alter table message add column calling_code text;

-- Lists and counts are read from this index alone: of ten million messages, the table's own pages are too many. Claimed
-- rows of which nothing is known yet have no time.
drop index message_by_time;
create index message_by_time on message (workspace_id, at desc, message_id desc)
    include (outcome, reason, service, sender_id, template, calling_code) where at is not null;

-- The calling codes that there are, for the filter.
create table calling_code_seen (
    workspace_id text not null,
    calling_code text not null,
    primary key (workspace_id, calling_code)
);

-- What people are called, folded for the search (`names.py`).
alter table known_state add column name text;
create index known_state_by_name on known_state using gin (to_tsvector('simple', name)) where name is not null;

-- What the door wrote beside a delivery: when it came, which app signed it, Shopify's topic.
alter table webhook add column headers jsonb;
create index inbound_by_wamid on inbound (wamid);

-- What could not be read: the newest first, by whom it belongs to.
create index event_dead on event (workspace_id, occurred_at desc, event_id desc) where kind = 'dead_letter';

-- A sender that is told free ends the holds of its own workspace only: an account may have numbers in several.
create or replace view hold_now as
select h.* from hold h
where (h.until is null or h.until > now())
  and not exists (
      select from sender s
      where s.workspace_id = h.workspace_id
        and (h.scope = 'sender' and s.sender_id = h.scope_id or h.scope = 'account' and s.waba_id = h.scope_id)
        and s.free_since >= h.told_at);

-- As before; a view keeps the columns that its tables had when it was made.
drop view message_now;
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
