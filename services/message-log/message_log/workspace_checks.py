"""What a set of answers makes of a check of one workspace: its numbers, and what came of its messages. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote

from sendwhy.reasons import ReasonCode

from message_log.checks import Area, Check, Result
from message_log.language import decimal, lazy, ngettext
from message_log.language import gettext as _
from message_log.told import Told
from message_log.words import absolute, ago

SYNC_LATE = timedelta(hours=2, minutes=15)
RECEIPT_LATE = timedelta(minutes=15)
RECEIPT_LOST = timedelta(hours=24)
WEBHOOK_LATE = timedelta(minutes=10)
DEAD_LETTERS_COUNTED = 1000
_NOT_ASKED = Told(fault=lazy("It was not asked."), status=503)


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
            id=name,
            area=area,
            title=title,
            why=why,
            seen=str(seen),
            at=self._facts.at,
            **({"result": Result.OK} | told),
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
        why = _("Every message leaves by a number of the workspace.")
        if senders.fault is not None:
            title = _("Numbers are known")
            return [self._check("numbers", "numbers", title, why, senders.fault, result=Result.UNASKED)]
        if not senders.body:
            remedy = _("An admin sets one up with its access token; templates and limits follow by themselves.")
            command = f"PUT /v1/workspaces/{self._facts.workspace}/senders/PHONE-NUMBER-ID at the dispatcher"
            told: dict[str, Any] = {"result": Result.FAILED, "remedy": remedy, "command": command}
            return [self._check("numbers", "numbers", _("A number is set up"), why, _("There is none."), **told)]
        if self._facts.senders_more:
            seen = ngettext(
                "The first %(looked_at)s were looked at; %(num)s number was not.",
                "The first %(looked_at)s were looked at; %(num)s numbers were not.",
                self._facts.senders_more,
                looked_at=len(self._facts.looked_at),
            )
            link = f"{self._home}/senders"
            return [self._check("numbers", "numbers", _("Numbers are known"), why, seen, link=link)]
        return []

    def token(self, one: SenderFacts) -> Check:
        """Meta's fresh word where there is one, else what the hourly sync says."""
        told = one.subscription.body or {}
        state, failed = told.get("token"), _failed_sync(one)
        title = _("Meta takes the token")
        why = _("Without a valid access token Meta refuses every message of the number.")
        if state == "valid":
            seen = _("Meta took it %(when)s.", when=_when(told.get("asked_at"), self._facts.at))
            return self._of(one, "token", title, why, seen)
        if state == "unreadable":
            remedy = _(
                "Give the dispatcher its former key too (%(name)s takes several), or PUT the number again.",
                name="TOKEN_ENCRYPTION_KEY",
            )
            seen = _("The stored token can’t be opened with the dispatcher’s present keys.")
            return self._of(one, "token", title, why, seen, result=Result.FAILED, remedy=remedy)
        if state == "refused":
            remedy = _(
                "Make a token of a system user at Meta (permissions %(first)s and %(second)s) and PUT the number with"
                " it; what waits goes out by itself.",
                first="whatsapp_business_messaging",
                second="whatsapp_business_management",
            )
            return self._of(one, "token", title, why, str(told.get("error")), result=Result.FAILED, remedy=remedy)
        seen = one.subscription.fault or str(told.get("error") or _("Meta could not be asked."))
        if failed is not None:
            since = _time(failed.get("since"))
            seen = _("%(error)s (since %(since)s)", error=failed.get("error"), since=since)
        return self._of(one, "token", title, why, seen, result=Result.UNASKED, remedy=str(_ASK_AGAIN))

    def subscription(self, one: SenderFacts) -> Check:
        told = one.subscription.body or {}
        title = _("Our app gets the webhooks")
        why = _("Without it no tick, no answer and no STOP arrives.")
        waba = str(one.sender.get("waba_id"))
        if told.get("subscribed"):
            ours = [app for app in told["apps"] if told.get("app_id") in (None, app["app_id"])]
            seen = _("Account %(waba)s: %(apps)s", waba=waba, apps=", ".join(_app(app) for app in ours))
            return self._of(one, "subscription", title, why, seen)
        if told.get("subscribed") is False:
            return self._of(
                one,
                "subscription",
                title,
                why,
                _not_ours(waba, told),
                result=Result.FAILED,
                remedy=_("Subscribe the app to the account by the number’s token, or PUT it with the right app_id."),
                command=f'curl -X POST -H "Authorization: Bearer $TOKEN" https://graph.facebook.com/v25.0/{waba}/subscribed_apps',
            )
        seen = one.subscription.fault or _("Meta could not be asked with this token.")
        return self._of(one, "subscription", title, why, seen, result=Result.UNASKED, remedy=str(_ASK_AGAIN))

    def templates(self, one: SenderFacts) -> Check:
        title = _("Templates are read from Meta")
        why = _("A template that Meta paused or changed would be refused there.")
        if one.health.fault is not None:
            return self._of(one, "templates", title, why, one.health.fault, result=Result.UNASKED)
        sync = one.health.body["sync"]
        last, failed, synced_at = sync.get("last"), sync.get("failed"), sync.get("synced_at")
        if failed is not None:
            since = _time(failed["since"])
            seen = _("It has failed since %(since)s: %(error)s", since=since, error=failed["error"])
            remedy = _("Mend what Meta says, then “Sync now” at the number; until then what was read before stands.")
            return self._of(one, "templates", title, why, seen, result=Result.FAILED, remedy=remedy)
        if synced_at is None or last is None:
            remedy = _(
                "It comes within a minute of setting the number up; “Sync now” at the number tells what hinders it."
            )
            return self._of(one, "templates", title, why, _("Not yet."), result=Result.WARNING, remedy=remedy)
        seen = _templates_read(last, synced_at, self._facts.at)
        if last.get("incomplete"):
            remedy = _("Templates beyond that are not known here, and messages with them fail; tell the developers.")
            seen = _("%(read)s. %(why)s", read=seen, why=last["incomplete"])
            return self._of(one, "templates", title, why, seen, result=Result.WARNING, remedy=remedy)
        if self._facts.at - synced_at > SYNC_LATE:
            remedy = _("It is read every hour: see whether the dispatcher lives, or press “Sync now” at the number.")
            return self._of(one, "templates", title, why, seen, result=Result.WARNING, remedy=remedy)
        return self._of(one, "templates", title, why, seen)

    def stopped(self, one: SenderFacts) -> Check:
        title = _("What stops the number")
        why = _("What stops a number keeps its messages waiting, or rejects them.")
        if one.health.fault is not None:
            return self._of(one, "stopped", title, why, one.health.fault, result=Result.UNASKED)
        stops = one.health.body["stopped_by"]
        remedy = _("The number’s page says since when, until when, and has Resume and Sync.")
        hold = one.health.body.get("hold")
        is_broken = hold is not None and hold["cause"].get("code") in _BROKEN
        result = Result.FAILED if is_broken or any(stop["stops"] == "all" for stop in stops) else Result.WARNING
        if not stops and hold:
            # Its time is over, and it stands until a message shows whether its cause is gone.
            seen = _("The next message tries whether it still holds: %(hold)s", hold=hold["cause"]["detail"])
            return self._of(one, "stopped", title, why, seen, result=result, remedy=remedy)
        if not stops:
            return self._of(one, "stopped", title, why, _("Nothing: a message would go."))
        seen = "; ".join(str(stop["detail"]) for stop in stops)
        return self._of(one, "stopped", title, why, seen, result=result, remedy=remedy)

    def silence(self) -> Check:
        """What webhook-ingest's own watch says."""
        told = self._facts.silence
        title = _("Silent numbers")
        why = _("A number of which nothing is heard has lost its webhooks, not its messages.")
        if told.fault is not None:
            return self._check("silence", "messages", title, why, told.fault, result=Result.UNASKED)
        silent = told.body["items"]
        if not silent:
            seen = _("Of every number that sends, something is heard.")
            return self._check("silence", "messages", title, why, seen)
        return self._check(
            "silence",
            "messages",
            title,
            why,
            "; ".join(
                _("%(name)s since %(since)s", name=one["sender_id"], since=_time(one["since"])) for one in silent
            ),
            result=Result.FAILED,
            remedy=" ".join(dict.fromkeys(str(one["what_to_do"]) for one in silent)),
            link=f"{self._home}/webhooks",
        )

    def webhooks(self) -> Check:
        title, why = _("Webhooks come"), _("Ticks, answers and STOPs come by webhook and by nothing else.")
        stored = self._facts.stored
        if stored is None:
            return self._check("webhooks", "messages", title, why, _NO_DATABASE, result=Result.UNASKED)
        heard, taken = stored.webhook_at, stored.accepted_at
        last_one = _("The last one came %(when)s.", when=_when(heard, self._facts.at))
        seen = last_one if heard else _("None has come yet.")
        if taken is None or (heard is not None and heard >= taken):
            return self._check("webhooks", "messages", title, why, seen)
        if self._facts.at - taken <= WEBHOOK_LATE:
            return self._check("webhooks", "messages", title, why, seen)
        remedy = _(
            "Look at the subscription above, at the door’s address in Meta’s app settings, and for refused deliveries"
            " in the webhook log."
        )
        when = _when(taken, self._facts.at)
        seen = _("%(last)s Meta took a message %(when)s, and nothing came since.", last=seen, when=when)
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
        title = _("First receipts of what Meta took")
        why = _("Meta says “sent” within seconds; silence has a cause.")
        stored = self._facts.stored
        if stored is None:
            return self._check("receipts", "messages", title, why, _NO_DATABASE, result=Result.UNASKED)
        if stored.unheard is None:
            return self._check("receipts", "messages", title, why, _("None waits for its first receipt."))
        message_id, since = stored.unheard
        seen = ngettext(
            "%(num)s message waits for a first receipt; the oldest, %(oldest)s, was requested %(when)s.",
            "%(num)s messages wait for a first receipt; the oldest, %(oldest)s, was requested %(when)s.",
            stored.unheard_count,
            oldest=message_id,
            when=_when(since, self._facts.at),
        )
        age = self._facts.at - since
        if age <= RECEIPT_LATE:
            return self._check("receipts", "messages", title, why, seen)
        remedy = _(
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
        title, why = _("Dead letters"), _("A record that could not be read has had no effect.")
        stored = self._facts.stored
        if stored is None:
            return self._check("dead-letters", "messages", title, why, _NO_DATABASE, result=Result.UNASKED)
        if not stored.dead_letters:
            return self._check("dead-letters", "messages", title, why, _("None."))
        when = _when(stored.dead_letter_at, self._facts.at)
        if stored.dead_letters >= DEAD_LETTERS_COUNTED:
            count = decimal(stored.dead_letters)
            seen = _("At least %(count)s wait; the latest came %(when)s.", count=count, when=when)
        else:
            seen = ngettext(
                "%(num)s waits; it came %(when)s.",
                "%(num)s wait; the latest came %(when)s.",
                stored.dead_letters,
                when=when,
            )
        remedy = _(
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


# What doesn't pass by itself: it holds until somebody repairs it.
_BROKEN = frozenset({ReasonCode.SENDER_CREDENTIALS_REJECTED, ReasonCode.META_PAYMENT_ISSUE})
_NO_DATABASE = lazy("The log’s own database could not be asked.")
_ASK_AGAIN = lazy("Ask again in a minute; if it stays so, look at the dispatcher, and at Meta’s status page.")


def _failed_sync(one: SenderFacts) -> Mapping[str, Any] | None:
    failed: Mapping[str, Any] | None = (one.health.body or {}).get("sync", {}).get("failed")
    return failed


def _app(app: Mapping[str, Any]) -> str:
    name = _("app %(id)s", id=app["app_id"])
    if app.get("name"):
        name = _("app %(id)s (%(name)s)", id=app["app_id"], name=app["name"])
    if not app.get("override_url"):
        return name
    return _("%(app)s, which posts this account’s to %(address)s", app=name, address=app["override_url"])


def _not_ours(waba: str, told: Mapping[str, Any]) -> str:
    """Who is subscribed instead of our app."""
    others = ", ".join(_app(app) for app in told["apps"]) or _("no app at all")
    if not told.get("app_id"):
        return _("Account %(waba)s is subscribed by %(others)s, not by our app.", waba=waba, others=others)
    return _(
        "Account %(waba)s is subscribed by %(others)s, not by app %(app)s.",
        waba=waba,
        others=others,
        app=told["app_id"],
    )


def _templates_read(last: Mapping[str, Any], synced_at: datetime, now: datetime) -> str:
    """How many the last sync has read, and what was different then."""
    when = _when(synced_at, now)
    read = ngettext("%(num)s template read %(when)s", "%(num)s templates read %(when)s", last["templates"], when=when)
    if not last.get("changes"):
        return read
    found = ngettext(
        "%(num)s difference found %(when)s",
        "%(num)s differences found %(when)s",
        len(last["changes"]) + last.get("more", 0),
        when=_when(last.get("changed_at"), now),
    )
    return _("%(read)s; %(found)s", read=read, found=found)


def _time(moment: Any) -> str:
    return absolute(moment) if isinstance(moment, datetime) else _("an unknown time")


def _when(moment: Any, now: datetime) -> str:
    """As it is told, with the time and its zone."""
    if not isinstance(moment, datetime):
        return _("at an unknown time")
    return _("%(ago)s (%(time)s)", ago=ago(moment, now), time=absolute(moment))
