-- Which app speaks for a number: what another one tells of it is not its workspace's. Null where nobody told.
alter table sender add column app_id text;
update sender s set app_id = convert_from(k.body, 'UTF8')::json ->> 'app_id'
from known_state k where k.topic = 'sender.updated' and k.key = s.sender_id;
