"""Files that are the user's own, and paths and text as users write them."""

import pytest
from command_line import kronos, write_candles, write_config

from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.data import read


@pytest.fixture
def folder(tmp_path):
    write_candles(tmp_path / "candles.csv")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["config.yaml", "metrics.csv", "train.log", "training/candles.csv"]
)
def test_a_run_does_not_remove_what_no_run_wrote(folder, name):
    own = folder / "mine" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    config = write_config(folder, model_paths={"base_save_path": str(folder / "mine")})
    done = kronos("fit", config)
    assert done.code == 2 and "no run that wrote it" in done.err
    assert own.read_text() == "mine"


def test_force_does_not_remove_what_the_run_reads(folder):
    mine = folder / "mine"
    (mine / "training").mkdir(parents=True)
    data = write_candles(mine / "training" / "candles.csv")
    paths = {"base_save_path": str(mine)}
    config = write_config(folder, model_paths=paths, data={"data_path": str(data)})
    done = kronos("fit", config, "--force")
    assert done.code == 2 and "candles.csv: this run would read" in done.err and data.exists()
    config = write_config(mine, "config.yaml", model_paths=paths)
    (mine / "candles.csv").write_bytes(data.read_bytes())
    before = config.read_text()
    done = kronos("fit", config, "--force")
    assert done.code == 2 and "config.yaml: this run would read" in done.err
    assert config.read_text() == before


def test_a_home_folder_may_be_meant(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    config = write_config(
        folder, data={"data_path": "~/candles.csv"}, model_paths={"base_path": "~/runs"}
    )
    assert ConfigFile(config).config.model_paths.base_save_path == str(folder / "runs" / "run")
    done = kronos("fit", config, "--training.epochs", "1")
    assert done.code == 0, done.err
    assert (folder / "runs" / "run" / "model.pt").exists()


def test_text_on_the_command_line_is_text(folder):
    given = {
        "data.time_format": "%Y-%m-%d %H:%M:%S",
        "data.data_path": "*.csv",
        "experiment.description": "a: b",
        "model_paths.exp_name": "2024_01",
        "data.timezone": "null",
        "data.lookback_window": "30",
    }
    config = ConfigFile(write_config(folder), given).config
    assert config.data.time_format == "%Y-%m-%d %H:%M:%S" and config.data.data_path == "*.csv"
    assert config.experiment.description == "a: b" and config.model_paths.exp_name == "2024_01"
    assert config.data.timezone is None and config.data.lookback_window == 30
    several = ConfigFile(write_config(folder), {"data.data_path": "[a.csv, b.csv]"}).config
    assert several.data.data_path == ["a.csv", "b.csv"]


def test_what_cannot_be_written_is_refused_before_paths_are_drawn(folder):
    config = write_config(folder)
    for words, message in (
        (("--plot", "p.foo"), "p.foo: the ending must be of"),
        (("--plot", "p"), "p: the ending must be of"),
        (("--quantiles", "0.5", "0.5"), "--quantiles must differ"),
    ):
        done = kronos("forecast", config, *words)
        assert done.code == 2 and message in done.err, done.err


def test_a_study_of_other_settings_names_the_key_of_another(folder):
    config = write_config(folder, training={"epochs": 1})
    words = ("tune", config, "--trials", 1, "--out", folder / "best.yaml", "--samples")
    assert kronos(*words, 4).code == 0
    done = kronos(*words, 5)
    assert done.code == 2 and "model_paths.exp_name: The study 'run' was begun" in done.err


def test_init_takes_no_keys_of_a_config(folder):
    done = kronos("init", folder / "candles.csv", "--data.sort", "true")
    assert done.code == 2 and "--data.sort is a key of configs" in done.err


def test_files_of_one_name_are_told_apart(folder):
    for seed, name in enumerate("AB"):
        (folder / name).mkdir()
        write_candles(folder / name / "2024.csv", seed=seed)
    config = write_config(folder, data={"data_path": str(folder / "*" / "2024.csv")})
    series = read(ConfigFile(config).config.data)
    assert [one.metadata["symbol"] for one in series] == ["A/2024", "B/2024"]
    done = kronos("fit", config)
    assert done.code == 0, done.err
    done = kronos("forecast", config, "--plot", folder / "p.png", "--out", folder / "o.csv")
    assert done.code == 0 and (folder / "p_A_2024.png").exists(), done.err
    assert (folder / "p_B_2024.png").exists()


def test_what_was_tuned_is_trained_in_a_folder_of_its_own(folder):
    paths = {"base_save_path": str(folder / "one")}
    config = write_config(folder, model_paths=paths, training={"epochs": 1})
    out = folder / "best.yaml"
    done = kronos("tune", config, "--trials", 1, "--samples", 4, "--out", out)
    assert done.code == 0, done.err
    assert ConfigFile(out).config.model_paths.base_save_path == str(folder / "one-tuned")
