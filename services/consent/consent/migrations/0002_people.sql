-- A record's own id, and what all records of one person share (contacts.py computes it whenever one of them changes):
-- the id of the oldest record and the latest words. firm_* and told_* stay what was said of this record.
alter table contact
    add column uid                uuid not null default gen_random_uuid(),
    add column person_id          uuid,
    add column person_firm_state  text,
    add column person_firm_at     timestamptz,
    add column person_firm_source text,
    add column person_firm_proof  text,
    add column person_firm_own    boolean,
    add column person_told_state  text,
    add column person_told_at     timestamptz,
    add column person_told_source text,
    add column person_told_proof  text,
    add column language           text,
    add column address_country    text,
    add column external_ids       text[] not null default '{}',
    add column phone_set_origin   text,
    add column phone_set_by       text,
    add column phone_set_at       timestamptz;

-- Records of one phone are one person already; other identities are found when one of the records next changes.
update contact set
    person_id = oldest.uid,
    person_firm_state = firm_state, person_firm_at = firm_at, person_firm_source = firm_source,
    person_firm_proof = firm_proof, person_firm_own = firm_own,
    person_told_state = told_state, person_told_at = told_at, person_told_source = told_source,
    person_told_proof = told_proof
from (
    select workspace_id, contact_id,
           first_value(uid) over (partition by workspace_id, coalesce(phone_key, contact_id)
                                  order by created_at, contact_id) as uid
    from contact
) oldest
where oldest.workspace_id = contact.workspace_id and oldest.contact_id = contact.contact_id;

alter table contact alter column person_id set not null;
alter table contact alter column uid drop default;
create unique index on contact (uid);
-- Not with the workspace before it: without fresh statistics (a large import), the planner would take it for the
-- workspace alone and pass by the primary key.
create index on contact (person_id);
-- Phones that can't be read as they are: those of them that lack a calling code get a suggestion.
create index on contact (workspace_id, contact_id) where phone_given is not null and phone_key is null;

-- external_ids once more, to be found by: a join on an array would pass by its index.
create table contact_name (
    workspace_id text not null,
    name         text not null,
    contact_id   text not null,
    primary key (workspace_id, name, contact_id),
    foreign key (workspace_id, contact_id) references contact on delete cascade
);
create index on contact_name (contact_id);

-- The same history also tells what became of the phone's fields and of the person. others: the contact ids of the
-- other records where records merged or parted.
alter table contact_history
    add column kind      text not null default 'consent',
    add column origin    text not null default '',
    add column note      text,
    add column fields    jsonb,
    add column overwrote jsonb,
    add column others    text[] not null default '{}';
create index on contact_history using gin (others) where others <> '{}';

-- Of a phone that was nobody's contact when they wrote: a later STOP may come by the user id alone.
alter table memory add column user_id text;

-- What a workspace says of itself. shop_country is a ground for suggesting calling codes.
create table workspace_setting (
    workspace_id text primary key,
    shop_country text,
    updated_by   text not null,
    updated_at   timestamptz not null
);
