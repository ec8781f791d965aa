-- Anybody may name another's account in the PUT of a number of their own: that it is theirs is proven once Meta has told
-- its templates to their token (`synced_at` of sender.updated). Until then their app doesn't speak for it.
alter table sender add column is_proven boolean not null default true;
