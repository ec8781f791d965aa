-- After a restored backup: send.funded below these offsets was handled before, and may have been sent.
create table parked_below (
    partition   int primary key,
    next_offset bigint not null
);
