-- The view shows what its reader may see, not what its owner may (rights.toml).
alter view movement set (security_invoker = true);
