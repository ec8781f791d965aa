-- When a message left our hands: its first receipt, or its failure (decide.py). Filled as events come; of messages of
-- which none comes any more `updated_at` stands in.
alter table message add column left_at timestamptz;

-- A campaign's and an automation's counts come from this index alone.
create index message_by_group on message (workspace_id, origin_kind, origin_id, at desc)
    include (outcome, left_at, updated_at, node_id) where origin_id is not null;
create index message_open_of_group on message (workspace_id, origin_kind, origin_id)
    include (node_id, sender_id, template, waiting_cause, waiting_since, waiting_until)
    where outcome = 'open' and origin_id is not null;
create index message_failed_of_group on message (workspace_id, origin_kind, origin_id, at desc, message_id desc)
    include (reason, service) where outcome = 'failed' and origin_id is not null;

-- The inbox's threads: what was answered, and what people wrote.
create index message_inbox on message (workspace_id, at desc, message_id desc) where origin_kind = 'inbox';
