import pytest

from darts_kronos.components import network_order, positions


def test_candle_components_come_first_in_their_own_order():
    assert network_order(["funding", "Close", "OPEN", "volume", "low", "High", "basis"]) == [
        "open",
        "high",
        "low",
        "close",
        "volume",
        "funding",
        "basis",
    ]


@pytest.mark.parametrize("names", [["Close", "close"], ["a", "b", "a"]])
def test_when_two_names_are_one_then_both_are_named(names):
    with pytest.raises(ValueError, match="one name"):
        network_order(names)


def test_positions_match_by_name_in_any_order_and_case():
    assert positions(["Close", "x", "Open"], ["open", "close", "x"]) == [2, 0, 1]


@pytest.mark.parametrize(
    "names",
    [
        ["open", "close"],
        ["open", "close", "y"],
        ["open", "close", "x", "z"],
        ["open", "close", "X"],
    ],
)
def test_when_names_differ_then_both_are_named(names):
    with pytest.raises(ValueError, match=r"components.*the model needs"):
        positions(names, ["open", "close", "x"])


def test_a_single_component_that_is_no_candles_goes_by_any_name():
    assert positions(["passengers"], ["0"]) == [0]


@pytest.mark.parametrize(("name", "wanted"), [("volume", "close"), ("x", "close"), ("close", "x")])
def test_a_single_candle_component_is_matched_by_name(name, wanted):
    with pytest.raises(ValueError, match="the model needs"):
        positions([name], [wanted])
