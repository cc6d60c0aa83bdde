"""How training windows are varied: what changes, what must not, and that each variation works."""

import numpy as np
import pytest
import torch

from darts_kronos.augmentation import Augmentation
from darts_kronos.components import CANDLE
from darts_kronos.representation import representation_named
from darts_kronos.simulate import simulate_candles

CONTEXT, T = 40, 52


def normalised(name, clip=1e9):
    values = np.stack([one.values() for one in simulate_candles(6, T, seed=3)])
    representation = representation_named(name, list(CANDLE), clip)
    return representation.encode(torch.tensor(values), CONTEXT)[0], representation


@pytest.mark.parametrize("name", ["returns", "window"])
def test_nothing_is_varied_by_default(name):
    bars, representation = normalised(name)
    torch.testing.assert_close(Augmentation().bars(bars.clone(), representation), bars)
    stamps = torch.randint(1, 12, (3, T, 5))
    assert Augmentation().stamps(stamps) is stamps
    assert Augmentation(date_shift=1.0).stamps(None) is None


def test_each_return_is_mirrored_by_itself():
    torch.manual_seed(0)
    bars, representation = normalised("returns")
    varied = Augmentation(mirror=0.5).bars(bars.clone(), representation)
    turned = (varied[..., 3] == -bars[..., 3]) & (bars[..., 3] != 0)
    same = varied[..., 3] == bars[..., 3]
    assert (turned | same).all()
    share = turned.float().mean(dim=1)
    assert ((share > 0.25) & (share < 0.75)).all()
    # What is turned stays a candle: highs are lows.
    torch.testing.assert_close(varied[turned][:, 1], -bars[turned][:, 2])
    torch.testing.assert_close(varied[..., 4:], bars[..., 4:])


def test_a_window_of_levels_is_mirrored_whole():
    torch.manual_seed(0)
    bars, representation = normalised("window")
    varied = Augmentation(mirror=0.5).bars(bars.clone(), representation)
    turned = (varied[..., 3] == -bars[..., 3]).all(dim=1)
    same = (varied[..., 3] == bars[..., 3]).all(dim=1)
    assert (turned ^ same).all()
    assert turned.any() and same.any()


def test_prices_of_a_window_share_one_factor():
    torch.manual_seed(0)
    bars, representation = normalised("returns")
    varied = Augmentation(price_jitter=0.3).bars(bars.clone(), representation)
    factor = (varied[..., :4] * bars[..., :4]).sum((1, 2)) / bars[..., :4].square().sum((1, 2))
    torch.testing.assert_close(varied[..., :4], bars[..., :4] * factor[:, None, None])
    assert 0.05 < factor.log().std() < 0.9
    torch.testing.assert_close(varied[..., 4:], bars[..., 4:])


def test_volume_and_amount_move_together():
    torch.manual_seed(0)
    bars, representation = normalised("returns")
    varied = Augmentation(volume_jitter=0.3).bars(bars.clone(), representation)
    noise = varied - bars
    torch.testing.assert_close(noise[..., 4], noise[..., 5])
    assert 0.2 < noise[..., 4].std() < 0.4
    assert not noise[..., :4].any()


def test_volume_is_dropped_from_whole_windows():
    bars, representation = normalised("returns")
    varied = Augmentation(volume_jitter=0.3, volume_dropout=1.0).bars(bars, representation)
    assert not varied[..., 4:].any()


def test_varied_bars_stay_within_the_clip():
    torch.manual_seed(0)
    bars, representation = normalised("returns", clip=1.0)
    varied = Augmentation(price_jitter=1.0, volume_jitter=1.0).bars(bars, representation)
    assert varied.abs().max() <= 1.0


def test_dates_are_shifted_but_not_hours_and_weekdays():
    torch.manual_seed(0)
    days = torch.arange(T) % 31 + 1
    stamps = torch.stack((days * 0, days % 24, days % 7, days, days % 12 + 1), dim=-1)
    stamps = stamps.expand(200, T, 5).contiguous()
    varied = Augmentation(date_shift=0.5).stamps(stamps)
    assert torch.equal(varied[..., :3], stamps[..., :3])
    day, month = varied[..., 3], varied[..., 4]
    assert day.min() >= 1 and day.max() <= 31 and month.min() >= 1 and month.max() <= 12
    # A window's days are shifted together, each window by its own number.
    by = (day - stamps[..., 3]) % 31
    assert (by == by[:, :1]).all()
    assert len(by[:, 0].unique()) > 20
    assert 0.3 < (by[:, 0] == 0).float().mean() < 0.7
    months = (month - stamps[..., 4]) % 12
    assert (months == months[:, :1]).all() and len(months[:, 0].unique()) == 12
    assert torch.equal(Augmentation(date_shift=1e-9).stamps(stamps), stamps)
