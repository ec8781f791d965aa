-- `said_at`: Meta's time of the account event that a hold is by; an older event changes nothing.
alter table hold add column said_at timestamptz;
-- A restriction and a ban that Meta's events told stand beside what its answers said of the account: they have the
-- scopes account_restriction and account_ban.
alter table hold drop constraint hold_scope_check;
