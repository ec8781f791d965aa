"""The dashboards: each answers the question in its title, in its first row. Twelve panels at most."""

from typing import Any

from panels import (
    CAMPAIGNS,
    MESSAGES,
    OF_REASON,
    OURS,
    PAGES,
    PER_MINUTE,
    Query,
    lines,
    per_minute,
    quantile,
    ranking,
    ratio,
    within,
)

FAILURES = 'sendwhy_message_failures_total{service=~"$service"}'
STEPS = "sendwhy_message_steps_total"
TO_MESSAGES = (("Failed messages of this time", MESSAGES),)
TO_REASON = (("Messages with this reason", OF_REASON), *TO_MESSAGES)
TO_CAMPAIGNS = (("Campaigns of this time", CAMPAIGNS),)
LAG_SECONDS = "max by (group) (sendwhy_group_lag_seconds) > 0 or vector(0)"
NO_PROBES = '{route!~"/(metrics|livez|readyz)"}'


def counted(by: str, function: str, window: str) -> str:
    """A message fails by a rejection (Meta never took it) or later; both counters know every reason from the start."""
    counters = (f"sendwhy_messages_{kind}_total" for kind in ("rejected", "failed"))
    return " + ".join(f'sum by ({by}) ({function}({name}{{service=~"$service"}}[{window}]))' for name in counters)


def reached(names: str) -> str:
    """Of the chosen time: within minutes a step's messages are others than those of the step before it."""
    return within(f'{STEPS}{{step=~"{names}"}}')


def refusals(service: str) -> str:
    return per_minute(f'sendwhy_messages_rejected_total{{service="{service}"}}', "reason")


def both(histogram: str) -> list[Query]:
    """The slowest hundredth, and the middle."""
    return [(quantile(0.99, histogram), "99 %"), (quantile(0.5, histogram), "50 %")]


def waiting() -> Any:
    return lines(
        "Waiting, by cause",
        "Messages in the dispatcher's queue, by what they wait for. Those that expire fail with that cause.",
        "short",
        "sum by (waiting_for) (max by (lane, waiting_for) (sendwhy_queue_messages)) or vector(0)",
        "{{waiting_for}}",
        stacked=True,
        links=(("Waiting messages", f"{PAGES}/messages?status=waiting"),),
    )


def dead_letters() -> Any:
    return lines(
        "Dead letters",
        "Records put aside because they can't be read or stored. Their bytes are on dead.letters.",
        PER_MINUTE,
        f"{per_minute('sendwhy_dead_letters_total', 'job, topic, error')} > 0 or vector(0)",
        "{{job}} ← {{topic}}: {{error}}",
        links=(("Dead letters", f"{PAGES}/dead-letters"),),
    )


def requests() -> Any:
    return lines(
        "Requests",
        "Send requests read from Kafka. Duplicates change nothing; invalid ones name their fields.",
        PER_MINUTE,
        per_minute("sendwhy_requests_total", "result"),
        "{{result}}",
    )


def calls() -> Any:
    return lines(
        "Calls to Meta, by outcome",
        "taken: Meta has it. refused: Meta said no. unknown: nobody knows, and it is not sent again.",
        PER_MINUTE,
        per_minute("sendwhy_meta_call_seconds_count", "outcome"),
        "{{outcome}}",
    )


def errors_of_meta() -> Any:
    return lines(
        "Errors that Meta answered",
        "By Meta's code and by what the dispatcher does about it (retry, pace, pair, hold, reject).",
        PER_MINUTE,
        f"{per_minute('sendwhy_meta_errors_total', 'code, action')} > 0 or vector(0)",
        "{{code}} {{action}}",
    )


def webhook_answers() -> Any:
    return lines(
        "Webhook answers, 99th percentile",
        "From a webhook's first byte to our 200. Meta expects 250 ms in the median, 1 s for 99 %. 503s are not in it.",
        "s",
        quantile(0.99, "sendwhy_webhook_ack_seconds", "source"),
        "{{source}}",
    )


def stops() -> Any:
    return lines(
        "A STOP until nothing more leaves",
        "From the arrival of a STOP's webhook to the moment from which no marketing message to that person starts."
        " Promised: 5 s for 99.9 %. Minutes mean that webhook-ingest, consent or dispatcher lags.",
        "s",
        [
            (quantile(0.99, "sendwhy_stop_to_last_message_seconds"), "99 %"),
            (quantile(0.5, "sendwhy_stop_to_last_message_seconds"), "50 %"),
        ],
    )


def decisions() -> Any:
    return lines(
        "From request to decision",
        "From the request's arrival in Kafka to its refusal by consent or billing, or to billing's word that it may go."
        " Promised: 5 s for 99 %. The dispatcher's time isn't in it: see From request to the first call to Meta.",
        "s",
        [
            (quantile(0.99, "sendwhy_request_to_decision_seconds"), "99 %"),
            (quantile(0.5, "sendwhy_request_to_decision_seconds"), "50 %"),
        ],
    )


def visible() -> Any:
    return lines(
        "From webhook to page",
        "From a status webhook's arrival to the message log's commit. Promised: 2 s for 99 %.",
        "s",
        [
            (quantile(0.99, "sendwhy_webhook_to_visible_seconds"), "99 %"),
            (quantile(0.5, "sendwhy_webhook_to_visible_seconds"), "50 %"),
        ],
    )


def overdue() -> Any:
    return lines(
        "Messages without outcome after their expiry",
        "15 minutes past their expires_at and neither taken by Meta nor failed, as far as message-log has read. Must be"
        " 0. Promised: 99.99 % of the outcomes within 15 minutes of the expiry.",
        "short",
        "max(sendwhy_outcomes_overdue)",
        "overdue",
        links=(("Messages that are sending", f"{PAGES}/messages?status=sending"),),
    )


def lag_seconds() -> Any:
    return lines(
        "Age of the oldest record that waits for a consumer",
        "Read from Kafka by message-log, so it stays when the consumer dies. To 15 s.",
        "s",
        LAG_SECONDS,
        "{{group}}",
    )


def silent() -> Any:
    return lines(
        "Silent numbers, by cause",
        "Meta took their messages and nothing is heard. …/webhooks/silence says which, and what to do.",
        "short",
        "max by (cause) (sendwhy_senders_silent)",
        "{{cause}}",
    )


def to_meta() -> Any:
    return lines(
        "From request to the first call to Meta, 95th percentile",
        "Counts from requested_at, or send_at if that is later. What waits for a hold, a window or its turn is in it.",
        "s",
        quantile(0.95, "sendwhy_request_to_meta_seconds", "lane"),
        "{{lane}}",
    )


def is_it_working() -> tuple[str, list[Any]]:
    return "Is it working", [
        lines(
            "How fast the promises' budgets burn, last hour",
            "1: what a promise may miss in 28 days is used up in 28 days. Above 14.4 somebody is paged."
            " Promises: webhooks answered within 250 ms (99.9 %), requests decided within 5 s (99 %), statuses on the"
            " page within 2 s (99 %), outcomes within 15 minutes of a message's expiry (99.99 %), nothing sent 5 s"
            " after a STOP (99.9 %).",
            "none",
            "max by (slo) (slo:sendwhy_budget_burn:ratio_rate1h)",
            "{{slo}}",
        ),
        lines(
            "Alerts that fire",
            "Each has a section in docs/runbook.md: what is noticed, what to do first.",
            "short",
            'count by (alertname, severity) (ALERTS{alertstate="firing", severity=~"page|ticket"}) or vector(0)',
            "{{severity}} {{alertname}}",
            stacked=True,
        ),
        lines(
            "How fast the promises' budgets burn, last 3 days",
            "1: what a promise may miss in 28 days is used up in 28 days. Above 1 it won't last.",
            "none",
            "max by (slo) (slo:sendwhy_budget_burn:ratio_rate3d)",
            "{{slo}}",
        ),
        lines(
            "Services that answer", "Replicas that Prometheus reaches.", "short", f"sum by (job) (up{OURS})", "{{job}}"
        ),
        requests(),
        lines(
            "Messages, by step",
            "Messages that reached a step, as the Messages page shows them.",
            PER_MINUTE,
            per_minute(STEPS, "step"),
            "{{step}}",
            links=TO_MESSAGES,
        ),
        lines(
            "Share of messages that fail",
            "Of those that failed or were delivered in the chosen time. The reasons: dashboard Why messages fail.",
            "percentunit",
            ratio(reached("failed"), f"({reached('failed|delivered')})"),
            "failed",
            links=TO_MESSAGES,
        ),
        decisions(),
        webhook_answers(),
        visible(),
        stops(),
        lag_seconds(),
    ]


def why_messages_fail() -> tuple[str, list[Any]]:
    now, before = within(FAILURES, "reason"), within(FAILURES, "reason", ago="7d")
    return "Why messages fail", [
        lines(
            "Failures by reason",
            "Messages that ended without blue ticks, by the reason that the person on the Messages page sees.",
            PER_MINUTE,
            f"60 * ({counted('reason', 'rate', '$__rate_interval')}) > 0 or vector(0)",
            "{{reason}}",
            stacked=True,
            links=TO_REASON,
        ),
        ranking(
            "Top reasons",
            "Reasons in the chosen time, most frequent first. `sendwhy explain REASON` tells what to do.",
            "short",
            f"{counted('reason, service', 'increase', '$__range')} > 0",
            links=TO_MESSAGES,
        ),
        ranking(
            "Reasons now against a week before",
            "Failures of the chosen time, less those of the same time a week before. Above 0: it has become worse.",
            "short",
            f"({now}) - ({before} or 0 * {now}) != 0",
            links=TO_MESSAGES,
        ),
        lines(
            "Failures now and a week before",
            "The same hour of the same weekday is what to compare with.",
            PER_MINUTE,
            [
                (per_minute(FAILURES), "now"),
                (f"60 * sum(rate({FAILURES}[$__rate_interval] offset 7d)) or vector(0)", "a week before"),
            ],
            links=TO_MESSAGES,
        ),
        ranking(
            "Top senders",
            "Senders (Meta's phone number ids) whose messages fail in the chosen time, with the reason. After the first"
            " 50 that fail since a start the others count together as other; none: refused before a sender was chosen."
            " What came before the first reading of a new line is not in it.",
            "short",
            f"topk(20, {within('sendwhy_sender_failures_total', 'sender, reason')} > 0)",
            links=(("Senders", f"{PAGES}/senders"), *TO_MESSAGES),
        ),
        lines(
            "Failures by what asked for the message",
            "A campaign's failures by campaign are on the page Campaigns: a campaign is no label here.",
            PER_MINUTE,
            per_minute(FAILURES, "origin_kind"),
            "{{origin_kind}}",
            stacked=True,
            links=TO_CAMPAIGNS,
        ),
        lines(
            "Failures by service",
            "Who said no: consent, billing or dispatcher before Meta; dispatcher or webhook-ingest on Meta's word.",
            PER_MINUTE,
            f"60 * ({counted('service', 'rate', '$__rate_interval')})",
            "{{service}}",
            stacked=True,
            links=TO_MESSAGES,
        ),
        waiting(),
        errors_of_meta(),
        dead_letters(),
    ]


def delivery_funnel() -> tuple[str, list[Any]]:
    return "Delivery funnel", [
        lines(
            "From request to read",
            "Messages that reached each step. A gap between two lines that stay apart is where they stop.",
            PER_MINUTE,
            per_minute(f'{STEPS}{{step!="failed"}}', "step"),
            "{{step}}",
            links=TO_MESSAGES,
        ),
        ranking(
            "Reached in the chosen time",
            "requested → passed (by consent) → accepted by Meta → sent ✓ → delivered ✓✓ → read; and failed.",
            "short",
            within(STEPS, "step"),
            links=TO_MESSAGES,
        ),
        lines(
            "Shares from step to step",
            "Of the chosen time: passed of requested; accepted of passed; delivered of accepted; read of delivered."
            " People can switch read receipts off, so that share never reaches 100 %.",
            "percentunit",
            [
                (ratio(reached(after), reached(before)), f"{after} of {before}")
                for before, after in (
                    ("requested", "passed"),
                    ("passed", "accepted"),
                    ("accepted", "delivered"),
                    ("delivered", "read"),
                )
            ],
        ),
        lines(
            "Requests by what asked for them",
            "campaign, automation, inbox, api, test.",
            PER_MINUTE,
            per_minute(f'{STEPS}{{step="requested"}}', "origin_kind"),
            "{{origin_kind}}",
            links=TO_CAMPAIGNS,
        ),
        requests(),
        lines(
            "Sent, delivered, read",
            "Statuses from Meta's webhooks that moved a message forward.",
            PER_MINUTE,
            per_minute('sendwhy_status_updates_total{applied="yes"}', "status"),
            "{{status}}",
        ),
        decisions(),
        to_meta(),
        lines(
            "Receipts still awaited",
            "Messages that Meta took and of which nothing was heard since; after their deadline they fail.",
            "short",
            "max(sendwhy_receipts_missing_messages)",
            "messages",
            links=(("Messages at sent", f"{PAGES}/messages?status=sent"),),
        ),
        lines(
            "Share of messages without final receipt",
            "Of those accepted 10 minutes to 24 hours ago. Some phones are off; more is a template or a block.",
            "percentunit",
            "max(sendwhy_receipts_missing_ratio)",
            "share",
        ),
        lines(
            "Age of the oldest awaited receipt",
            "Ends at the message's own deadline: 30 days at most, minutes for an authentication template.",
            "s",
            "max(sendwhy_receipts_oldest_age_seconds)",
            "age",
        ),
        overdue(),
    ]


def senders_and_meta() -> tuple[str, list[Any]]:
    return "Senders and Meta", [
        waiting(),
        lines(
            "Holds, by cause and by what is held",
            "A sender, token, account or portfolio that Meta refuses: its messages wait. Senders tells since when.",
            "short",
            "sum by (cause, scope) (max by (cause, scope) (sendwhy_holds)) or vector(0)",
            "{{cause}}: {{scope}}",
            stacked=True,
            links=(("Senders", f"{PAGES}/senders"),),
        ),
        lines(
            "Age of the oldest waiting message, by lane",
            "Conversations go first, then transactions, then marketing.",
            "s",
            "max by (lane) (sendwhy_queue_oldest_age_seconds) or vector(0)",
            "{{lane}}",
        ),
        calls(),
        errors_of_meta(),
        lines(
            "How long Meta takes to answer, 99th percentile",
            "Of the calls that were made. Above the read timeout they end as unknown.",
            "s",
            quantile(0.99, "sendwhy_meta_call_seconds", "outcome"),
            "{{outcome}}",
        ),
        lines(
            "Calls that are out",
            "Up to SENDWHY_CALLS_IN_FLIGHT_MAX for each replica; at that number the replica limits the pace.",
            "short",
            'sum by (instance) (sendwhy_meta_calls_in_flight{job="dispatcher"})',
            "{{instance}}",
        ),
        to_meta(),
        silent(),
        lines(
            "Syncs that failed",
            "Numbers and templates that could not be read from Meta. What was read before stands until then.",
            PER_MINUTE,
            per_minute("sendwhy_sync_failures_total", "cause"),
            "{{cause}}",
        ),
        lines(
            "Tokens that the newest key didn't seal",
            "older_key: the older key is still needed. unreadable: no key of ours opens them; PUT their senders.",
            "short",
            "max by (state) (sendwhy_tokens_to_seal_anew)",
            "{{state}}",
        ),
    ]


def webhooks() -> tuple[str, list[Any]]:
    to_log = (("Webhook log", f"{PAGES}/webhooks"),)
    ack = "sendwhy_webhook_ack_seconds"
    return "Webhooks", [
        lines(
            "Webhook deliveries, by answer",
            "received: kept in Kafka. refused: signature. unavailable or overloaded: 503, the sender repeats it.",
            PER_MINUTE,
            per_minute("sendwhy_webhook_deliveries_total", "source, result"),
            "{{source}} {{result}}",
            links=to_log,
        ),
        webhook_answers(),
        lines(
            "Share answered within 250 ms",
            "Of what was received or turned away with 503. Promised: 99.9 %. Meta slows down or ends a subscription"
            " that answers slowly for long.",
            "percentunit",
            ratio(
                f'sum(rate({ack}_bucket{{le="0.25"}}[$__rate_interval]))',
                'sum(rate(sendwhy_webhook_deliveries_total{result=~"received|unavailable|overloaded"}[$__rate_interval]))',
            ),
            "within 250 ms",
        ),
        visible(),
        lines(
            "Statuses, by effect",
            "yes: moved a message. stale: it was further already. unknown_message: no message of ours has that id.",
            PER_MINUTE,
            per_minute("sendwhy_status_updates_total", "status, applied"),
            "{{status}} {{applied}}",
        ),
        lines(
            "Things that Sendwhy doesn't know yet",
            "New fields, statuses, types and codes of Meta's, and numbers that nobody has registered. Nothing is lost.",
            PER_MINUTE,
            per_minute("sendwhy_webhook_unknown_total", "kind"),
            "{{kind}}",
            links=to_log,
        ),
        lines(
            "Errors that Meta told beside statuses",
            "By place in the payload (value, element) and what they mean.",
            PER_MINUTE,
            f"{per_minute('sendwhy_webhook_errors_total', 'place, reason')} or vector(0)",
            "{{place}} {{reason}}",
            links=to_log,
        ),
        silent(),
        lines(
            "Deliveries that wait to be read",
            "Records of webhook.received that nobody has parsed. While it grows, ticks and STOPs come late.",
            "short",
            'max by (group) (sendwhy_group_lag_messages{topic="webhook.received"})',
            "{{group}}",
        ),
        lines(
            "Receipts still awaited",
            "Messages that Meta took and of which nothing was heard since; after their deadline they fail.",
            "short",
            "max(sendwhy_receipts_missing_messages)",
            "messages",
        ),
        dead_letters(),
    ]


def credits_and_consent() -> tuple[str, list[Any]]:
    to_credits = (("Credits", f"{PAGES}/credits"),)
    return "Credits and consent", [
        lines(
            "Messages refused for lack of credits",
            "Nothing is retried after a top-up by itself; the message's page offers to send it again.",
            PER_MINUTE,
            refusals("billing"),
            "{{reason}}",
            links=TO_REASON,
        ),
        lines(
            "Messages refused by consent",
            "Mostly people who said STOP or never opted in: rightly not sent.",
            PER_MINUTE,
            f"{refusals('consent')} > 0 or vector(0)",
            "{{reason}}",
            stacked=True,
            links=TO_REASON,
        ),
        lines(
            "Credits of all workspaces",
            "balance can be spent; reserved belongs to messages on their way. A workspace's own: the page Credits.",
            "short",
            "max by (state) (sendwhy_credits)",
            "{{state}}",
            links=to_credits,
        ),
        lines(
            "Workspaces that run low",
            "Those that reached 20, 10 or 0 % of their last top-up since; each counts at its lowest.",
            "short",
            "max by (percent) (sendwhy_accounts_low)",
            "{{percent}} %",
            links=to_credits,
        ),
        lines(
            "Credits booked, by kind",
            "capture: charged for good. release, refund: given back at a rejection, at a failure.",
            PER_MINUTE,
            per_minute("sendwhy_credits_booked_total", "entry"),
            "{{entry}}",
        ),
        lines(
            "Low-balance alerts",
            "Thresholds reached, once each a top-up.",
            "short",
            within("sendwhy_low_balance_alerts_total", "percent"),
            "{{percent}} %",
        ),
        lines(
            "Accounts whose balance differs from their ledger",
            "Must be 0: each balance is the sum of its ledger's entries.",
            "short",
            "max(sendwhy_credits_balance_mismatch)",
            "accounts",
        ),
        lines(
            "Where Meta's pricing differs from our charge",
            "category: another price list row. charged_but_free and billed_but_not_charged say who paid too much.",
            PER_MINUTE,
            per_minute("sendwhy_pricing_differences_total", "kind"),
            "{{kind}}",
        ),
        stops(),
        lines(
            "STOPs",
            "Opt-outs of people that took effect: replies, buttons, WhatsApp's own stop control, error 131050.",
            PER_MINUTE,
            per_minute("sendwhy_stop_to_last_message_seconds_count"),
            "STOPs",
        ),
        lines(
            "People who are not erased everywhere yet",
            "Some service has not reported within 10 minutes of the order.",
            "short",
            "max(sendwhy_erasures_unfinished)",
            "people",
        ),
    ]


def kafka_and_database() -> tuple[str, list[Any]]:
    return "Kafka and database", [
        lines(
            "Records that wait, by consumer group",
            "Read from Kafka by message-log. A line that stands while others move is a stage that stands still.",
            "short",
            "max by (group) (sendwhy_group_lag_messages) > 0 or vector(0)",
            "{{group}}",
        ),
        lag_seconds(),
        lines(
            "Consumer groups without members",
            "Nobody reads their topic: the service is down, or can't join. 1 for each of them.",
            "short",
            "count by (group) (max by (group) (sendwhy_group_members) == 0) or vector(0)",
            "{{group}}",
        ),
        lines(
            "Records done, by stage",
            "Each service's stages, named by the topic that they read.",
            PER_MINUTE,
            per_minute("sendwhy_stage_batch_records_sum", "job, stage"),
            "{{job}} ← {{stage}}",
        ),
        lines(
            "From a record's arrival to our commit, 99th percentile",
            "By stage. What is slow here makes everything behind it late.",
            "s",
            quantile(0.99, "sendwhy_stage_seconds", "job, stage"),
            "{{job}} ← {{stage}}",
        ),
        lines(
            "Batches that failed, and commits that Kafka refused",
            "Both are repeated. A line that stays is a bug, or a database or Kafka that doesn't answer.",
            PER_MINUTE,
            [
                (
                    f"{per_minute('sendwhy_stage_failures_total', 'job, stage, error')} or vector(0)",
                    "{{job}} ← {{stage}}",
                ),
                (per_minute("sendwhy_commit_failures_total", "job"), "{{job}}: commits"),
            ],
        ),
        lines(
            "Events of ours that wait to be published",
            "Written with their cause and published by the sweep; more than a few for minutes: Kafka refuses them.",
            "short",
            "max by (job) (sendwhy_unpublished_events)",
            "{{job}}",
        ),
        lines(
            "Database connections in use",
            "Share of each process' pool. At 100 % everything in that process waits for a connection.",
            "percentunit",
            'sum by (job, instance) (sendwhy_database_connections{state="busy"})'
            " / sum by (job, instance) (sendwhy_database_connections)",
            "{{job}} {{instance}}",
        ),
        lines(
            "HTTP answers, by status",
            "API and pages, without the webhooks' door. 5xx is ours to mend.",
            PER_MINUTE,
            per_minute(f"sendwhy_http_requests_total{NO_PROBES}", "job, status_class"),
            "{{job}} {{status_class}}",
        ),
        lines(
            "HTTP answers, 95th percentile",
            "From a request's head to the answer's head, by service.",
            "s",
            quantile(0.95, "sendwhy_http_request_seconds", "job", where=NO_PROBES),
            "{{job}}",
        ),
        lines(
            "Calls of the pages to other services",
            "failed: not reached, or 5xx; the page says which service it was.",
            PER_MINUTE,
            f"{per_minute('sendwhy_service_call_seconds_count', 'service, result')} or vector(0)",
            "{{service}} {{result}}",
        ),
        lines(
            "Memory",
            "Resident memory of each process.",
            "bytes",
            f"sum by (job, instance) (process_resident_memory_bytes{OURS})",
            "{{job}} {{instance}}",
        ),
    ]


BOARDS = (
    is_it_working,
    why_messages_fail,
    delivery_funnel,
    senders_and_meta,
    webhooks,
    credits_and_consent,
    kafka_and_database,
)
