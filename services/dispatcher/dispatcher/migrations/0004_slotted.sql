-- Messages whose turn in a throttled campaign has come; those that have none yet stand before them in message_due.
create index message_slotted on message (sender_id, lane, not_before) where state = 'waiting' and slotted;
