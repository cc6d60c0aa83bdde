"""Runs and the data they were trained on: what is read, and what a run's own bars forbid."""

from pathlib import Path

import pytest
from command_line import kronos, write_candles, write_config
from factories import candle_frame
from matplotlib.figure import Figure

from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.data import read


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
