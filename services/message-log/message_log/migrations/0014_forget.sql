-- Messages whose end is told go with their events (forgetting.py): found by when something was last told of them.
create index message_over on message (updated_at) where outcome in ('delivered', 'read', 'failed');
