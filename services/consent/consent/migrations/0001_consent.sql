-- One row a contact. Two words on consent are kept (contacts.py): the latest firm one and the latest told one.
create table contact (
    workspace_id       text not null,
    contact_id         text not null,
    phone_given        text,
    phone              text,
    phone_key          text,
    phone_country_code text,
    phone_calling_code text,
    user_id            text,
    name               text,
    firm_state         text,
    firm_at            timestamptz,
    firm_source        text,
    firm_proof         text,
    firm_own           boolean,
    told_state         text,
    told_at            timestamptz,
    told_source        text,
    told_proof         text,
    version            bigint not null,
    created_at         timestamptz not null,
    fields_at          timestamptz not null,
    updated_at         timestamptz not null,
    primary key (workspace_id, contact_id)
);
create index on contact (workspace_id, phone_key) where phone_key is not null;
create index on contact (workspace_id, user_id) where user_id is not null;

-- Append-only: what was said of a contact's consent, and what stood after it. Erasure takes the proof and the name.
create table contact_history (
    workspace_id text not null,
    contact_id   text not null,
    cause        text not null,
    said_state   text not null,
    said_at      timestamptz not null,
    source       text not null,
    proof        text,
    stood_state  text not null,
    stood_at     timestamptz not null,
    stood_source text not null,
    by           text not null,
    recorded_at  timestamptz not null,
    id           bigint generated always as identity,
    primary key (workspace_id, contact_id, cause)
);
create index on contact_history (workspace_id, contact_id, id);

-- What outlives a contact, by keyed tags (HMAC) of its id, phone and WhatsApp user id: a firm word, and an erasure.
create table memory (
    workspace_id text not null,
    tag          bytea not null,
    word_state   text,
    word_at      timestamptz,
    word_source  text,
    word_own     boolean,
    erased_at    timestamptz,
    version      bigint not null default 0,
    primary key (workspace_id, tag)
);

-- Which messages were decided for whom, by the same tags: an erasure redacts those decisions.
create table message_of (
    workspace_id text not null,
    tag          bytea not null,
    message_id   text not null,
    prune_after  timestamptz not null,
    primary key (workspace_id, tag, message_id)
);
create index on message_of (prune_after);

-- Copies of the dispatcher's state.
create table sender (
    sender_id    text primary key,
    workspace_id text not null,
    waba_id      text not null,
    is_default   boolean not null,
    version      bigint not null
);
create index on sender (workspace_id);

create table template (
    waba_id  text not null,
    name     text not null,
    language text not null,
    category text not null,
    version  bigint not null,
    primary key (waba_id, name, language)
);
create index on template (name, language);
