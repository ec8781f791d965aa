-- A message's recipient is only ever compared: from now on it is a keyed tag. What stands in clear is forgotten; its
-- messages end as NO_DELIVERY_RECEIPT where a block might have been inferred.
update message set recipient = null where recipient is not null;
