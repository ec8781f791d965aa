"""Values: what is made by the dozen for each message on its way."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value_class(kind: type[T]) -> type[T]:
    """A dataclass that nobody changes once it is made, which the type checker sees to.

    At run time nothing holds it: `frozen=True` sets each field by way of `object.__setattr__`, which makes a value of
    eight fields take five times as long.
    """
    return dataclass(slots=True, unsafe_hash=True)(kind)
