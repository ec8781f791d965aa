-- Which entry an Idempotency-Key booked. Answers by key are kept for 7 days, but money must not be booked twice by a
-- repeat that comes later: that one is refused by this.
create table booking (
    workspace_id text not null,
    key          text not null,
    version      bigint not null,
    at           timestamptz not null,
    primary key (workspace_id, key)
);
