"""The names of a candle's components, and how series in any order and case are matched by them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

PRICES = ("open", "high", "low", "close")
VOLUMES = ("volume", "amount")
CANDLE = PRICES + VOLUMES
"""The components of a candle, in the order in which the networks see them."""


def canonical(name: str) -> str:
    """`name` in lower case if it names a component of a candle, else as it is."""
    lowered = name.strip().lower()
    return lowered if lowered in CANDLE else name


def network_order(names: Iterable[str]) -> list[str]:
    """The order in which the networks see components of these names.

    Components of a candle come first, in the order of :data:`CANDLE`; others follow in their own.

    Raises
    ------
    ValueError
        If two names mean one component, such as "Close" and "close".
    """
    seen: dict[str, str] = {}
    for name in names:
        key = canonical(name)
        if key in seen:
            raise ValueError(
                f"The components {seen[key]!r} and {name!r} have one name; each must be unique."
            )
        seen[key] = name
    candle = [name for name in CANDLE if name in seen]
    return candle + [name for name in seen if name not in CANDLE]


def positions(names: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where in `names` each of the `wanted` components stands.

    A single component that is none of a candle's goes by any such name: it cannot be mistaken.

    Raises
    ------
    ValueError
        If the names are not the wanted ones; the message names both.
    """
    own = [canonical(name) for name in names]
    if len(own) == len(wanted) == 1 and not {own[0], wanted[0]} & set(CANDLE):
        return [0]
    if sorted(own) != sorted(wanted):
        raise ValueError(
            f"The series has the components {list(names)}; the model needs {list(wanted)}, in any "
            f"order (candle components in any case)."
        )
    return [own.index(name) for name in wanted]


def given_components(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Which of the `wanted` components series with these `names` give, in the networks' order.

    Networks of whole candles also take series without volume or amount.

    Raises
    ------
    ValueError
        If a price is missing, or another component is among the names; the message names both.
    """
    order = network_order(names)
    if list(wanted) == list(CANDLE) and set(PRICES) <= set(order) <= set(CANDLE):
        return order
    positions(names, wanted)
    return list(wanted)


def told_apart(names: Iterable[str], before_count: str) -> list[str]:
    """Names of which each is there once: the second of a name has a 2 behind `before_count`."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}{before_count}{seen[name]}")
    return found


def has_prices(names: Iterable[str]) -> bool:
    """Whether open, high, low and close are all among `names`."""
    return set(PRICES) <= {canonical(name) for name in names}
