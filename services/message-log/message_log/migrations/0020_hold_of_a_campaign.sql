-- A campaign's hold keeps no automation that has the same id. Replaced and not made anew, so that its reader keeps its
-- rights; that asks for the columns that the view has.
create or replace view message_now with (security_invoker = true) as
select m.workspace_id, m.message_id, m.state, m.at, m.updated_at, m.outcome, m.reason, m.service, m.origin_kind,
       m.origin_id, m.node_id, m.contact_id, m.phone, m.sender_id, m.template, m.purpose, m.wamid, m.waiting_cause,
       m.waiting_since, m.waiting_until, m.changed_by, m.erased_at, m.calling_code,
       w.cause as wait_cause, w.since as wait_since, w.until as wait_until,
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
                  when 'campaign' then m.origin_kind = 'campaign' and h.scope_id = m.origin_id
                  when 'template' then position('/' || m.template || '/' in '/' || h.scope_id || '/') > 0
              end
    ) waits
    order by since desc limit 1
) w on true
where m.state is not null;
