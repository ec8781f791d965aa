"""Writes what docs/ says about the code from the code: `python docs/generate.py`. tests/deploy holds it current.

commands.md from the `sendwhy` command, reasons.md and reasons/ from the catalogue, metrics.md from the table of
metrics, settings.md from the Settings classes, authorisation.md from authorisation.toml and the routes, kafka-acls.md
from who reads and writes which topic, scaling.md from what footprint.py measured, the tables of performance.md,
reliability.md and planted-bugs.md from published runs, bad-inputs.md from the tables of tests/e2e, limits.md from the
constants, fuzzing.md from published runs; contracts/: AsyncAPI from the topics and events, OpenAPI of each service, and
topics.md and http/ from these; the pages' texts, for translators; and Kubernetes' copy of the alert rules. With
`--release` also contracts/baseline.json and release.json: what is promised from now on.
"""

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from shlex import quote
from typing import Any

import authorisation
import bad_inputs_page
import fuzzing_page
import limits_page
import performance
import reliability
import scaling
from babel.messages.catalog import Catalog
from babel.messages.extract import DEFAULT_KEYWORDS, extract_from_dir
from babel.messages.pofile import write_po
from billing.app import make_app as make_billing
from billing.settings import BillingSettings
from consent.app import make_app as make_consent
from consent.settings import Settings as ConsentSettings
from dispatcher.app import make_app as make_dispatcher
from dispatcher.settings import Settings as DispatcherSettings
from fastapi import FastAPI
from kept_contract import promises
from message_log.app import make_app as make_message_log
from message_log.repair import why_not
from message_log.settings import MessageLogSettings
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema
from pydantic_core import PydanticUndefined
from reference_pages import GENERATED, http, reason_page, reasons, schemas, topics
from released import RELEASE, release
from sendwhy import events
from sendwhy.metrics import METRICS, MetricSpec
from sendwhy.problems import not_found
from sendwhy.reasons import CATALOGUE, ReasonInfo, Service
from sendwhy.settings import PREFIX, KafkaSettings, ServiceSettings
from sendwhy.stage import consumer_group
from sendwhy.topics import EVENT_RETENTION_DAYS, TOPICS, Topic, topic_of
from sendwhy_cli.errors import HELP as EXIT_CODES
from sendwhy_cli.main import app as cli
from typer.main import get_command
from webhook_ingest.app import make_app as make_webhook_ingest
from webhook_ingest.settings import Settings as WebhookIngestSettings

DOCS = Path(__file__).parent
CONTRACTS = DOCS / "contracts"
DEPLOY = DOCS.parent / "deploy"
EXAMPLE = re.compile(r"^\$ (.+)$", re.MULTILINE)
EXAMPLE_FORM = r"    \1"
UPSTREAM = "upstream systems"

SETTINGS: Mapping[Service, type[ServiceSettings]] = {
    Service.CONSENT: ConsentSettings,
    Service.BILLING: BillingSettings,
    Service.DISPATCHER: DispatcherSettings,
    Service.WEBHOOK_INGEST: WebhookIngestSettings,
    Service.MESSAGE_LOG: MessageLogSettings,
}
MEANINGS: Mapping[str, str] = {
    "kafka_bootstrap_servers": "`host:port`, comma-separated",
    "kafka_security_protocol": "PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL",
    "kafka_sasl_mechanism": "PLAIN (where none is set), SCRAM-SHA-256 or SCRAM-SHA-512",
    "kafka_sasl_username": "with a SASL protocol",
    "kafka_sasl_password": "with a SASL protocol; best as `SENDWHY_KAFKA_SASL_PASSWORD_FILE`",
    "kafka_ssl_cafile": "certificates to trust, where the system's don't do",
    "kafka_ssl_check_hostname": "whether the broker's certificate must be for the name by which it is reached",
    "kafka_ssl_certfile": "our own certificate in PEM, for brokers that ask for one (mutual TLS)",
    "kafka_ssl_keyfile": "its key, unless that is in the same file",
    "kafka_ssl_key_password": "where the key is locked",
    "replica": "this process' name: in logs, and what tells a dispatcher from its replicas, so it must be unique there",
    "database_url": "`postgresql://role:password@host:port/database`, each service its own; no pooler in"
    " transaction mode before the dispatcher's (it holds session locks); with TLS"
    " `?sslmode=verify-full&sslrootcert=/path/ca.pem`",
    "http_host": "where to listen; the image sets 0.0.0.0",
    "http_port": "where to listen",
    "drain_seconds": "so long it goes on after SIGTERM, with /readyz 503 and `Connection: close` in every answer: what"
    " a balancer in front needs to learn that it is ending; 0 where nothing stands in front",
    "acting_key": "Fernet keys, the newest first, the same for all services: the pages act on them for the person who"
    " is logged in; without it the pages only show.",
    "api_tokens": "`token:role:workspace`, comma-separated; role viewer, operator or admin; `*` for all workspaces."
    " Empty: nobody may use `/v1`",
    "privacy_key": "tags what outlives an erased person, 16 characters or more, the same for all services; with another"
    " key, the STOP of erased people is forgotten",
    "transactional_workspaces": "workspaces, comma-separated, whose campaigns and automations may call a send"
    " transactional",
    "import_bytes_max": "the largest CSV file that an import takes; it lies in the folder for temporary files (TMPDIR)"
    " while it is imported",
    "meta_graph_url": "Meta's Graph API, or a simulator",
    "meta_api_version": "the version in the path",
    "token_encryption_key": "Fernet keys for the stored access tokens, comma-separated, the newest first",
    "unknown_outcome_seconds": "how long a call of unknown outcome waits for its webhook before SEND_OUTCOME_UNKNOWN",
    "receipt_ttl_seconds": "how long after Meta took a message a delivery receipt is awaited; what a"
    " template sets, or Meta for authentication templates (10 minutes), is shorter",
    "meta_connect_timeout_seconds": "for a connection, or a free one from the pool",
    "meta_read_timeout_seconds": "for Meta's answer; afterwards the outcome is unknown",
    "calls_in_flight_max": "calls to Meta at once, of one replica: all its numbers share them",
    "quality_policy": "marketing from a number with a RED rating: block (reject it), warn (send it) or off",
    "meta_app_secrets": "`app_id:secret`, comma-separated, several per app while rotating: webhooks signed with any of"
    " them are believed, and calls carry the `appsecret_proof` of the first. The dispatcher sends none for an app that"
    " isn't here",
    "meta_verify_token": "what Meta's webhook form was given, 8 characters or more",
    "shopify_webhook_secrets": "`workspace:secret`, comma-separated",
    "blocked_after_silent_messages": "so many in a row that stayed at sent, after delivered ones, look like a block",
    "silent_after_seconds": "seconds after which a number counts as silent: Meta took messages, and nothing is heard",
    "event_retention_days": "how long events, and the pages made of them, are kept; what became of a message stays"
    " no less than 75 days",
    "webhook_retention_days": "how long raw deliveries are kept; they hold what people wrote",
    "public_url": "this service's address as people reach it; `https` makes the session cookie Secure",
    "consent_url": "for the export of a person, and pages that act on consent",
    "billing_url": "for the export of a person, and pages that act on billing",
    "dispatcher_url": "for the export of a person, and pages that act on the dispatcher",
    "webhook_ingest_url": "for the export of a person, and pages that replay webhooks",
}

# Who writes a topic and how it is keyed: the code has it in many places, and AsyncAPI wants it in one.
PUBLISHERS: Mapping[Topic, tuple[str, ...]] = {
    Topic.SEND_REQUESTED: (UPSTREAM, Service.MESSAGE_LOG),
    Topic.SEND_CONSENTED: (Service.CONSENT,),
    Topic.SEND_FUNDED: (Service.BILLING,),
    Topic.SEND_REJECTED: (Service.CONSENT, Service.BILLING, Service.DISPATCHER),
    Topic.SEND_HELD: (Service.DISPATCHER,),
    Topic.SEND_RECALLED: (Service.DISPATCHER,),
    Topic.SEND_CANCELLED: (UPSTREAM,),
    Topic.STATUS_UPDATED: (Service.DISPATCHER, Service.WEBHOOK_INGEST),
    Topic.WEBHOOK_RECEIVED: (Service.WEBHOOK_INGEST,),
    Topic.WEBHOOK_REFUSED: (Service.WEBHOOK_INGEST,),
    Topic.MESSAGE_RECEIVED: (Service.WEBHOOK_INGEST,),
    Topic.CUSTOMER_UPDATED: (Service.WEBHOOK_INGEST,),
    Topic.TEMPLATE_REPORTED: (Service.WEBHOOK_INGEST,),
    Topic.SENDER_REPORTED: (Service.WEBHOOK_INGEST,),
    Topic.CONTACT_UPDATED: (Service.CONSENT,),
    Topic.TEMPLATE_UPDATED: (Service.DISPATCHER,),
    Topic.SENDER_UPDATED: (Service.DISPATCHER,),
    Topic.ACCOUNT_UPDATED: (Service.BILLING,),
    Topic.PERSON_ERASING: (Service.CONSENT,),
    Topic.PERSON_ERASED: tuple(Service),
    Topic.DEAD_LETTERS: tuple(Service),
}
KEYS: Mapping[Topic, str] = {
    Topic.SEND_REQUESTED: "contact id, else phone",
    Topic.SEND_HELD: "message_id, or the id of what is held",
    Topic.STATUS_UPDATED: "message_id, else provider_message_id",
    Topic.WEBHOOK_RECEIVED: "SHA-256 of the body",
    Topic.WEBHOOK_REFUSED: "SHA-256 of the body",
    Topic.MESSAGE_RECEIVED: "sender_id/phone",
    Topic.CUSTOMER_UPDATED: "workspace_id/contact_id",
    Topic.TEMPLATE_REPORTED: "waba_id/name/language",
    Topic.SENDER_REPORTED: "sender_id, else waba_id",
    Topic.CONTACT_UPDATED: "workspace_id/contact_id",
    Topic.TEMPLATE_UPDATED: "waba_id/name/language",
    Topic.SENDER_UPDATED: "sender_id",
    Topic.ACCOUNT_UPDATED: "workspace_id",
    Topic.PERSON_ERASING: "workspace_id/erasure_id",
    Topic.PERSON_ERASED: "workspace_id/erasure_id",
    Topic.DEAD_LETTERS: "that of the record that was put aside",
}
BYTES: Mapping[Topic, str] = {
    Topic.WEBHOOK_RECEIVED: "A delivery's body as it came; headers: source, app_id or workspace_id, received_at.",
    Topic.WEBHOOK_REFUSED: "The first 2 KB of a refused delivery; headers: source, cause, size, digest, received_at.",
    Topic.DEAD_LETTERS: "A record's bytes as they came; headers: service, topic, partition, offset, error.",
}

# Read beside the groups: replays, the diagnosis of refused webhooks, and by `rewind` what a service told itself.
READ_BESIDE: Mapping[Service, tuple[Topic, ...]] = {
    Service.CONSENT: (Topic.SEND_CONSENTED, Topic.SEND_REJECTED, Topic.CONTACT_UPDATED),
    Service.BILLING: (Topic.SEND_FUNDED, Topic.SEND_REJECTED, Topic.ACCOUNT_UPDATED),
    Service.DISPATCHER: (
        Topic.SEND_REJECTED,
        Topic.SEND_RECALLED,
        Topic.STATUS_UPDATED,
        Topic.SENDER_UPDATED,
        Topic.TEMPLATE_UPDATED,
    ),
    Service.WEBHOOK_INGEST: (Topic.WEBHOOK_RECEIVED, Topic.WEBHOOK_REFUSED),
}
DEPLOYER = "deploy"
TOPICS_FOR_UPSTREAM = (Topic.SEND_REJECTED, Topic.STATUS_UPDATED)


def apps() -> dict[Service, FastAPI]:
    """Each service's app, wired and not started; the settings only have to be valid."""
    common: dict[str, Any] = {
        "kafka_bootstrap_servers": "kafka:9092",
        "database_url": SecretStr("postgresql://docs"),
        "api_tokens": SecretStr(""),
    }
    privacy: dict[str, Any] = {"privacy_key": SecretStr("0123456789abcdef")}
    fernet = SecretStr("ZGV2ZWxvcG1lbnQtb25seS10b2tlbi1lbmNyeXB0ISE=")
    meta: dict[str, Any] = {"meta_app_secrets": SecretStr("1:12345678"), "meta_verify_token": SecretStr("12345678")}
    return {
        Service.CONSENT: make_consent(ConsentSettings(**common, **privacy)),
        Service.BILLING: make_billing(BillingSettings(**common)),
        Service.DISPATCHER: make_dispatcher(DispatcherSettings(**common, **privacy, token_encryption_key=fernet)),
        Service.WEBHOOK_INGEST: make_webhook_ingest(WebhookIngestSettings(**common, **privacy, **meta)),
        Service.MESSAGE_LOG: make_message_log(MessageLogSettings(**common, **privacy)),
    }


# --- metrics.md ---


def metrics() -> str:
    rows = "\n".join(
        f"| `{name}` | {kind_of(name, spec)} | {', '.join(spec.labels) or '–'} | {spec.series_max} | {spec.meaning} |"
        for name, spec in METRICS.items()
    )
    return f"""{GENERATED}
# Metrics

At `/metrics` of every service, each with `job` (the service) and `instance` from the scrape. A service exports the
whole table; what it doesn't measure stays at 0 or empty. No label ever holds a message, person, template or campaign;
"series" is the most that one process exports.

| name | kind | labels | series | meaning |
|---|---|---|---|---|
{rows}

Dashboards: `deploy/grafana/`. Alerts: `deploy/prometheus/rules.yml` and `slo.yml`, with one section each in
[runbook.md](runbook.md).
"""


def kind_of(name: str, spec: MetricSpec) -> str:
    if spec.buckets:
        return "histogram"
    return "counter" if name.endswith("_total") else "gauge"


# --- settings.md ---


def settings() -> str:
    parts = [
        settings_table("All, and `python -m sendwhy topics`", KafkaSettings.model_fields),
        settings_table("Every service", own_fields(ServiceSettings, KafkaSettings)),
        *(settings_table(service, own_fields(kind, ServiceSettings)) for service, kind in SETTINGS.items()),
    ]
    return f"""{GENERATED}
# Settings

Environment variables with the prefix `{PREFIX}`. Each can also be read from a file: `{PREFIX}DATABASE_URL_FILE` names
the file that holds `{PREFIX}DATABASE_URL`. A missing or wrong one ends the process with exit code 2 and one line
that names it, before anything is touched.

{"".join(parts)}"""


def own_fields(kind: type[KafkaSettings], base: type[KafkaSettings]) -> Mapping[str, FieldInfo]:
    return {name: field for name, field in kind.model_fields.items() if name not in base.model_fields}


def settings_table(title: str, fields: Mapping[str, FieldInfo]) -> str:
    if not fields:
        return f"## {title}\n\nNothing of its own.\n\n"
    rows = "\n".join(
        f"| `{PREFIX}{name.upper()}` | {default_of(field)} | {MEANINGS[name]} |" for name, field in fields.items()
    )
    return f"## {title}\n\n| setting | default | meaning |\n|---|---|---|\n{rows}\n\n"


def default_of(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "**required**" if field.default_factory is None else "made at start"
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    return "–" if value in (None, "") else f"`{value}`"


# --- commands.md ---


def commands() -> str:
    parts = "\n".join(command_entry(words, command) for words, command in leaves("sendwhy", get_command(cli)))
    return f"""{GENERATED}
# The sendwhy command

Data go to stdout, talk to stderr. `--json` is stable and in the shape of the API, with problem details on stderr;
what people see isn't. Colours only on a terminal, and none with `NO_COLOR`. {EXIT_CODES}

A local stack is found by `--state-dir`. Elsewhere, set `SENDWHY_URL` to message-log's address and `SENDWHY_TOKEN` (or
`SENDWHY_TOKEN_FILE`) to a token of its API; what other services do needs `SENDWHY_CONSENT_URL`, `SENDWHY_BILLING_URL`,
`SENDWHY_DISPATCHER_URL` or `SENDWHY_WEBHOOK_INGEST_URL`. `SENDWHY_WORKSPACE` stands in for `--workspace`.

{parts}"""


def leaves(words: str, command: Any) -> Iterable[tuple[str, Any]]:
    """Each command with all the words that call it; hidden ones are other names."""
    for name in command.list_commands(None) if hasattr(command, "commands") else ():
        if not command.commands[name].hidden:
            yield from leaves(f"{words} {name}", command.commands[name])
    if not hasattr(command, "commands"):
        yield words, command


def placeholder(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required else f"[{name}]"


def command_entry(words: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    usage = " ".join([words, *map(placeholder, arguments)])
    rows = [f"| `{placeholder(one)}` | {one.help} |" for one in arguments]
    rows += [
        f"| {', '.join(f'`{name}`' for name in one.opts)} | {one.help} |"
        for one in command.params
        if one.param_type_name == "option"
    ]
    text = inspect.cleandoc(command.help or "")
    table = "\n".join(["| | |", "|---|---|", *rows]) if rows else ""
    return f"## {words}\n\n`{usage}`\n\n{EXAMPLE.sub(EXAMPLE_FORM, text)}\n\n{table}\n"


# --- kafka-acls.md ---


Right = tuple[str, str, str, str, str]


def rights(services: Mapping[Service, FastAPI] | None = None) -> list[Right]:
    """Who may do what, as (user, topic or group, its name, literal or prefixed, operation)."""
    given: list[Right] = [
        *((DEPLOYER, "topic", "*", "literal", operation) for operation in ("Create", "Describe")),
        *(("upstream", "topic", topic, "literal", "Read") for topic in TOPICS_FOR_UPSTREAM),
        *(("upstream", "topic", topic, "literal", "Write") for topic in Topic if UPSTREAM in PUBLISHERS[topic]),
        ("upstream", "group", "upstream.", "prefixed", "Read"),
    ]
    for service, app in (services or apps()).items():
        read = {*(stage.topic for stage in app.state.runtime.stages), *READ_BESIDE.get(service, ())}
        # Dead letters go back to their topics by message-log's pages.
        put_back = [topic for topic in Topic if service is Service.MESSAGE_LOG and why_not(topic) is None]
        written = {*put_back, *(topic for topic in Topic if service in PUBLISHERS[topic])}
        given += [(str(service), "topic", topic, "literal", "Read") for topic in Topic if topic in read]
        given += [(str(service), "topic", topic, "literal", "Write") for topic in Topic if topic in written]
        given.append((str(service), "group", consumer_group(service, ""), "prefixed", "Read"))
    # It measures how far behind every group is.
    given.append((Service.MESSAGE_LOG.value, "group", "sendwhy-", "prefixed", "Describe"))
    return given


def kafka_acls(services: Mapping[Service, FastAPI]) -> str:
    commands: dict[tuple[str, str, str, str], list[str]] = {}
    for user, kind, name, pattern, operation in rights(services):
        commands.setdefault((user, kind, pattern, operation), []).append(name)
    lines = "\n".join(
        f"acl User:{user} --operation {operation} {' '.join(f'--{kind} {quote(name)}' for name in names)}"
        + (" --resource-pattern-type prefixed" if pattern == "prefixed" else "")
        for (user, kind, pattern, operation), names in commands.items()
    )
    return f"""{GENERATED}
# Rights at Kafka

One user a service, each with no more than it reads and writes; `{DEPLOYER}` runs `python -m sendwhy topics`. `upstream`
stands for one of your own systems, which reads by consumer groups that begin with `upstream.`: whoever may write
`send.requested` may send for every workspace, so let each have a user of its own. The brokers need
`authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer`, and refuse then what nothing allows.
tests/secure runs all services under exactly these rights.

```bash
acl() {{ kafka-acls.sh --bootstrap-server "$KAFKA" --command-config admin.properties --add --allow-principal "$@"; }}
{lines}
```
"""


# --- contracts/ ---


def wire_models() -> list[type[events.Wire]]:
    """Every event that a topic carries."""
    known = (value for value in vars(events).values() if isinstance(value, type) and issubclass(value, events.Wire))
    return sorted((model for model in known if has_topic(model)), key=lambda model: model.__name__)


def has_topic(model: type[events.Wire]) -> bool:
    try:
        topic_of(model)
    except KeyError:
        return False
    return True


def asyncapi(services: Mapping[Service, FastAPI]) -> dict[str, Any]:
    models = wire_models()
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    by_topic = {topic_of(model): model for model in models}
    readers = {service: [stage.topic for stage in app.state.runtime.stages] for service, app in services.items()}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Sendwhy",
            "version": "1",
            "description": "What travels over Kafka. Fields are only ever added; consumers ignore unknown ones."
            " Order across topics is never promised. See docs/contract.md for the rules behind the shapes.",
        },
        "defaultContentType": "application/json",
        "channels": {str(topic): channel(topic, by_topic.get(topic)) for topic in Topic},
        "operations": dict(operations(readers)),
        "components": {
            "messages": {str(topic): message(topic, by_topic.get(topic)) for topic in Topic},
            "schemas": schemas["$defs"],
        },
    }


def channel(topic: Topic, model: type[events.Wire] | None) -> dict[str, Any]:
    spec = TOPICS[topic]
    keeps = "the latest record of each key, for ever" if spec.compacted else f"{EVENT_RETENTION_DAYS} days"
    return {
        "address": str(topic),
        "description": f"Key: {KEYS.get(topic, 'message_id')}. Keeps {keeps}."
        + (" A record without a value is a deletion." if spec.compacted else ""),
        "messages": {model.__name__ if model else "bytes": {"$ref": f"#/components/messages/{topic}"}},
        "bindings": {
            "kafka": {
                "topic": str(topic),
                "partitions": spec.partitions,
                "topicConfiguration": {"cleanup.policy": ["compact" if spec.compacted else "delete"]},
                "bindingVersion": "0.5.0",
            }
        },
    }


def message(topic: Topic, model: type[events.Wire] | None) -> dict[str, Any]:
    if model is None:
        return {
            "name": str(topic),
            "contentType": "application/octet-stream",
            "summary": BYTES[topic],
            "payload": {"type": "string", "format": "binary"},
        }
    headers = [] if not issubclass(model, events.Event) else ["ce_id", "ce_source", "ce_specversion", "ce_time"]
    return {
        "name": f"sendwhy.{topic}.v1",
        "title": model.__name__,
        "summary": " ".join((model.__doc__ or "").split()) or model.__name__,
        "headers": {
            "type": "object",
            "properties": {name: {"type": "string"} for name in [*headers, *(["ce_type"] if headers else [])]}
            | {"content-type": {"const": "application/json"}, "traceparent": {"type": "string"}},
        },
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def operations(readers: Mapping[Service, Iterable[Topic]]) -> Iterable[tuple[str, dict[str, Any]]]:
    for topic in Topic:
        place = {"$ref": f"#/channels/{topic}"}
        for writer in PUBLISHERS[topic]:
            yield f"{writer} send {topic}", {"action": "send", "channel": place}
        for service, read in readers.items():
            if topic in read:
                yield f"{service} receive {topic}", {"action": "receive", "channel": place}


# --- messages.pot ---

PACKAGE = DOCS.parent / "services" / "message-log" / "message_log"
POT = PACKAGE / "locales" / "messages.pot"
METHODS = [("**.py", "python"), ("templates/**.html", "jinja2")]
OPTIONS = {
    "templates/**.html": {
        "trimmed": "true",
        "trim_blocks": "true",
        "lstrip_blocks": "true",
        "newstyle_gettext": "true",
        "silent": "false",
    }
}
# Beside what marks a text: a refusal's second argument is a text too, and the record's name of an action.
KEYWORDS = DEFAULT_KEYWORDS | {"lazy": None, "lazy_in": ((1, "c"), 2), "Problem": (2,), "Action": (1,)}
HEADER = """\
# The texts of the pages. Generated by docs/generate.py; change the code or the template instead.
# A second language is a copy of this, translated, as <language>/LC_MESSAGES/messages.po beside it.
msgid ""
msgstr ""
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""


def pot() -> str:
    catalogue = Catalog(charset="utf-8")
    found = extract_from_dir(PACKAGE, METHODS, OPTIONS, keywords=KEYWORDS, comment_tags=("Translators:",))
    for file, _, text, comments, context in found:
        catalogue.add(text, locations=[(f"message_log/{file}", 0)], auto_comments=comments, context=context)
    for _, _, thing, _, _ in extract_from_dir(PACKAGE, METHODS[:1], keywords={"not_found": None}):
        catalogue.add(not_found(str(thing)).detail, locations=[("sendwhy/problems.py", 0)])
    for code, info in CATALOGUE.items():
        for text in texts_of(info):
            catalogue.add(text, locations=[("sendwhy/reasons.py", 0)], auto_comments=[f"reason {code}"])
    written = BytesIO()
    write_po(written, catalogue, omit_header=True, include_lineno=False, sort_by_file=True, width=120)
    return HEADER + written.getvalue().decode()


def texts_of(info: ReasonInfo) -> Iterator[str]:
    yield from (info.title, info.meaning, *info.causes, info.what_to_do, info.prevention, *info.meta_rules)


# --- scaling.md ---


def scaling_page() -> str:
    return scaling.page(scaling.load(), GENERATED)


# --- the rules, as Prometheus' operator takes them ---


def prometheus_rule() -> str:
    """The groups of every rule file, rules.yml first."""
    folder = DEPLOY / "prometheus"
    bodies = [(folder / name).read_text().partition("groups:\n") for name in ("rules.yml", "slo.yml")]
    groups = "".join(groups for _, _, groups in bodies)
    rules = f"{bodies[0][0]}groups:\n{groups}"
    return f"""# Generated by docs/generate.py from deploy/prometheus/*.yml; change those instead.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sendwhy
  labels: {{app.kubernetes.io/component: service}}
spec:
{textwrap.indent(rules, "  ")}"""


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def contracts(services: Mapping[Service, FastAPI]) -> dict[Path, Any]:
    """What machines read."""
    return {
        CONTRACTS / "asyncapi.json": asyncapi(services),
        **{CONTRACTS / f"openapi-{name}.json": app.openapi() for name, app in services.items()},
        **{CONTRACTS / "schemas" / f"{topic}.json": schema for topic, schema in schemas(wire_models()).items()},
    }


def files() -> dict[Path, str]:
    """What each generated file must hold."""
    services = apps()
    made = contracts(services)
    return {
        DOCS / "commands.md": commands(),
        DOCS / "reasons.md": reasons(),
        **{DOCS / "reasons" / f"{code}.md": reason_page(code) for code in CATALOGUE},
        DOCS / "metrics.md": metrics(),
        DOCS / "settings.md": settings(),
        DOCS / "kafka-acls.md": kafka_acls(services),
        DOCS / "authorisation.md": authorisation.page(
            {name: made[CONTRACTS / f"openapi-{name}.json"] for name in services}
        ),
        DOCS / "scaling.md": scaling_page(),
        DOCS / "performance.md": performance.page(),
        DOCS / "bad-inputs.md": bad_inputs_page.page(),
        DOCS / "limits.md": limits_page.page(),
        DOCS / "fuzzing.md": fuzzing_page.page(),
        DOCS / "reliability.md": reliability.page(),
        DOCS / "planted-bugs.md": reliability.bugs_page(),
        DOCS / "topics.md": topics(made[CONTRACTS / "asyncapi.json"]),
        **{DOCS / "http" / f"{name}.md": http(name, made[CONTRACTS / f"openapi-{name}.json"]) for name in services},
        **{path: as_json(contract) for path, contract in made.items()},
        POT: pot(),
        DEPLOY / "kubernetes" / "components" / "monitoring" / "prometheusrule.yaml": prometheus_rule(),
    }


def baseline() -> str:
    """All that the contracts promise now."""
    kept = {str(path.relative_to(CONTRACTS)): promises(contract) for path, contract in contracts(apps()).items()}
    return json.dumps(kept, indent=0, ensure_ascii=False) + "\n"


def main() -> None:
    made = files()
    if "--release" in sys.argv:
        made[CONTRACTS / "baseline.json"] = baseline()
        made[RELEASE] = as_json(release())
    for path, text in made.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
