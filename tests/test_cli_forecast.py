"""What ``darts-kronos forecast`` refuses before it reads a model, and names of its pictures."""

import pytest
from command_line import kronos, write_config
from factories import candles

from darts_kronos.cli import forecast


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--quantiles", 0.05, 0.0501), "must differ, to three digits"),
        (("--out", "f.xlsx"), "f.xlsx: the ending must be one of .csv, .parquet, .pq"),
    ],
)
def test_what_could_not_be_written_is_refused_at_once(tmp_path, words, message):
    done = kronos("forecast", write_config(tmp_path), *words)
    assert done.code == 2 and message in done.err


def test_pictures_of_one_symbol_have_names_of_their_own(tmp_path):
    symbols = ["AAPL", "AAPL", "a/b", "a_b"]
    series = [
        candles(40, seed=seed).with_metadata({"symbol": symbol})
        for seed, symbol in enumerate(symbols)
    ]
    paths = [one[-6:] for one in series]
    forecast._draw(str(tmp_path / "p.png"), [one[:-6] for one in series], paths, 24)
    names = ["p_AAPL.png", "p_AAPL_2.png", "p_a_b.png", "p_a_b_2.png"]
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(names)
