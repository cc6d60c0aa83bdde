"""Numbers that draw the paths of a window: each path's are its own, together they are even."""

import pytest
import reference
import torch
import torch.nn.functional as F
from gpu import DEVICE

from darts_kronos.generation import Sampling, sample_paths
from darts_kronos.nn import rows
from darts_kronos.nn.strata import BELOW_ONE, stratified

CPU = torch.device("cpu")


def test_each_number_of_a_bar_lies_in_a_part_of_its_own():
    torch.manual_seed(0)
    found = stratified(6, 4, 10, CPU)
    assert found.shape == (6, 2, 40) and found.dtype == torch.float32
    parts = found.view(6, 2, 4, 10).mul(10).floor().long()
    assert torch.equal(parts.sort(dim=-1).values, torch.arange(10).expand(6, 2, 4, 10))
    # Which path has which part changes from bar to bar, token to token and window to window.
    assert len({tuple(row) for row in parts.reshape(-1, 10).tolist()}) == 6 * 2 * 4


def test_those_of_one_path_are_independent_and_uniform():
    torch.manual_seed(0)
    windows = 20_000
    of_path = stratified(3, windows, 4, CPU).view(6, windows, 4)[:, :, 1]
    counts = (of_path * 20).long().add(20 * torch.arange(6)[:, None]).flatten().bincount()
    deviation = (windows / 20 * 19 / 20) ** 0.5
    assert (counts - windows / 20).abs().max() < 4.5 * deviation
    assert (of_path.corrcoef() - torch.eye(6)).abs().max() < 4.5 / windows**0.5


def test_a_single_path_has_the_generators_own():
    torch.manual_seed(1)
    found = stratified(5, 3, 1, CPU)
    torch.manual_seed(1)
    assert torch.equal(found, torch.rand(5, 2, 3))


def test_all_are_below_one(monkeypatch):
    last = torch.tensor([0.0, 0.5, 1 - 2.0**-24])
    monkeypatch.setattr(
        "darts_kronos.nn.strata.uniforms", lambda shape, _: last.expand(shape).clone()
    )
    found = stratified(1, 1, 3, CPU)
    assert found.max() == BELOW_ONE < 1


@pytest.mark.parametrize("max_context", [64, 9])
@pytest.mark.parametrize("way", ["kernels", "torch"])
@torch.inference_mode()
def test_tokens_are_as_frequent_as_they_are_probable(way, max_context, monkeypatch):
    if way == "torch":
        monkeypatch.setattr(rows, "row_kernels", lambda: None)
    networks = reference.tokenizers(0)[1], reference.predictors(0)[1]
    tokenizer, predictor = (network.to(DEVICE) for network in networks)
    # Whatever the bars are, as probable in all paths; windows slide where they hold 9 bars.
    heads = predictor.s1_head, predictor.s2_head
    for head in heads:
        head.weight.zero_()
        head.bias.copy_(torch.randn(len(head.bias), generator=torch.Generator().manual_seed(1)))
    S, n = 50, 6
    paths = sample_paths(
        tokenizer,
        predictor,
        reference.random_bars(2, 8, 2).to(DEVICE),
        None,
        n=n,
        num_samples=S,
        max_context=max_context,
        sampling=Sampling(temperature=0.8),
    )
    for drawn, head in zip((paths.s1, paths.s2), heads, strict=True):
        counts = F.one_hot(drawn.long(), len(head.bias)).sum(dim=0)
        probable = (head.bias / 0.8).softmax(dim=0)
        # Tokens are drawn in the order of their numbers.
        difference = counts.cumsum(dim=-1) - S * probable.cumsum(dim=0)
        assert difference.abs().max() < 1 + 1e-3
        assert len(drawn.permute(1, 2, 0).flatten(0, 1).unique(dim=0)) == 2 * n
