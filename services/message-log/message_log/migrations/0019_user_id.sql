-- Who writes without their number is known by their WhatsApp user id: it stands in inbound.phone where the digits
-- would, and leads to the contact who has it. What was read before this stands in no thread (a rebuild puts it there).
alter table known_state add column user_id text;
update known_state set user_id = convert_from(body, 'UTF8')::json ->> 'user_id'
where topic = 'contact.updated' and position('\u0000'::text in convert_from(body, 'UTF8')) = 0;
create index known_state_by_user on known_state (workspace_id, user_id) where user_id is not null;
