-- Whose a delivery's part is, its number and the app say that signed it (store.py); the workspace that it names itself
-- stands beside. Rows from before don't have that: those that name a message stand where they said.
alter table webhook_part add column named_workspace_id text;
alter table sender add column app_id text;
update sender s set app_id = convert_from(k.body, 'UTF8')::json ->> 'app_id'
from known_state k where k.topic = 'sender.updated' and k.key = s.sender_id;

-- What is nobody's though its number is known was signed by another's app, or names another's workspace.
create or replace function nobodys_webhooks(named text, number text)
returns table (webhook_id uuid, received_at timestamptz, source text, kind text)
language sql stable strict security definer rows 2 as $$
    select w.webhook_id, w.received_at, w.source, p.kind
    from webhook_part p join webhook w on w.webhook_id = p.webhook_id and w.received_at = p.received_at
    where p.workspace_id is null and p.wamid = named and p.sender_id = number
      and not exists (select from sender s where s.sender_id = number)
$$;
do $$
begin
    execute format('alter function nobodys_webhooks(text, text) set search_path = %I, pg_temp', current_schema());
end
$$;
