"""How much the door takes in at once: pure."""

from hypothesis import given
from hypothesis import strategies as st
from webhook_ingest.room import PATIENCE_SECONDS, Place, Room

LATER = PATIENCE_SECONDS + 1


class Guests:
    """Deliveries in a room, by name, and who was turned out."""

    def __init__(self, places: int, size: int) -> None:
        self.room = Room(places, size)
        self.places: dict[str, Place] = {}
        self.out: list[str] = []

    def enter(self, name: str, size: int = 1, now: float = 0) -> bool:
        place = self.room.enter(size, now, lambda: self.out.append(name))
        if place is not None:
            self.places[name] = place
        return place is not None


def test_a_full_room_takes_nobody() -> None:
    guests = Guests(2, 100)
    assert [guests.enter(name) for name in "abc"] == [True, True, False]
    guests.room.leave(guests.places["a"])
    assert guests.enter("c")


def test_bytes_are_counted_as_announced() -> None:
    guests = Guests(10, 100)
    assert [guests.enter("a", 60), guests.enter("b", 41), guests.enter("c", 40)] == [True, False, True]


def test_whoever_has_been_sending_for_longest_makes_room() -> None:
    guests = Guests(3, 100)
    for name in "abc":
        assert guests.enter(name)
    guests.room.arrived(guests.places["a"], 1)
    assert guests.enter("d", now=LATER)
    assert guests.out == ["b"]
    assert guests.enter("e", size=98, now=LATER)
    assert guests.out == ["b", "c"]


def test_nobody_is_turned_out_who_has_just_come_or_is_all_here() -> None:
    guests = Guests(2, 100)
    assert guests.enter("a", now=0)
    assert guests.enter("b", now=LATER)
    guests.room.arrived(guests.places["a"], 1)
    assert not guests.enter("c", now=LATER + PATIENCE_SECONDS / 2)
    assert guests.out == []


def test_a_body_of_unknown_length_grows_as_far_as_there_is_room() -> None:
    guests = Guests(3, 100)
    assert guests.enter("a", 10)
    assert guests.enter("b", 40)
    assert guests.room.grow(guests.places["a"], 60, 0)
    assert guests.room.grow(guests.places["a"], 20, 0)
    assert not guests.room.grow(guests.places["a"], 61, 0)
    # Not even its own place, which is the oldest, makes room for it.
    assert guests.room.grow(guests.places["a"], 61, LATER)
    assert guests.out == ["b"]
    assert not guests.room.grow(guests.places["a"], 101, LATER)


def test_whoever_was_turned_out_counts_no_more_even_if_all_of_it_comes_at_that_moment() -> None:
    guests = Guests(1, 100)
    assert guests.enter("a", 10)
    assert guests.enter("b", 20, now=LATER)
    assert not guests.room.grow(guests.places["a"], 30, LATER)
    guests.room.arrived(guests.places["a"], 5)
    guests.room.leave(guests.places["a"])
    assert (guests.room.places, guests.room.bytes) == (1, 20)


def test_what_is_here_as_a_whole_counts_and_makes_room_like_all_else() -> None:
    guests = Guests(2, 100)
    assert guests.room.admit(60, 0)
    assert guests.enter("a", 40)
    assert not guests.room.admit(1, 0)
    assert guests.room.admit(40, LATER)
    assert guests.out == ["a"]
    assert not guests.enter("b", 1, LATER * 2)
    guests.room.release(60)
    guests.room.release(40)
    assert (guests.room.places, guests.room.bytes) == (0, 0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["enter", "grow", "arrived", "leave"]), st.integers(0, 9), st.integers(0, 60))
)


@given(STEPS)
def test_what_is_inside_is_what_is_counted_and_never_too_much(steps: list[tuple[str, int, int]]) -> None:
    guests = Guests(5, 100)
    for now, (act, number, size) in enumerate(steps):
        name = str(number)
        place = guests.places.get(name)
        if act == "enter" and place is None:
            guests.enter(name, size, now)
        elif place is not None and name not in guests.out:
            if act == "grow":
                guests.room.grow(place, size, now)
            elif act == "arrived":
                guests.room.arrived(place, min(size, place.size))
            else:
                guests.room.leave(guests.places.pop(name))
        inside = [place for name, place in guests.places.items() if name not in guests.out]
        assert (guests.room.places, guests.room.bytes) == (len(inside), sum(place.size for place in inside))
        assert guests.room.places <= 5
        assert guests.room.bytes <= 100
        guests.places = {name: place for name, place in guests.places.items() if name not in guests.out}
        guests.out.clear()
