"""Weights on a hub that is replaced at the HTTP layer: found, cached, refused, given back."""

import shutil

import huggingface_hub
import pytest
import released
from factories import candle_frame, candles, tiny_model
from fake_hub import FakeHub
from huggingface_hub import constants
from released import as_series, assert_equal_forecasts, greedy, model_of

from darts_kronos import hub as hub_module

MINI, TOKENIZER = "NeoQuasar/Kronos-mini", "NeoQuasar/Kronos-Tokenizer-2k"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a released predictor and its tokenizer, both tiny, and an empty cache."""
    fake = FakeHub()
    fake.original = released.write(tmp_path / "weights")
    fake.add(MINI, tmp_path / "weights" / "predictor")
    fake.add(TOKENIZER, tmp_path / "weights" / "tokenizer")
    shutil.rmtree(tmp_path / "weights")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # The client waits before it tries again.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    huggingface_hub.set_client_factory(fake.client)
    yield fake
    huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def of_hub(name=MINI, **changes):
    return model_of(None, **{"hub_model_name": name} | changes)


def test_the_tokenizer_that_belongs_to_a_predictor_is_found(hub):
    frame = candle_frame(24)
    forecast = of_hub().fit(as_series(frame)).predict(6)
    assert_equal_forecasts(forecast, greedy(hub.original, [frame], 6)[0])
    assert any(path.startswith(f"/{TOKENIZER}/") for path in hub.asked)


def test_the_cache_serves_without_a_network(hub, monkeypatch):
    of_hub()
    hub.down = True
    of_hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.down, hub.asked = False, []
    of_hub()
    assert not hub.asked


@pytest.mark.parametrize("offline", [False, True])
def test_a_missing_network_says_how_to_work_offline(hub, monkeypatch, offline):
    hub.down = True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(hub_module.HubUnreachableError, match="local_dir.*HF_HUB_OFFLINE"):
        of_hub()
    with pytest.raises(ConnectionError):
        of_hub("someone/else", hub_tokenizer_name=TOKENIZER)


def test_a_copy_and_a_loaded_model_do_not_ask_again(hub, tmp_path):
    model = of_hub().fit(candles(24))
    model.save(str(tmp_path / "model.pt"))
    shutil.rmtree(tmp_path / "cache")
    hub.down = True
    loaded = type(model).load(str(tmp_path / "model.pt"))
    copies = [one.untrained_model().fit(candles(24)) for one in (model, loaded)]
    assert all(one.predict(6) == model.predict(6) for one in copies)


def test_revisions(hub):
    of_hub(hub_model_revision="v1")
    assert any("/resolve/v1/" in path for path in hub.asked)
    with pytest.raises(ValueError, match="'NeoQuasar/Kronos-mini' has no revision 'v7'"):
        of_hub(hub_model_revision="v7")
    with pytest.raises(ValueError, match="2k' has no revision 'v8'"):
        of_hub(hub_tokenizer_name=TOKENIZER, hub_tokenizer_revision="v8")


def test_a_folder_takes_what_is_downloaded(hub, tmp_path):
    (tmp_path / "mine").mkdir()
    of_hub(local_dir=tmp_path / "mine")
    hub.down = True
    of_hub(local_dir=tmp_path / "mine")
    model_of(tmp_path / "mine")


def test_a_missing_weights_file_in_a_folder_is_fetched(hub, tmp_path):
    (tmp_path / "mine").mkdir()
    of_hub(local_dir=tmp_path / "mine")
    (tmp_path / "mine" / "predictor" / "model.safetensors").unlink()
    of_hub(local_dir=tmp_path / "mine")
    assert (tmp_path / "mine" / "predictor" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "no/such"}, "has no model 'no/such'"),
        ({"name": "a/b/c"}, "'a/b/c' is no name of a model"),
        ({"name": "me/pickle"}, "lacks a file.*never from a pickle"),
        ({"name": "me/fork"}, "tokenizer of 'me/fork' is not known.*hub_tokenizer_name"),
        ({"hub_tokenizer_name": "no/such"}, "has no model 'no/such'"),
    ],
    ids=str,
)
def test_what_the_hub_has_not_is_named(hub, changes, message):
    hub.repositories["me/fork"] = hub.repositories[MINI]
    config = hub.repositories[MINI]["config.json"]
    hub.repositories["me/pickle"] = {"config.json": config, "pytorch_model.bin": b""}
    with pytest.raises(ValueError, match=message):
        of_hub(**changes)


def test_another_predictor_with_a_named_tokenizer(hub):
    hub.repositories["me/fork"] = hub.repositories[MINI]
    of_hub("me/fork", hub_tokenizer_name=TOKENIZER)


class TestGivingBack:
    def test_what_is_pushed_is_a_start_for_others(self, hub):
        model = tiny_model(clip=4.0).fit(candles(60))
        address = model.push_to_hub("me/mine", data="random walks", metrics={"CRPS": 0.5})
        assert address.startswith("https://huggingface.co/me/mine/commit/")
        again = of_hub("me/mine").fit(candles(24))
        assert again.representation == "returns" and again.model.representation.clip == 4.0
        hub.down = True
        of_hub("me/mine")
        card = hub.repositories["me/mine"]["README.md"].decode()
        for part in (
            "license: mit",
            "Data: random walks",
            "Dates: 2024-01-30 10:00:00 to 2024-02-01 21:00:00",
            "| CRPS | 0.5 |",
            "cannot run it: the tokens have 4 and 3 bits",
            'hub_model_name="me/mine"',
        ):
            assert part in card

    @pytest.mark.parametrize("lost", range(1, 5))
    def test_a_download_that_was_cut_off_is_completed(self, hub, tmp_path, monkeypatch, lost):
        tiny_model(clip=4.0).fit(candles(60)).push_to_hub("me/mine")
        whole = dict(hub.repositories["me/mine"])
        fetched = []
        file = hub_module._Repository.file

        def cut_off(self, name):
            found = file(self, name)
            fetched.append(name)
            if len(fetched) == lost:
                raise ConnectionError("the line is gone")
            return found

        with monkeypatch.context() as patch:
            patch.setattr(hub_module._Repository, "file", cut_off)
            with pytest.raises((ConnectionError, hub_module.HubUnreachableError)):
                of_hub("me/mine", local_dir=tmp_path)
        assert fetched[0] == hub_module.SETTINGS_FILE
        again = of_hub("me/mine", local_dir=tmp_path).fit(candles(24))
        assert again.representation == "returns" and again.model.representation.clip == 4.0
        here = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
        assert {name for name in whole if name != "README.md" and "." in name[1:]} <= here
        hub.down = True
        of_hub("me/mine", local_dir=tmp_path)

    def test_a_predictor_with_settings_beside_it_is_no_part_of_a_whole_model(self, hub, tmp_path):
        tiny_model(clip=4.0).fit(candles(60)).save_pretrained(tmp_path / "whole")
        root = tmp_path / "whole" / "predictor"
        shutil.copy(tmp_path / "whole" / hub_module.SETTINGS_FILE, root)
        given = {"local_dir": root, "tokenizer_local_dir": tmp_path / "whole"}
        model = of_hub("me/mine", **given).fit(candles(24))
        assert model.model.representation.clip == 4.0

    def test_a_card_names_what_the_model_came_from(self, hub):
        of_hub().fit(candles(24)).push_to_hub("me/mine", licence="apache-2.0")
        card = hub.repositories["me/mine"]["README.md"].decode()
        assert f"base_model: {MINI}" in card and "license: apache-2.0" in card

    def test_what_the_hub_does_not_let_in(self, hub):
        model = tiny_model().fit(candles(60))
        hub.closed = True
        with pytest.raises(ValueError, match="hub refused what was asked of 'me/mine'.*403"):
            model.push_to_hub("me/mine", token="hf_x")

    def test_without_a_network(self, hub):
        model = tiny_model().fit(candles(60))
        hub.down = True
        with pytest.raises(hub_module.HubUnreachableError, match="me/mine"):
            model.push_to_hub("me/mine", token="hf_x")
