"""The files that are read and written, and the bars that a run has seen."""

import json
from pathlib import Path

import pandas as pd
import pytest
from command_line import kronos, write_candles, write_config
from factories import candle_frame
from matplotlib.figure import Figure

from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.data import find_files, read


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The config of a finished run, trained on 96 of 160 bars and validated on the next 32."""
    folder = tmp_path_factory.mktemp("cli")
    write_candles(folder / "candles.csv")
    config = write_config(folder, training={"tokenizer_epochs": 1, "basemodel_epochs": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darts_kronos.cli.fit.plot_training", lambda *a, **k: Figure((1, 1)))
        done = kronos("fit", config)
    assert done.code == 0, done.err
    return config


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_zoned(path: Path, zone: str | None) -> Path:
    frame = candle_frame(160)
    frame.index = frame.index.tz_localize(zone)
    frame.to_csv(path, index_label="timestamps")
    return path


class TestTimeZones:
    def test_files_of_which_some_have_a_zone_are_refused_by_name(self, run, tmp_path):
        for name, zone in (("a", None), ("b", "UTC"), ("c", "Asia/Tokyo")):
            write_zoned(tmp_path / f"{name}.csv", zone)
        before = files_of(run.parent)
        new = write_config(tmp_path, data={"data_path": str(tmp_path / "*.csv")})
        for words in (
            ("fit", run, "--data.data_path", tmp_path, "--force"),
            ("fit", new),
            ("init", tmp_path),
        ):
            done = kronos(*words)
            assert done.code == 2 and "data.timezone" in done.err, done.err
            assert f"{tmp_path / 'a.csv'}: its" in done.err
            assert str(tmp_path / "b.csv") in done.err
        assert files_of(run.parent) == before and not (tmp_path / "runs").exists()
        data = ConfigFile(new, {"data.timezone": "America/New_York"}).config.data
        assert len(read(data)) == 3
        assert kronos("init", tmp_path / "b.csv", tmp_path / "c.csv").code == 0

    def test_what_fails_before_a_training_removes_no_run(self, run, monkeypatch):
        def fail():
            raise RuntimeError("no version")

        before = files_of(run.parent)
        assert run.parent / "runs" / "run" / "model.pt" in before
        monkeypatch.setattr("darts_kronos.cli.fit.environment", fail)
        assert kronos("fit", run, "--force").code == 1
        assert files_of(run.parent) == before


class TestFiles:
    def test_a_file_that_is_meant_twice_is_read_once(self, tmp_path):
        for seed, name in enumerate("ba"):
            write_candles(tmp_path / f"{name}.csv", seed=seed)
        (tmp_path / "c.csv").symlink_to(tmp_path / "a.csv")
        paths = ["b.csv", ".", "*.csv", "../" + tmp_path.name + "/a.csv", "b.csv"]
        found = find_files([str(tmp_path / path) for path in paths])
        assert [file.name for file in found] == ["b.csv", "a.csv"]

    def test_one_symbol_of_several_files_is_told_apart_by_them(self, tmp_path):
        for seed, name in enumerate(("2023", "2024")):
            frame = candle_frame(160, seed).assign(symbol="AAPL")
            frame.to_csv(tmp_path / f"{name}.csv", index_label="timestamps")
        other = candle_frame(160, 2).assign(symbol="MSFT")
        other.to_csv(tmp_path / "other.csv", index_label="timestamps")
        data = ConfigFile(write_config(tmp_path, data={"data_path": str(tmp_path)})).config.data
        symbols = [one.metadata["symbol"] for one in read(data)]
        assert symbols == ["AAPL (2023)", "AAPL (2024)", "MSFT"]

    @pytest.mark.parametrize(
        ("command", "option"),
        [("backtest", "--out"), ("forecast", "--out"), ("forecast", "--plot"), ("tune", "--out")],
    )
    def test_where_nothing_can_be_written_is_refused_first(self, tmp_path, command, option):
        config = write_config(tmp_path)
        ending = ".png" if option == "--plot" else ".csv"
        (tmp_path / f"folder{ending}").mkdir()
        for target, message in (
            (f"folder{ending}", "is a folder"),
            (f"kronos.yaml/new/file{ending}", "kronos.yaml is a file, and no folder"),
        ):
            # No run is here: that would be said next.
            done = kronos(command, config, option, tmp_path / target)
            assert done.code == 2 and f"{option}: {tmp_path / target}: " in done.err, done.err
            assert message in done.err


class TestBarsThatTheRunHasSeen:
    def test_other_ratios_do_not_measure_bars_of_the_training(self, run):
        done = kronos("backtest", run, "--data.train_ratio", 0.3, "--data.test_ratio", 0.5)
        assert done.code == 2, done.out
        assert "begins at 2024-02-02 18:00:00, but this run was trained on bars up" in done.err
        words = ("--data.train_ratio", 0.3, "--data.test_ratio", 0)
        done = kronos("backtest", run, *words)
        assert done.code == 2 and "the validation part begins at 2024-02-01" in done.err

    def test_bars_of_the_validation_are_warned_of(self, run):
        done = kronos("backtest", run, "--data.val_ratio", 0.1, "--data.test_ratio", 0.3)
        assert done.code == 0 and "the figures flatter it" in done.err, done.err
        assert "flatter" not in kronos("backtest", run).err
        assert kronos("backtest", run, "--data.test_ratio", 0).code == 0

    @pytest.mark.parametrize("name", ["candles.csv", "longer.csv"])
    def test_older_bars_that_were_added_move_no_part_into_the_training(self, run, tmp_path, name):
        frame = candle_frame(160)
        older = candle_frame(300, seed=1)
        older.index = frame.index[0] - pd.to_timedelta(range(300, 0, -1), "h")
        longer = tmp_path / name
        pd.concat([older, frame]).to_csv(longer, index_label="timestamps")
        done = kronos("backtest", run, "--data.data_path", longer)
        assert done.code == 2 and "trained on bars up to 2024-02-03T09:00:00" in done.err, done.err

    def test_adjusted_prices_of_the_same_file_are_known_by_its_path(self, run):
        path = run.parent / "candles.csv"
        kept = path.read_bytes()
        try:
            (candle_frame(160) * 2).to_csv(path, index_label="timestamps")
            done = kronos("backtest", run, "--data.train_ratio", 0.3, "--data.test_ratio", 0.5)
        finally:
            path.write_bytes(kept)
        assert done.code == 2 and "this run was trained on" in done.err

    def test_other_series_and_other_zones_may_be_measured(self, run, tmp_path):
        other = write_candles(tmp_path / "other.csv", seed=5)
        words = ("--data.train_ratio", 0.3, "--data.test_ratio", 0.5)
        done = kronos("backtest", run, "--data.data_path", other, *words)
        assert done.code == 0, done.err
        # The same file in a zone is the same by its name.
        done = kronos("backtest", run, "--data.timezone", "Asia/Tokyo", *words)
        assert done.code == 2 and "this run was trained on" in done.err

    def test_a_run_of_an_earlier_version_is_measured_unchecked(self, run):
        about = run.parent / "runs" / "run" / "run.json"
        kept = about.read_text()
        noted = json.loads(kept)
        assert noted["data"].pop("series")[0]["val_until"] == "2024-02-04T17:00:00"
        try:
            about.write_text(json.dumps(noted))
            done = kronos("backtest", run)
        finally:
            about.write_text(kept)
        assert done.code == 0 and "is not checked" in done.out
        assert "is not checked" not in kronos("backtest", run).out
