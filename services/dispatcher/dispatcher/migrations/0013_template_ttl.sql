-- Meta's message_send_ttl_seconds: how long it tries to deliver what goes by this template; -1: as long as it ever does.
-- Null: Meta has its own for the category, or hasn't told since.
alter table template add column ttl_seconds int;
