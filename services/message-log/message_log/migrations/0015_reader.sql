-- What is read for one workspace is read by a role that sees its rows only (rights.toml; tenancy.py). Views show what
-- their reader may see, not what their owner may.
alter view hold_now set (security_invoker = true);
alter view message_now set (security_invoker = true);
alter view repeat set (security_invoker = true);

-- Row-level security would keep the index of names from being asked: of its operator nobody promises that it tells
-- nothing of the rows that it sees. So this looks as the owner does, and keeps to the reader's workspace by itself. Only
-- the index of names may be used: of a name that few have, or nobody, the planner expects to find enough by reading
-- contacts one by one.
create function contacts_named(workspace text, words text, at_most int) returns setof text
language sql stable security definer rows 20 as $$
    select substr(k.key, length(workspace) + 2) from known_state k
    where k.topic || '' = 'contact.updated' and k.workspace_id || '' = workspace
      and workspace = current_setting('sendwhy.workspace', true)
      and to_tsvector('simple', k.name) @@ to_tsquery('simple', words) limit at_most
$$;

-- What was told of an id of Meta's before anybody knew whose it is: to be found by who knows the id, and not listed.
create function nobodys_events(named text) returns setof event
language sql stable strict security definer rows 2 as $$
    select * from event where workspace_id is null and message_id is null and wamid = named
$$;
create function nobodys_webhooks(named text, number text)
returns table (webhook_id uuid, received_at timestamptz, source text, kind text)
language sql stable strict security definer rows 2 as $$
    select w.webhook_id, w.received_at, w.source, p.kind
    from webhook_part p join webhook w on w.webhook_id = p.webhook_id and w.received_at = p.received_at
    where p.workspace_id is null and p.wamid = named and p.sender_id = number
$$;

do $$
declare
    made text;
begin
    foreach made in array array['contacts_named(text, text, int)', 'nobodys_events(text)',
                                'nobodys_webhooks(text, text)'] loop
        execute format('alter function %s set search_path = %I, pg_temp', made, current_schema());
        execute format('revoke all on function %s from public', made);
    end loop;
end
$$;
