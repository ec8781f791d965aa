#!/bin/bash
# Runs once, when PostgreSQL's volume is made: for each service a role, a database that no other role may enter, and the
# role that the service becomes while it reads for one workspace (ADR 41), to which `migrate` gives its rights.
set -euo pipefail

for service in consent billing dispatcher webhook_ingest message_log; do
    url=$(cat "/run/secrets/database_url_$service")
    password=${url#*://*:}
    psql --set=ON_ERROR_STOP=1 --username=postgres --set=name="$service" --set=reader="${service}_api" --set=password="${password%%@*}" <<'SQL'
create role :"name" login password :'password';
create role :"reader" nologin;
grant :"reader" to :"name";
create database :"name" owner :"name";
revoke all on database :"name" from public;
SQL
done
psql --set=ON_ERROR_STOP=1 --username=postgres --command='revoke all on database postgres, template1 from public'
