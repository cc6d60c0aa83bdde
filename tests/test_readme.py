"""The README's recipes, run as they stand."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from darts import TimeSeries
from factories import COMPONENTS, candles

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture(scope="module")
def found():
    code = re.search(r"^```python recipes\n(.*?)^```", README, re.M | re.S).group(1)
    series = candles(50, freq=None)
    last = series["close"].last_value()
    # Two paths of three bars whose measures are known: one rises, one falls and comes back.
    close = last * np.array([[1.1, 0.8], [1.2, 0.6], [1.3, 0.9]])
    values = np.repeat(close[:, None], 6, axis=1)
    values[:, 1] = close + 0.05 * last
    paths = TimeSeries.from_times_and_values(pd.RangeIndex(50, 53), values, columns=COMPONENTS)
    names = {"paths": paths, "series": series, "level": 1.32 * last}
    exec(code, names)
    return names


def test_probabilities(found):
    assert found["above"] == 0.0
    assert found["touched"] == 0.5


def test_drawdown_and_value_at_risk(found):
    assert found["drawdown"] == pytest.approx(0.4 / 2)
    assert found["value_at_risk"] == pytest.approx(-np.quantile([0.3, -0.1], 0.05))
    assert found["expected_shortfall"] == pytest.approx(0.1)


def test_realised_volatility(found):
    steps = np.log([[1.1, 0.8], [1.2 / 1.1, 0.6 / 0.8], [1.3 / 1.2, 0.9 / 0.6]])
    np.testing.assert_allclose(found["volatility"], np.sqrt((steps**2).sum(axis=0)))
