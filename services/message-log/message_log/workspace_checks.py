"""What a set of answers makes of a check of one workspace: its numbers, and what came of its messages. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from message_log.checks import Area, Check, Result
from message_log.told import Told
from message_log.words import absolute, ago, counted

SYNC_EVERY = timedelta(hours=1)
SYNC_LATE = timedelta(hours=2, minutes=15)
RECEIPT_LATE = timedelta(minutes=15)
RECEIPT_LOST = timedelta(hours=24)
WEBHOOK_LATE = timedelta(minutes=10)
DEAD_LETTERS_COUNTED = 1000
_NOT_ASKED = Told(fault="It was not asked.", status=503)


@dataclass(frozen=True, slots=True)
class SenderFacts:
    """A number as the dispatcher's list has it, how it does, and what Meta said of its token and subscription."""

    sender: Mapping[str, Any]
    health: Told
    subscription: Told


@dataclass(frozen=True, slots=True)
class StoredFacts:
    """What this log has of the workspace. `unheard`: the oldest message that Meta took and of which nothing was heard,
    (message id, when it was requested)."""

    webhook_at: datetime | None = None
    accepted_at: datetime | None = None
    unheard: tuple[str, datetime] | None = None
    unheard_count: int = 0
    dead_letters: int = 0
    dead_letter_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class WorkspaceFacts:
    """`senders_more`: numbers that were not looked at. `stored` None: the database could not be asked."""

    workspace: str
    at: datetime
    senders: Told
    looked_at: Sequence[SenderFacts] = ()
    senders_more: int = 0
    silence: Told = _NOT_ASKED
    stored: StoredFacts | None = None


def workspace_checks(facts: WorkspaceFacts) -> list[Check]:
    make = _Maker(facts)
    found = [*make.numbers()]
    for one in facts.looked_at:
        found += [make.token(one), make.subscription(one), make.templates(one), make.stopped(one)]
    return [*found, make.silence(), make.webhooks(), make.receipts(), make.dead_letters()]


def _name(sender: Mapping[str, Any]) -> str:
    return str(sender.get("display_phone_number") or sender["sender_id"])


class _Maker:
    def __init__(self, facts: WorkspaceFacts) -> None:
        self._facts = facts
        self._home = f"/w/{quote(facts.workspace, safe='')}"

    def _check(self, name: str, area: Area, title: str, why: str, seen: str, **told: Any) -> Check:
        return Check(
            id=name, area=area, title=title, why=why, seen=seen, at=self._facts.at, **({"result": Result.OK} | told)
        )

    def _of(self, one: SenderFacts, name: str, title: str, why: str, seen: str, **told: Any) -> Check:
        sender_id = str(one.sender["sender_id"])
        about = {"about": _name(one.sender)}
        if told.get("result", Result.OK) is not Result.OK:
            about["link"] = f"{self._home}/senders/{quote(sender_id, safe='')}"
        return self._check(f"{name}:{sender_id}", "numbers", title, why, seen, **(about | told))

    def numbers(self) -> list[Check]:
        """Only where there is something to say beside the checks of each number."""
        senders = self._facts.senders
        why = "Every message leaves by a number of the workspace."
        if senders.fault is not None:
            return [self._check("numbers", "numbers", "Numbers are known", why, senders.fault, result=Result.UNASKED)]
        if not senders.body:
            remedy = "An admin sets one up with its access token; templates and limits follow by themselves."
            command = f"PUT /v1/workspaces/{self._facts.workspace}/senders/PHONE-NUMBER-ID at the dispatcher"
            told = {"result": Result.FAILED, "remedy": remedy, "command": command}
            return [self._check("numbers", "numbers", "A number is set up", why, "There is none.", **told)]
        if self._facts.senders_more:
            more = counted(self._facts.senders_more, "number was", "numbers were")
            seen = f"The first {len(self._facts.looked_at)} were looked at; {more} not."
            return [self._check("numbers", "numbers", "Numbers are known", why, seen, link=f"{self._home}/senders")]
        return []

    def token(self, one: SenderFacts) -> Check:
        """Meta's fresh word where there is one, else what the hourly sync says."""
        told = one.subscription.body or {}
        state, failed = told.get("token"), _failed_sync(one)
        title, why = "Meta takes the token", "Without a valid access token Meta refuses every message of the number."
        if state == "valid":
            return self._of(one, "token", title, why, f"Meta took it {_when(told.get('asked_at'), self._facts.at)}.")
        if state == "unreadable":
            remedy = (
                "Give the dispatcher its former key too (TOKEN_ENCRYPTION_KEY takes several), or PUT the number again."
            )
            seen = "The stored token can’t be opened with the dispatcher’s present keys."
            return self._of(one, "token", title, why, seen, result=Result.FAILED, remedy=remedy)
        if state == "refused":
            remedy = (
                "Make a token of a system user at Meta (permissions whatsapp_business_messaging and"
                " whatsapp_business_management) and PUT the number with it; what waits goes out by itself."
            )
            return self._of(one, "token", title, why, str(told.get("error")), result=Result.FAILED, remedy=remedy)
        seen = one.subscription.fault or str(told.get("error") or "Meta could not be asked.")
        if failed is not None:
            seen = f"{failed.get('error')} (since {_when(failed.get('since'), self._facts.at)})"
        return self._of(one, "token", title, why, seen, result=Result.UNASKED, remedy=_ASK_AGAIN)

    def subscription(self, one: SenderFacts) -> Check:
        told = one.subscription.body or {}
        title = "Our app gets the webhooks"
        why = "Without it no tick, no answer and no STOP arrives."
        waba = str(one.sender.get("waba_id"))
        if told.get("subscribed"):
            ours = [app for app in told["apps"] if told.get("app_id") in (None, app["app_id"])]
            seen = ", ".join(_app(app) for app in ours)
            return self._of(one, "subscription", title, why, f"Account {waba}: {seen}")
        if told.get("subscribed") is False:
            others = ", ".join(_app(app) for app in told["apps"]) or "no app at all"
            return self._of(
                one,
                "subscription",
                title,
                why,
                f"Account {waba} is subscribed by {others}, not by app {told.get('app_id') or 'of any name'}.",
                result=Result.FAILED,
                remedy="Subscribe the app to the account by the number’s token, or PUT it with the right app_id.",
                command=f'curl -X POST -H "Authorization: Bearer $TOKEN" https://graph.facebook.com/v25.0/{waba}/subscribed_apps',
            )
        seen = one.subscription.fault or "Meta could not be asked with this token."
        return self._of(one, "subscription", title, why, seen, result=Result.UNASKED, remedy=_ASK_AGAIN)

    def templates(self, one: SenderFacts) -> Check:
        title, why = "Templates are read from Meta", "A template that Meta paused or changed would be refused there."
        if one.health.fault is not None:
            return self._of(one, "templates", title, why, one.health.fault, result=Result.UNASKED)
        sync = one.health.body["sync"]
        last, failed, synced_at = sync.get("last"), sync.get("failed"), sync.get("synced_at")
        if failed is not None:
            seen = f"It fails since {_when(failed['since'], self._facts.at)}: {failed['error']}"
            remedy = "Mend what Meta says, then “Sync now” at the number; until then what was read before stands."
            return self._of(one, "templates", title, why, seen, result=Result.FAILED, remedy=remedy)
        if synced_at is None or last is None:
            remedy = (
                "It comes within a minute of setting the number up; “Sync now” at the number tells what hinders it."
            )
            return self._of(one, "templates", title, why, "Not yet.", result=Result.WARNING, remedy=remedy)
        seen = f"{counted(last['templates'], 'template', 'templates')} read {_when(synced_at, self._facts.at)}"
        if last.get("changes"):
            count = counted(len(last["changes"]) + last.get("more", 0), "difference", "differences")
            seen += f"; {count} found {_when(last.get('changed_at'), self._facts.at)}"
        if last.get("incomplete"):
            remedy = "Templates beyond that are not known here, and messages with them fail; tell the developers."
            return self._of(
                one, "templates", title, why, f"{seen}. {last['incomplete']}", result=Result.WARNING, remedy=remedy
            )
        if self._facts.at - synced_at > SYNC_LATE:
            remedy = "It is read every hour: see whether the dispatcher lives, or press “Sync now” at the number."
            return self._of(one, "templates", title, why, seen, result=Result.WARNING, remedy=remedy)
        return self._of(one, "templates", title, why, seen)

    def stopped(self, one: SenderFacts) -> Check:
        title, why = "Nothing stops the number", "What stops a number keeps its messages waiting, or rejects them."
        if one.health.fault is not None:
            return self._of(one, "stopped", title, why, one.health.fault, result=Result.UNASKED)
        stops = one.health.body["stopped_by"]
        if not stops:
            return self._of(one, "stopped", title, why, "A message would go.")
        result = Result.FAILED if any(stop["stops"] == "all" for stop in stops) else Result.WARNING
        seen = "; ".join(str(stop["detail"]) for stop in stops)
        remedy = "The number’s page says since when, until when, and has Resume and Sync."
        return self._of(one, "stopped", title, why, seen, result=result, remedy=remedy)

    def silence(self) -> Check:
        """What webhook-ingest's own watch says."""
        told = self._facts.silence
        title, why = (
            "No number is silent",
            "A number of which nothing is heard has lost its webhooks, not its messages.",
        )
        if told.fault is not None:
            return self._check("silence", "messages", title, why, told.fault, result=Result.UNASKED)
        silent = told.body["items"]
        if not silent:
            return self._check("silence", "messages", title, why, "Of every number that sends, something is heard.")
        return self._check(
            "silence",
            "messages",
            title,
            why,
            "; ".join(f"{one['sender_id']} since {_when(one['since'], self._facts.at)}" for one in silent),
            result=Result.FAILED,
            remedy=" ".join(dict.fromkeys(str(one["what_to_do"]) for one in silent)),
            link=f"{self._home}/webhooks",
        )

    def webhooks(self) -> Check:
        title, why = "Webhooks come", "Ticks, answers and STOPs come by webhook and by nothing else."
        stored = self._facts.stored
        if stored is None:
            return self._check("webhooks", "messages", title, why, _NO_DATABASE, result=Result.UNASKED)
        heard, taken = stored.webhook_at, stored.accepted_at
        seen = f"The last one came {_when(heard, self._facts.at)}." if heard else "None has come yet."
        if taken is None or (heard is not None and heard >= taken):
            return self._check("webhooks", "messages", title, why, seen)
        if self._facts.at - taken <= WEBHOOK_LATE:
            return self._check("webhooks", "messages", title, why, seen)
        remedy = (
            "Look at the subscription above, at the door’s address in Meta’s app settings, and for refused deliveries"
            " in the webhook log."
        )
        seen = f"{seen} Meta took a message {_when(taken, self._facts.at)}, and nothing came since."
        return self._check(
            "webhooks",
            "messages",
            title,
            why,
            seen,
            result=Result.WARNING,
            remedy=remedy,
            link=f"{self._home}/webhooks",
        )

    def receipts(self) -> Check:
        title, why = "Every message that Meta took is heard of", "Meta says “sent” within seconds; silence has a cause."
        stored = self._facts.stored
        if stored is None:
            return self._check("receipts", "messages", title, why, _NO_DATABASE, result=Result.UNASKED)
        if stored.unheard is None:
            return self._check("receipts", "messages", title, why, "None waits for its first receipt.")
        message_id, since = stored.unheard
        count = counted(stored.unheard_count, "message waits", "messages wait")
        seen = f"{count} for a first receipt; the oldest, {message_id}, was requested {_when(since, self._facts.at)}."
        age = self._facts.at - since
        if age <= RECEIPT_LATE:
            return self._check("receipts", "messages", title, why, seen)
        remedy = (
            "Of one or two, Meta may hold them to judge the template’s quality. Of many, webhooks are lost: look at"
            " the subscription and the webhook log."
        )
        return self._check(
            "receipts",
            "messages",
            title,
            why,
            seen,
            result=Result.FAILED if age > RECEIPT_LOST else Result.WARNING,
            remedy=remedy,
            link=f"{self._home}/messages/{quote(message_id, safe='')}",
        )

    def dead_letters(self) -> Check:
        title, why = "No dead letter waits", "A record that could not be read has had no effect."
        stored = self._facts.stored
        if stored is None:
            return self._check("dead-letters", "messages", title, why, _NO_DATABASE, result=Result.UNASKED)
        if not stored.dead_letters:
            return self._check("dead-letters", "messages", title, why, "None.")
        count = counted(stored.dead_letters, "waits", "wait")
        at_least = "At least " if stored.dead_letters >= DEAD_LETTERS_COUNTED else ""
        seen = f"{at_least}{count}, the latest since {_when(stored.dead_letter_at, self._facts.at)}."
        remedy = (
            "Read what is wrong with each, repair it, and put it back; what upstream sends again is repaired there."
        )
        return self._check(
            "dead-letters",
            "messages",
            title,
            why,
            seen,
            result=Result.WARNING,
            remedy=remedy,
            link=f"{self._home}/dead-letters",
        )


_NO_DATABASE = "The log’s own database could not be asked."
_ASK_AGAIN = "Ask again in a minute; if it stays so, look at the dispatcher, and at Meta’s status page."


def _failed_sync(one: SenderFacts) -> Mapping[str, Any] | None:
    failed: Mapping[str, Any] | None = (one.health.body or {}).get("sync", {}).get("failed")
    return failed


def _app(app: Mapping[str, Any]) -> str:
    name = f"app {app['app_id']}" + (f" ({app['name']})" if app.get("name") else "")
    return f"{name}, which posts this account’s to {app['override_url']}" if app.get("override_url") else name


def _when(moment: Any, now: datetime) -> str:
    """As it is told, with the time and its zone."""
    return f"{ago(moment, now)} ({absolute(moment)})" if isinstance(moment, datetime) else "at an unknown time"
