-- Shopify repeats a delivery under the same X-Shopify-Event-Id: which record told each event first. One event may be
-- told under several topics. Pruned once Kafka can't give the records again.
create table shopify_event (
    workspace_id    text not null,
    topic           text not null,
    event_id        text not null,
    kafka_partition int not null,
    kafka_offset    bigint not null,
    received_at     timestamptz not null,
    primary key (workspace_id, topic, event_id)
);
create index on shopify_event (received_at);
