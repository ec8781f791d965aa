-- Reports of accounts that nobody has registered are kept too, and read again when a number of the account comes.
alter table unclaimed add column waba_id text;
create index on unclaimed (waba_id) where sender_id is null;
