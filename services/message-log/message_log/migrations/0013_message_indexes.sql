-- Lists by origin, too, are read from the index alone. The hours in which there is something to list come from the cells
-- (0012), so that no column needs an index of its own in the order of time: the fold writes each of them anew with every
-- change of a message.
drop index message_by_time;
create index message_by_time on message (workspace_id, at desc, message_id desc)
    include (outcome, reason, service, sender_id, template, calling_code, origin_kind, origin_id) where at is not null;
drop index message_by_reason;
drop index message_by_outcome;
-- Of these the clock says where they stand.
create index message_open on message (workspace_id, at desc, message_id desc)
    include (outcome, reason, service, sender_id, template, calling_code, origin_kind, origin_id,
             waiting_cause, waiting_since, waiting_until) where outcome in ('open', 'accepted');

-- What names an account and no number belongs to the workspace that has the account (store.py).
create index webhook_part_of_account on webhook_part (waba_id) where sender_id is null and waba_id is not null;

-- The inbox's threads, each where its latest word is (inbox_queries.py).
create index inbound_inbox on inbound (workspace_id, at desc, event_id desc) where phone is not null;
create index message_inbox_person on message (workspace_id, (coalesce(contact_id, phone)), at desc, message_id desc)
    where origin_kind = 'inbox';
create index webhook_refused on webhook (received_at desc, webhook_id desc) where refused is not null;
-- Whose a number is that somebody wrote from.
create index known_state_by_phone on known_state (workspace_id, phone) where phone is not null;
