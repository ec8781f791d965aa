-- Who writes without their number is known by their WhatsApp user id: it stands in conversation_window.phone where the
-- number would (which begins with a plus, and no user id does), and leads from a contact to that window.
alter table contact add column user_id text;
update contact set user_id = convert_from(body, 'UTF8')::jsonb ->> 'user_id';
