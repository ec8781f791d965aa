-- What a claim leaves, because nobody can tell whose it is, is not taken again until something about it changes: a number
-- of its account, or that its message becomes known.
alter table unclaimed add column is_left boolean not null default false, add column wamid text;
create index unclaimed_of_account on unclaimed (waba_id, received_at) where sender_id is null and not is_left;
create index unclaimed_by_wamid on unclaimed (wamid) where sender_id is null and wamid is not null;
