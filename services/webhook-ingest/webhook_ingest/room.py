"""How much the door takes in at once, so that no flood and no slow sender makes its memory grow."""

from collections.abc import Callable
from dataclasses import dataclass

# Nobody is turned out before: a body that comes with its head, or soon after, is there by then.
PATIENCE_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class Place:
    """One delivery inside. `give_up` ends its reading; None once all of its body is here."""

    size: int
    since: float
    give_up: Callable[[], None] | None
    is_out: bool = False


class Room:
    """Deliveries inside: bodies that are still coming, with all bytes that they announce, and bodies that wait.

    When it is full, whoever has been sending for longest gives way to who comes: else a few that never finish would
    keep everybody out. A delivery whose body is here is never turned out.
    """

    def __init__(self, places_max: int, bytes_max: int) -> None:
        self._places_max, self._bytes_max = places_max, bytes_max
        self.places, self.bytes = 0, 0
        self._coming: dict[Place, None] = {}

    def enter(self, size: int, now: float, give_up: Callable[[], None]) -> Place | None:
        """A place for a delivery that announces `size` bytes, or None: there is no room."""
        if not self._make_room(1, size, now):
            return None
        place = Place(size, now, give_up)
        self._coming[place] = None
        self.places += 1
        self.bytes += size
        return place

    def admit(self, size: int, now: float) -> bool:
        """Whether there is room for a delivery that is here as a whole; it leaves by `release`."""
        if not self._make_room(1, size, now):
            return False
        self.places += 1
        self.bytes += size
        return True

    def release(self, size: int) -> None:
        self.places -= 1
        self.bytes -= size

    def grow(self, place: Place, size: int, now: float) -> bool:
        """Whether a body that announced nothing may go on to `size` bytes."""
        more = size - place.size
        if place.is_out or more <= 0:
            return not place.is_out
        if not self._make_room(0, more, now, asking=place):
            return False
        place.size += more
        self.bytes += more
        return True

    def arrived(self, place: Place, size: int) -> None:
        """All of the body is here; it was `size` bytes."""
        if place.is_out:
            return
        self._coming.pop(place, None)
        place.give_up = None
        self.bytes += size - place.size
        place.size = size

    def leave(self, place: Place) -> None:
        """May be called again, also after having been turned out."""
        if place.is_out:
            return
        place.is_out = True
        self._coming.pop(place, None)
        self.places -= 1
        self.bytes -= place.size

    def _make_room(self, places: int, size: int, now: float, asking: Place | None = None) -> bool:
        while self.places + places > self._places_max or self.bytes + size > self._bytes_max:
            slowest = next((place for place in self._coming if place is not asking), None)
            if slowest is None or now - slowest.since < PATIENCE_SECONDS:
                return False
            self.leave(slowest)
            if slowest.give_up is not None:
                slowest.give_up()
        return True
