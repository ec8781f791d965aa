-- New messages of a batch are mostly of one cell: noted as one change, not as one each, which every count would read
-- until they are added up.
create or replace function note_cells() returns trigger language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        insert into message_cell_change
        select workspace_id, cell_hour(at), outcome, reason, service, origin_kind, cell_origin(origin_kind, origin_id),
               sender_id, template, calling_code, sum(sign)
        from (select *, 1 as sign from after_it union all select *, -1 from before_it) changed
        where at is not null
        group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 having sum(sign) <> 0;
    elsif tg_op = 'INSERT' then
        insert into message_cell_change
        select workspace_id, cell_hour(at), outcome, reason, service, origin_kind, cell_origin(origin_kind, origin_id),
               sender_id, template, calling_code, count(*)
        from after_it where at is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
    elsif tg_op = 'DELETE' then
        insert into message_cell_change
        select workspace_id, cell_hour(at), outcome, reason, service, origin_kind, cell_origin(origin_kind, origin_id),
               sender_id, template, calling_code, -count(*)
        from before_it where at is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10;
    else
        truncate message_cell, message_hour, message_cell_change;
    end if;
    return null;
end
$$;

-- A transaction's changes have one number: its rows share an entry, and who looks for a message by its id is never led
-- here.
drop index message_by_change;
create index message_by_change on message (workspace_id, changed_by);

-- One index holds an event once and finds it by its message: what a message's events add stands on one page of it, where
-- a key that begins with a random id writes another page for each. An event's id and time always say the same of its
-- workspace and message. Events of no message are looked for by their workspace and time; dead letters by their id too.
alter table event drop constraint event_pkey;
create unique index event_once on event (workspace_id, message_id, occurred_at, event_id) nulls not distinct;
drop index event_by_message;
create index event_dead_letter on event (event_id) where kind = 'dead_letter';
-- contract: event: the last release adds events `on conflict do nothing`, which names no key; the same ones are refused
-- contract: event_default: as of the table that it is a part of
