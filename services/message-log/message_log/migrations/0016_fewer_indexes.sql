-- Each is written anew with every delivery, or every change of a message. Deliveries are listed by their parts, or by
-- those that were refused; who looks for the id of an origin of any kind asks message_by_group for each kind.
drop index webhook_by_time;
drop index message_by_origin;
