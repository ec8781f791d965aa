-- A million waiting messages cost the others nothing (docs/adr/0018).
--
-- `line` is where a waiting message stands: '' in the ordinary line, 'c' and the campaign's id in the line of a campaign
-- that is or was paused or throttled, 'p' aside, paused by itself. A line that is closed is never looked at.
alter table message add column line text collate "C" not null default '';
alter table message add column paused_at timestamptz;
drop index message_slotted;
alter table message drop column slotted;

-- What is due, lane by lane; and, read alone (waiting_for, queued_at), the counts of what waits.
drop index message_due;
create index message_due on message (sender_id, line, lane, not_before) include (waiting_for, queued_at)
    where state = 'waiting';
-- Who waits for a place in the messaging limit is called in this order when one becomes free.
create index message_tier on message (sender_id, lane, queued_at)
    where state = 'waiting' and waiting_for = 'tier' and line <> 'p';
create index message_woken on message (sender_id, waiting_for)
    where state = 'waiting' and waiting_for in ('hold', 'sync');
-- In a line of its own, and nothing has been told of it yet.
create index message_untold on message (workspace_id, campaign_id, not_before)
    where state = 'waiting' and waiting_for = 'turn' and line > 'c';
drop index message_campaign;
create index message_campaign on message (workspace_id, campaign_id, line, not_before) where state = 'waiting';
drop index message_open;
create index message_open on message (sender_id, in_flight_at) include (state, lane, queued_at)
    where state in ('in_flight', 'unknown');
create index message_unknown on message (in_flight_at) where state = 'unknown';

-- Every change of a row touches an index (state, not_before), so there are no HOT updates and nothing to gain by room in
-- the pages: what counts is that dead entries go soon, since each claim walks over those at the head of its lane.
do $$
begin
    for partition in 0..3 loop
        execute format(
            'alter table message_%s set (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 5000,'
            ' autovacuum_vacuum_insert_scale_factor = 0.02, autovacuum_vacuum_insert_threshold = 10000,'
            ' autovacuum_analyze_scale_factor = 0.02, autovacuum_vacuum_cost_limit = 2000)', partition);
    end loop;
end $$;

-- A pause, a hold and a throttle don't move messages any more: those that they moved are due again, and stay where they
-- are while it lasts; a slot that was given out days ahead would stay, whatever becomes of the throttle.
update message set not_before = clock_timestamp(), waiting_for = 'turn'
where state = 'waiting' and waiting_for in ('paused', 'hold', 'throttle');

-- `lined`: messages that come in stand in the campaign's own line. `next_slot_at` paces the minute.
alter table campaign add column lined boolean not null default false;
alter table campaign drop column day_start, drop column day_count;
alter table campaign set (fillfactor = 50);
-- Calls of a throttled campaign by minute: never more than per_day in any 24 h.
create table campaign_use (
    workspace_id text not null,
    campaign_id  text not null,
    minute       timestamptz not null,
    calls        int not null,
    primary key (workspace_id, campaign_id, minute)
) with (fillfactor = 50);
create index on campaign_use (minute);

-- What is done in steps to many waiting messages; a crash loses no more than one step.
create table sweep (
    workspace_id text not null,
    kind         text not null check (kind in ('line', 'cancel_campaign', 'cancel_sender')),
    target       text not null,
    by_whom      text,
    at           timestamptz not null,
    stepped_at   timestamptz not null default clock_timestamp(),
    primary key (workspace_id, kind, target)
);
update campaign set lined = true where paused_at is not null or per_minute is not null or per_day is not null;
insert into sweep (workspace_id, kind, target, at)
select workspace_id, 'line', campaign_id, clock_timestamp() from campaign where lined;

-- `used`: people with reached_at after `counted_until`; null: nobody has counted yet. `last_at`: the latest reached_at.
-- `promised`: by lane, the place (as reached_at) that was last promised to who waits for one.
alter table portfolio add column used int not null default 0;
alter table portfolio add column counted_until timestamptz;
alter table portfolio add column last_at timestamptz;
alter table portfolio add column promised timestamptz[] not null default '{}';
alter table portfolio set (fillfactor = 50);
-- The calls of the last 24 h to this person: one that Meta surely didn't take is taken out again.
alter table reached_person add column calls timestamptz[] not null default '{}';
update reached_person set calls = array[reached_at];
