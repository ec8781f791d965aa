-- A restriction may stop only what a business begins (templates that reach a person outside a window): replies go on.
-- Of several holds of a sender, one that stops all counts before one that doesn't.
alter table hold add column stops text not null default 'all' check (stops in ('all', 'business_initiated'));
alter table sender add column hold_stops text not null default 'all';
-- While replies alone go, nothing walks over a campaign of templates to find them.
create index message_free_form on message (sender_id, line, lane, not_before)
    where state = 'waiting' and template is null and lane > 0;

-- Anybody may name another's portfolio in a PUT. `tier_key`: under what the people whom a number reaches are counted;
-- only numbers of which Meta told that they are of one portfolio share it, all others are the workspace's own.
alter table sender add column proven_portfolio_id text;
alter table sender add column tier_key text not null
    generated always as (coalesce(proven_portfolio_id, workspace_id || '/' || portfolio_id)) stored;
create index on sender (tier_key);
-- What was counted goes on to count, for each who named the portfolio; Meta is asked at once whose it is.
insert into reached_person (portfolio_id, phone, reached_at, calls)
select k.tier_key, r.phone, r.reached_at, r.calls
from (select distinct tier_key, portfolio_id from sender) k
join reached_person r on r.portfolio_id = k.portfolio_id;
update sender set sync_wanted_at = clock_timestamp();

-- Since when messages wait for this number's pace, and until when that is told.
alter table sender add column paced_since timestamptz;
alter table sender add column paced_until timestamptz;
