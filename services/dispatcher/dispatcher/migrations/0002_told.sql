-- The causes of waiting that send.held has told of this message: each once.
alter table message add column told text[] not null default '{}';
