-- From when on replies go, though what a business begins waits on: Meta's restrictions of either have each their own end.
alter table hold add column replies_from timestamptz;
alter table sender add column hold_replies_from timestamptz;
