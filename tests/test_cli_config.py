"""Configs, errors and exit codes of the command line."""

import re
from pathlib import Path

import pytest
import yaml
from command_line import ORIGINAL, ROOT, kronos, write_candles, write_config
from factories import candle_frame

from darts_kronos.cli.config_file import ConfigFile, dump
from darts_kronos.cli.data import read, split
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import sections
from darts_kronos.cli.plan import first_of, make
from darts_kronos.cli.run_folder import RunFolder


@pytest.fixture
def folder(tmp_path):
    write_candles(tmp_path / "candles.csv")
    return tmp_path


def original(folder, **replaced):
    path = folder / "original.yaml"
    text = ORIGINAL.format(folder=folder)
    for old, new in replaced.values():
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return ConfigFile(path)


def plan(file):
    return make(file.config, split(read(file.config.data), file.config.data), show_progress=False)


class TestOriginalConfigs:
    def test_its_keys_become_parameters(self, folder):
        made = plan(original(folder))
        given = made.model
        assert given["input_chunk_length"] == 24 and given["output_chunk_length"] == 6
        assert given["max_context"] == 24 and given["clip"] == 5.0
        assert given["n_epochs_tokenizer"] == 3 and given["n_epochs"] == 2
        assert given["random_state"] == 42
        assert given["tokenizer_optimizer_kwargs"] == {
            "lr": 2e-4,
            "betas": (0.85, 0.95),
            "weight_decay": 0.2,
        }
        assert given["optimizer_kwargs"]["lr"] == 1e-6

    def test_accumulation_splits_a_batch(self, folder):
        given = plan(original(folder)).model
        assert given["batch_size"] == given["tokenizer_batch_size"] == 13
        assert given["pl_trainer_kwargs"]["accumulate_grad_batches"] == 4

    def test_what_has_no_effect_is_named_and_a_missing_gpu_warned_of(self, folder, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        made = plan(original(folder))
        assert len(made.notices) == 1 and "use_comet" in made.notices[0]
        assert len(made.warnings) == 1 and "use_cuda" in made.warnings[0]
        assert made.model["pl_trainer_kwargs"]["accelerator"] == "cpu"

    def test_empty_paths_follow_from_the_others(self, folder):
        run = RunFolder(original(folder).config.model_paths)
        assert run.path == folder / "finetuned" / "HK_5min"
        assert run.tokenizer == run.path / "tokenizer" / "best_model"
        assert run.predictor == run.path / "basemodel" / "best_model"

    def test_templates_are_filled_in(self, folder):
        file = original(folder, a=('base_save_path: ""', 'base_save_path: "x/{exp_name}/y"'))
        paths = file.config.model_paths
        assert paths.base_save_path == "x/HK_5min/y"
        assert paths.finetuned_tokenizer == "x/HK_5min/y/tokenizer/best_model"

    def test_epochs_stand_in_for_those_of_a_stage(self, folder):
        file = original(folder, a=("  tokenizer_epochs: 3\n", "  epochs: 7\n"))
        given = plan(file).model
        assert given["n_epochs_tokenizer"] == 7 and given["n_epochs"] == 2

    def test_a_tokenizer_that_is_not_trained_must_be_there(self, folder):
        file = original(folder, a=("train_tokenizer: true", "train_tokenizer: false"))
        done = kronos("fit", file.path)
        assert done.code == 2 and "there is no tokenizer" in done.err
        assert not (folder / "finetuned").exists()


class TestConfigErrors:
    def complain(self, folder, text):
        path = folder / "k.yaml"
        path.write_text(text)
        with pytest.raises(UsageError) as caught:
            ConfigFile(path)
        return str(caught.value).replace(f"{folder}/", "")

    def test_an_unknown_key_has_its_line_and_the_nearest_name(self, tmp_path):
        said = self.complain(tmp_path, "data:\n  data_path: a.csv\n\n  lookbak_window: 12\n")
        assert said.startswith("k.yaml:4: ") and "data.lookback_window?" in said

    def test_an_unknown_section_too(self, tmp_path):
        said = self.complain(tmp_path, "data: {data_path: a}\ntrainin:\n  epochs: 2\n")
        assert said.startswith("k.yaml:2: ") and "did you mean training?" in said

    def test_a_key_of_another_section_is_sent_there(self, tmp_path):
        said = self.complain(tmp_path, "data:\n  data_path: a\n  batch_size: 2\n")
        assert said.startswith("k.yaml:3: ") and "training.batch_size?" in said

    def test_all_complaints_come_at_once_in_the_order_of_the_file(self, tmp_path):
        said = self.complain(
            tmp_path, "data:\n  data_path: a\n  clip: high\ntraining:\n  epochs: 0\n  seed: true\n"
        )
        assert [line.split(": ")[0] for line in said.splitlines()] == [
            f"k.yaml:{number}" for number in (3, 5, 6)
        ]

    @pytest.mark.parametrize(
        ("text", "line", "what"),
        [
            ("data:\n  data_path: a\n  train_ratio: 0.9\n  val_ratio: 0.2\n", 1, "at most 1"),
            ("data: {data_path: a}\ndata: {}\n", 2, "given twice"),
            ("data:\n  data_path: ''\n", 2, "must not be empty"),
            ("data:\n  data_path: [a\n", 3, "not valid YAML"),
        ],
    )
    def test_what_is_wrong_has_its_line(self, tmp_path, text, line, what):
        said = self.complain(tmp_path, text)
        assert said.startswith(f"k.yaml:{line}: ") and what in said

    def test_the_data_must_be_named(self, tmp_path):
        assert "data.data_path is missing" in self.complain(tmp_path, "training: {epochs: 1}\n")
        assert "sections" in self.complain(tmp_path, "")

    def test_what_the_model_refuses_is_blamed_on_its_key(self, folder):
        path = write_config(folder, model={"d_model": 17})
        done = kronos("fit", path)
        line = 1 + path.read_text().splitlines().index("  d_model: 17")
        assert done.code == 2 and f"kronos.yaml:{line}: model.d_model: " in done.err
        assert "Traceback" not in done.err and not (folder / "runs").exists()

    def test_numbers_as_yaml_1_2_writes_them_are_numbers(self, folder):
        path = folder / "k.yaml"
        path.write_text("data: {data_path: a}\ntraining: {predictor_learning_rate: 1e-3}\n")
        assert ConfigFile(path).config.training.predictor_learning_rate == 1e-3


class TestCommandLine:
    def test_every_key_can_be_set(self, folder):
        path = write_config(folder)
        for section, keys in sections().items():
            assert keys.model_fields
            for key in keys.model_fields:
                # A value that no key takes: the complaint shows that the option was read.
                done = kronos("fit", path, f"--{section}.{key}", "{a: 1}")
                assert done.code == 2 and f"--{section}.{key}: " in done.err, done.err

    def test_it_wins_over_the_file(self, folder):
        file = ConfigFile(write_config(folder), {"data.lookback_window": "30"})
        assert file.config.data.lookback_window == 30
        assert file.at("data", "lookback_window") == "--data.lookback_window"

    def test_an_unknown_option_has_the_nearest_name(self, folder):
        done = kronos("fit", write_config(folder), "--data.lookbak_window", "3")
        assert done.code == 2 and "did you mean --data.lookback_window?" in done.err

    @pytest.mark.parametrize(
        "words", [(), ("fitt",), ("fit",), ("forecast", "x", "--horizon", "b")]
    )
    def test_bad_usage_exits_with_2(self, words):
        done = kronos(*words)
        assert done.code == 2 and "usage: darts-kronos" in done.err

    def test_a_traceback_is_printed_for_debug_only(self, tmp_path):
        for words, shown in (((), False), (("--debug",), True)):
            done = kronos("fit", tmp_path / "none.yaml", *words)
            assert done.code == 2 and "none.yaml: the config cannot be read" in done.err
            assert ("Traceback" in done.err) == shown

    def test_what_fails_unforeseen_exits_with_1_and_a_line(self, folder, monkeypatch):
        def fail(*args):
            raise RuntimeError("out of luck")

        monkeypatch.setattr("darts_kronos.cli.fit.split", fail)
        done = kronos("fit", write_config(folder))
        assert done.code == 1 and "out of luck" in done.err and "Traceback" not in done.err


class TestData:
    @pytest.mark.parametrize(
        ("spoil", "what"),
        [
            (lambda frame: frame.drop(columns="close"), "close"),
            (lambda frame: frame[:0], "no rows"),
            (lambda frame: frame[:40], "too few bars"),
        ],
    )
    def test_candles_that_do_not_do_are_named(self, folder, spoil, what):
        path = folder / "candles.csv"
        spoil(candle_frame(160)).to_csv(path, index_label="timestamps")
        done = kronos("fit", write_config(folder))
        assert done.code == 2 and what in done.err and "Traceback" not in done.err
        if what != "too few bars":
            assert str(path) in done.err
        assert not (folder / "runs").exists()

    def test_an_empty_file_is_named(self, folder):
        (folder / "candles.csv").write_text("")
        done = kronos("fit", write_config(folder))
        assert done.code == 2 and f"{folder / 'candles.csv'}: the file is empty" in done.err

    def test_a_missing_file_is_named(self, tmp_path):
        done = kronos("fit", write_config(tmp_path))
        assert done.code == 2 and "candles.csv: there is no such file" in done.err

    def test_a_folder_and_a_pattern_are_read_in_order_with_names(self, tmp_path):
        for seed, name in enumerate(("b", "a")):
            write_candles(tmp_path / f"{name}.csv", seed=seed)
        for path in (str(tmp_path), str(tmp_path / "*.csv")):
            file = ConfigFile(write_config(tmp_path, data={"data_path": path}))
            series = read(file.config.data)
            assert [one.metadata["symbol"] for one in series] == ["a", "b"]

    def test_parts_follow_each_other_and_share_no_forecast_bar(self, folder):
        data = ConfigFile(write_config(folder)).config.data
        (whole,) = read(data)
        parts = split([whole], data)
        assert len(parts.train[0]) == 96 and parts.n_val == parts.n_test == 32
        assert parts.train[0].end_time() == whole.time_index[95]
        # Too short for windows of its own: the context is borrowed, the forecasts are not.
        assert parts.val_borrows and parts.val[0].start_time() == whole.time_index[96 - 24]
        assert parts.val[0].end_time() == whole.time_index[127]
        assert parts.test[0].start_time() == whole.time_index[128 - 24]
        assert parts.test[0].end_time() == whole.time_index[159]

    def test_validation_windows_that_suffice_see_no_training_bar(self, tmp_path):
        write_candles(tmp_path / "candles.csv", bars=400)
        data = ConfigFile(write_config(tmp_path)).config.data
        parts = split(read(data), data)
        assert not parts.val_borrows
        assert parts.val[0].start_time() > parts.train[0].end_time()

    def test_a_test_ratio_of_0_leaves_no_test_part(self, folder):
        data = ConfigFile(write_config(folder, data={"test_ratio": 0})).config.data
        parts = split(read(data), data)
        assert parts.test == [] and parts.n_test == 0


class TestInit:
    def test_its_config_fits_the_file(self, folder):
        done = kronos("init", write_candles(folder / "candles.csv", bars=400))
        assert done.code == 0
        path = folder / "new.yaml"
        path.write_text(done.out)
        file = ConfigFile(path)
        assert file.config.data.data_path == str(folder / "candles.csv")
        made = plan(file)
        assert made.model["input_chunk_length"] == 16
        assert file.config.model_paths.exp_name == "candles"

    def test_all_keys_are_written_with_what_they_mean(self):
        done = kronos("init", "--all")
        assert done.code == 0
        for section, keys in sections().items():
            assert f"{section}:" in done.out
            for key, field in keys.model_fields.items():
                assert f"  # {key}: " in done.out and field.description

    def test_what_is_written_out_in_full_is_read_as_the_same(self, folder):
        file = ConfigFile(write_config(folder))
        kept = folder / "kept.yaml"
        kept.write_text(dump(file.config))
        assert ConfigFile(kept).config == file.config
        assert yaml.safe_load(kept.read_text())["data"]["lookback_window"] == 24

    def test_a_file_of_few_bars_is_refused(self, tmp_path):
        done = kronos("init", write_candles(tmp_path / "few.csv", bars=30))
        assert done.code == 2 and "too few" in done.err and done.out == ""


class TestTutorial:
    """examples/README.md and its Chinese version."""

    def blocks(self, name):
        text = (ROOT / "examples" / name).read_text(encoding="utf-8")
        return re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S)

    def test_both_languages_show_the_same(self):
        assert self.blocks("README.md") == self.blocks("README.zh.md")

    def test_the_config_is_what_init_writes(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        kinds = self.blocks("README.md")
        script = re.search(r"python - <<'END'\n(.*?)^END", kinds[0][1], re.M | re.S)[1]
        exec(script, {})
        assert (tmp_path / "aapl.csv").read_text().startswith(kinds[1][1])
        shown = next(text for kind, text in kinds if kind == "yaml")
        assert kronos("init", "aapl.csv").out.startswith(shown)

    def test_the_misspelt_key_is_refused_as_shown(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Path("wrong.yaml").write_text("data:\n  data_path: aapl.csv\n  lookbak_window: 64\n")
        said = kronos("fit", "wrong.yaml").err
        assert ("text", said) in self.blocks("README.md")


def test_torchrun_says_how_many_processes_there_are(folder, monkeypatch):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "LOCAL_WORLD_SIZE": "2",
        "WORLD_SIZE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    given = plan(ConfigFile(write_config(folder))).model["pl_trainer_kwargs"]
    assert (given["devices"], given["num_nodes"], given["strategy"]) == (2, 2, "ddp")


def test_a_strategy_that_cannot_log_is_refused(folder):
    done = kronos("fit", write_config(folder, trainer={"strategy": "ddp_spawn", "devices": 2}))
    assert done.code == 2 and "ddp_spawn" in done.err


class TestWeightsInTheRunsOwnFolder:
    def own(self, folder, train_tokenizer):
        """A run whose tokenizer starts from its own folder."""
        run = folder / "runs" / "run" / "tokenizer" / "best_model"
        run.mkdir(parents=True)
        (run / "config.json").write_text("{}")
        path = write_config(
            folder,
            model_paths={"pretrained_tokenizer": str(run)},
            experiment={"train_tokenizer": train_tokenizer},
        )
        return RunFolder(ConfigFile(path).config.model_paths), ConfigFile(path).config, run

    def test_they_stay_where_they_are_not_trained(self, folder):
        run, config, tokenizer = self.own(folder, train_tokenizer=False)
        run.predictor.mkdir(parents=True)
        run.clear(config, [str(tokenizer)])
        assert (tokenizer / "config.json").exists() and not run.predictor.exists()

    def test_they_are_not_written_over(self, folder):
        run, config, tokenizer = self.own(folder, train_tokenizer=True)
        with pytest.raises(UsageError, match="would start from the weights here"):
            run.clear(config, [str(tokenizer)])
        done = kronos("fit", folder / "kronos.yaml", "--force")
        assert done.code == 2 and (tokenizer / "config.json").exists()


def test_weights_to_start_from_need_fewer_epochs(folder):
    whole = {"data": {"train_ratio": 0.8, "val_ratio": 0.2, "test_ratio": 0.0}}
    epochs = {"training": {"basemodel_epochs": None}}
    new = plan(ConfigFile(write_config(folder, "new.yaml", **whole, **epochs)))
    paths = {"model_paths": {"pretrained_predictor": "NeoQuasar/Kronos-mini"}}
    tuned = plan(ConfigFile(write_config(folder, "tuned.yaml", **whole, **epochs, **paths)))
    assert tuned.model["n_epochs"] < new.model["n_epochs"]


@pytest.mark.parametrize(("devices", "one"), [([1, 2], [1]), (4, 1), ("auto", 1)])
def test_what_is_not_spread_takes_the_first_device(devices, one):
    assert first_of(devices) == one


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", 1), "--samples must be at least 2, got 1"),
        (("--sampling.num_samples", 1), "sampling.num_samples must be at least 2, got 1"),
        (("--stride", 0), "--stride must be at least 1, got 0"),
        (("--data.lookback_window", 1), "data.lookback_window must be at least 2"),
    ],
)
def test_a_backtest_that_could_measure_nothing_is_refused_first(folder, words, message):
    done = kronos("backtest", write_config(folder), *words)
    assert done.code == 2 and message in done.err
