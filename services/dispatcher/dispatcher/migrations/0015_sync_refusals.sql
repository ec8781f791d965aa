-- Meta's code where it refuses to be read: messages that wait for their template end with that one's reason.
alter table sender add column sync_error_code int;
