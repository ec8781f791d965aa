-- What a person wrote stands once: a replay tells of it again under another event, and so does webhook-ingest once a
-- number is known. Until then nobody knows whose it is, nor whether its app may speak for the number: no row.
delete from inbound where workspace_id is null;
delete from inbound where event_id in (
    select event_id from (
        select event_id, row_number() over (partition by sender_id, wamid order by kind = 'other', at, event_id) as place
        from inbound
    ) told where place > 1
);
create unique index inbound_once on inbound (sender_id, wamid);
drop index inbound_by_sender;
