"""What happens to accounts, numbers and templates, and the webhooks that tell it."""

import time

from meta_simulator.bodies import Template, TemplatePatch
from meta_simulator.errors import Json
from meta_simulator.world import Line, World

# Since October 2025 a portfolio's steps.
STEPS = (250, 2_000, 10_000, 100_000)
HIGH_THROUGHPUT = 1000
PAUSED_INFO = {"title": "FIRST_PAUSE", "description": "Paused for three hours after low quality feedback."}
UNPAUSED_INFO = {"title": "UNPAUSE", "description": "The pause is over."}
DISABLED_INFO = {"title": "DISABLED", "description": "Paused too often."}


# Templates


def change_template(world: World, waba_id: str, template: Template, patch: TemplatePatch) -> None:
    if patch.category and patch.category != template.category:
        value = _of(template) | {"previous_category": template.category, "new_category": patch.category}
        template.category = patch.category
        world.tell_account(waba_id, "template_category_update", value)
    if patch.quality_score:
        tell_quality(world, waba_id, template, patch.quality_score)
    if patch.status:
        event = patch.status.upper()
        template.status = {"UNPAUSE": "APPROVED", "REINSTATED": "APPROVED"}.get(event, event)
        template.rejected_reason = (patch.reason or "NONE") if event == "REJECTED" else "NONE"
        tell_template(world, waba_id, template, event, reason=patch.reason)


def tell_template(
    world: World, waba_id: str, template: Template, event: str, *, reason: str | None = None, info: Json | None = None
) -> None:
    value: Json = {
        "event": event,
        **_of(template),
        "reason": reason or "NONE",
        "message_template_category": template.category,
    }
    if info or event == "PAUSED":
        value["other_info"] = info or PAUSED_INFO
    if event == "DISABLED":
        value["disable_info"] = {"disable_date": int(time.time())}
    if reason == "INVALID_FORMAT":
        value["rejection_info"] = {
            "reason": "Two placeholders stand side by side.",
            "recommendation": "Put words between them.",
        }
    world.tell_account(waba_id, "message_template_status_update", value)


def tell_quality(world: World, waba_id: str, template: Template, score: str) -> None:
    value = {"previous_quality_score": template.quality_score, "new_quality_score": score, **_of(template)}
    template.quality_score = score
    world.tell_account(waba_id, "message_template_quality_update", value)


def notify_of_category(world: World, waba_id: str, template: Template, coming: str, at: float) -> None:
    """The advance notice: `new_category` is still the present one."""
    notice = {
        "new_category": template.category,
        "correct_category": coming,
        "category_update_timestamp": int(at),
    }
    world.tell_account(waba_id, "template_category_update", _of(template) | notice)


def _of(template: Template) -> Json:
    return {
        "message_template_id": int(template.id),
        "message_template_name": template.name,
        "message_template_language": template.language,
    }


# Limits


def portfolio_of(world: World, line: Line) -> str:
    return world.account_of(line).portfolio_id or line.number.waba_id


def change_limit(world: World, portfolio: str, limit: int | None) -> None:
    """The same limit for every account of the portfolio, each of which is told."""
    for waba_id, account in list(world.accounts.items()):
        if (account.portfolio_id or waba_id) == portfolio:
            world.set_account(waba_id, account.model_copy(update={"messaging_limit": limit}))


def next_step(limit: int | None) -> int | None:
    return next((step for step in STEPS if limit is not None and step > limit), None)


def tier(limit: int | None) -> str:
    if limit is None:
        return "TIER_UNLIMITED"
    return f"TIER_{limit // 1000}K" if limit % 1000 == 0 else f"TIER_{limit}"


# Account and number


def tell_of_restriction(world: World, waba_id: str, expiration: int) -> None:
    world.tell_account(
        waba_id, "account_update", {"event": "ACCOUNT_VIOLATION", "violation_info": {"violation_type": "ALCOHOL"}}
    )
    restrictions = [
        {
            "restriction_type": "RESTRICTED_BIZ_INITIATED_MESSAGING",
            "expiration": expiration,
            "remediation": "Review your messaging practices.",
        },
        {"restriction_type": "RESTRICTED_ADD_PHONE_NUMBER_ACTION", "expiration": expiration},
    ]
    world.tell_account(waba_id, "account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": restrictions})


def tell_of_ban(world: World, waba_id: str, state: str) -> None:
    date = time.strftime("%B %d, %Y", time.gmtime())
    value = {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": state, "waba_ban_date": date}}
    world.tell_account(waba_id, "account_update", value)


def upgrade_throughput(world: World, line: Line) -> None:
    world.set_number(line.id, line.number.model_copy(update={"messages_per_second": HIGH_THROUGHPUT}))
    limit = tier(world.account_of(line).messaging_limit)
    value = {
        "display_phone_number": line.display,
        "event": "THROUGHPUT_UPGRADE",
        "current_limit": limit,
        "max_daily_conversations_per_business": limit,
    }
    world.tell_account(line.number.waba_id, "phone_number_quality_update", value)
