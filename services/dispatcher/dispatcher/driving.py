"""What a replica tells the others of the numbers that it drives, and when. Pure.

Health shows it, an expired message is explained by it (what kept it waiting), and a number's pace is told by it. What
nobody told of for `IS_NEWS` tells of nobody; who sends is told of often enough that `BUSY_IS_NEWS` holds.
"""

from datetime import timedelta

from sendwhy.values import value_class

from dispatcher.rests import Series

IS_NEWS = timedelta(seconds=60)
BUSY_IS_NEWS = timedelta(seconds=20)
BUSY_SECONDS = 5.0
IDLE_SECONDS = 45.0


@value_class
class Doing:
    """What one number does: calls in the last 60 s, and the rest that it keeps, if it does."""

    sent_last_minute: int
    rest: Series | None = None


@value_class
class Told:
    doing: Doing
    at: float


def is_to_be_told(told: Told | None, doing: Doing, now: float) -> bool:
    """A rest at once, since a message may expire in it; other changes, and that a number still sends, every 5 s; that
    nothing goes on, before others would take its driver for gone."""
    if told is None or told.doing.rest != doing.rest:
        return True
    is_idle = not doing.sent_last_minute and told.doing == doing
    return now - told.at >= (IDLE_SECONDS if is_idle else BUSY_SECONDS)
