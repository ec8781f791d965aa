-- Messages that are over go 45 days after the last moment at which they could be sent (forgetting.py): found by it.
create index message_over on message (greatest(expires_at, queued_at)) where state in ('accepted', 'rejected', 'recalled');
