-- Who has opted out under a user id that a waiting message goes to, whichever contact has it by now.
create index contact_stopped_user on contact (workspace_id, user_id)
    where marketing_state = 'UNSUBSCRIBED' and user_id is not null;
