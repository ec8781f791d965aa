-- A message may go to a number that its contact's copy doesn't have: who opted out there is found by the number.
alter table contact add column phone text;
update contact set phone = convert_from(body, 'UTF8')::jsonb ->> 'phone';
create index contact_stopped_phone on contact (workspace_id, phone)
    where marketing_state = 'UNSUBSCRIBED' and phone is not null;
