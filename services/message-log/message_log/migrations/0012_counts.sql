-- How many messages there are, by the hour that they were asked for and by what lists are filtered by: a count over
-- weeks of millions of messages is read from some thousand cells, and a list knows in which hours there is something for
-- it (ADR 28). Whatever changes `message`, a trigger notes by how much each cell changes; a timer adds the changes up
-- (cells.py). What a cell holds is the sum over both tables. `message_hour` has the same by what became of messages
-- alone: of an hour, some ten rows where `message_cell` has thousands; a page without other filters is counted by it.
create table message_cell (
    workspace_id text not null,
    hour         timestamptz not null,
    outcome      text not null,
    reason       text,
    service      text,
    origin_kind  text,
    origin_id    text,
    sender_id    text,
    template     text,
    calling_code text,
    count        bigint not null,
    unique nulls not distinct (workspace_id, hour, outcome, reason, service, origin_kind, origin_id, sender_id,
                               template, calling_code)
);
create table message_hour (
    workspace_id text not null,
    hour         timestamptz not null,
    outcome      text not null,
    reason       text,
    service      text,
    count        bigint not null,
    unique nulls not distinct (workspace_id, hour, outcome, reason, service)
);
create table message_cell_change (like message_cell);
create index message_cell_change_by_hour on message_cell_change (workspace_id, hour);

create function cell_hour(at timestamptz) returns timestamptz language sql immutable parallel safe
    return date_bin('1 hour', at, timestamptz '2024-01-01 00:00:00+00');
-- The origin of an answer or an API's message may have an id of its own: in no filter, and a cell for each.
create function cell_origin(kind text, id text) returns text language sql immutable parallel safe
    return case when kind in ('campaign', 'automation') then id end;

create function note_cells() returns trigger language plpgsql as $$
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
               sender_id, template, calling_code, 1
        from after_it where at is not null;
    elsif tg_op = 'DELETE' then
        insert into message_cell_change
        select workspace_id, cell_hour(at), outcome, reason, service, origin_kind, cell_origin(origin_kind, origin_id),
               sender_id, template, calling_code, -1
        from before_it where at is not null;
    else
        truncate message_cell, message_hour, message_cell_change;
    end if;
    return null;
end
$$;
create trigger message_cells_inserted after insert on message referencing new table as after_it
    for each statement execute function note_cells();
create trigger message_cells_updated after update on message referencing old table as before_it new table as after_it
    for each statement execute function note_cells();
create trigger message_cells_deleted after delete on message referencing old table as before_it
    for each statement execute function note_cells();
create trigger message_cells_emptied after truncate on message for each statement execute function note_cells();

-- Counts everything anew. Whoever writes waits; of ten million messages, some minutes.
create function count_cells() returns void language plpgsql set work_mem = '256MB' as $$
begin
    lock table message in share row exclusive mode;
    truncate message_cell, message_hour, message_cell_change;
    insert into message_cell
    select workspace_id, cell_hour(at), outcome, reason, service, origin_kind, cell_origin(origin_kind, origin_id),
           sender_id, template, calling_code, count(*)
    from message where at is not null group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 order by 1, 2;
    insert into message_hour
    select workspace_id, hour, outcome, reason, service, sum(count) from message_cell
    group by 1, 2, 3, 4, 5 order by 1, 2;
end
$$;
select count_cells();
