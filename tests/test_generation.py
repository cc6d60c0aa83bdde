import pytest
import reference
import torch

from darts_kronos import generation
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn import rows


@pytest.fixture(params=["compiled", "torch"])
def networks(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(rows, "row_kernels", lambda: None)
    return reference.tokenizers(0)[1], reference.predictors(0)[1]


def run(networks, *, windows=2, context=20, n=5, max_context=64, stamps=True, **kwargs):
    tokenizer, predictor = networks
    return generate(
        tokenizer,
        predictor,
        reference.random_bars(windows, context, 1),
        reference.random_stamps(windows, context + n, 1) if stamps else None,
        n=n,
        max_context=max_context,
        sampling=kwargs.pop("sampling", Sampling()),
        **kwargs,
    )


def test_paths_have_samples_first(networks):
    assert run(networks, num_samples=7).shape == (7, 2, 5, 6)
    assert run(networks, num_samples=7, stamps=False).shape == (7, 2, 5, 6)


def test_paths_differ_and_follow_torchs_global_generator(networks):
    torch.manual_seed(3)
    one = run(networks, num_samples=4)
    assert not torch.equal(one[0], one[1])
    torch.manual_seed(3)
    assert torch.equal(run(networks, num_samples=4), one)
    assert not torch.equal(run(networks, num_samples=4), one)


@pytest.mark.parametrize("max_context", [64, 22])
def test_greedy_paths_leave_torchs_generator_alone(networks, max_context):
    before = torch.random.get_rng_state()
    run(networks, n=9, max_context=max_context, sampling=Sampling(top_k=1))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("max_context", [64, 22, 12, 4])
def test_greedy_paths_do_not_depend_on_how_rows_are_chunked(networks, max_context):
    greedy = Sampling(top_k=1)
    whole = run(networks, windows=5, n=9, max_context=max_context, sampling=greedy)
    single = run(networks, windows=5, n=9, max_context=max_context, sampling=greedy, path_bytes=1)
    torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sliding", ["exact", "cached"])
@pytest.mark.parametrize("max_context", [64, 24, 12])
def test_a_path_is_the_same_alone_and_among_others(networks, max_context, sliding):
    # A single path's bars are kept in one piece with its window, several paths' are not.
    first = Sampling(temperature=1e-6)
    kwargs = {"n": 9, "max_context": max_context, "sampling": first, "sliding": sliding}
    alone, among = run(networks, **kwargs), run(networks, **kwargs, num_samples=3)
    torch.testing.assert_close(alone.expand_as(among), among, rtol=1e-4, atol=1e-5)


def test_chunked_samples_have_the_same_distribution(networks):
    torch.manual_seed(0)
    whole = run(networks, num_samples=3000, n=2)
    torch.manual_seed(1)
    chunked = run(networks, num_samples=3000, n=2, path_bytes=400_000)
    spread = whole.std(dim=0) / 3000**0.5
    assert ((whole.mean(dim=0) - chunked.mean(dim=0)).abs() < 6 * spread + 1e-6).all()


def test_a_greedy_path_is_drawn_once_and_repeated(networks, monkeypatch):
    drawn = []
    original = generation._Window.draw
    monkeypatch.setattr(
        generation._Window,
        "draw",
        lambda self, num_samples, sampling: (
            drawn.append(num_samples) or original(self, num_samples, sampling)
        ),
    )
    paths = run(networks, num_samples=50, sampling=Sampling(top_k=1))
    assert drawn == [1]
    assert paths.shape[0] == 50
    assert torch.equal(paths[0], paths[49])


def test_the_modes_of_the_networks_are_restored_and_dropout_is_off(networks):
    tokenizer, predictor = reference.tokenizers(0)[1], reference.predictors(0, ffn_dropout_p=0.9)[1]
    expected = run((tokenizer, predictor), sampling=Sampling(top_k=1))
    predictor.train()
    tokenizer.decoder.train()
    assert torch.equal(run((tokenizer, predictor), sampling=Sampling(top_k=1)), expected)
    assert predictor.training and predictor.transformer.blocks[0].ffn.dropout.training
    assert not tokenizer.training and tokenizer.decoder.training


def test_a_horizon_beyond_the_context_window_is_decoded_whole(networks):
    paths = run(networks, context=10, n=40, max_context=12, num_samples=2)
    assert paths.shape == (2, 2, 40, 6)
    assert torch.isfinite(paths).all()


def test_early_bars_do_not_depend_on_the_horizon(networks):
    greedy = Sampling(top_k=1)
    tokenizer, predictor = networks
    bars, stamps = reference.random_bars(2, 20, 1), reference.random_stamps(2, 30, 1)
    short, long = (
        generate(
            tokenizer, predictor, bars, stamps[:, : 20 + n], n=n, max_context=64, sampling=greedy
        )
        for n in (4, 10)
    )
    torch.testing.assert_close(long[:, :, :4], short, rtol=1e-4, atol=1e-5)


class TestSampling:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0]).log_softmax(-1)

    def frequencies(self, **kwargs):
        torch.manual_seed(0)
        drawn = Sampling(**kwargs).draw(self.logits.expand(200, 100, -1))
        assert drawn.shape == (200, 100)
        return torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()

    def check(self, expected, **kwargs):
        expected = torch.tensor(expected)
        torch.testing.assert_close(
            self.frequencies(**kwargs), expected / expected.sum(), atol=0.015, rtol=0
        )

    def test_everything_is_kept_by_default(self):
        self.check(self.logits.exp().tolist())

    def test_temperature_divides_the_logits(self):
        self.check((self.logits / 2).exp().tolist(), temperature=2.0)

    def test_top_k_keeps_the_most_probable(self):
        self.check([*self.logits[:2].exp().tolist(), 0, 0, 0], top_k=2)

    def test_top_p_keeps_the_token_that_reaches_it(self):
        # Probabilities .636, .234, .086, ...: .7 is reached by the second.
        self.check([*self.logits[:2].exp().tolist(), 0, 0, 0], top_p=0.7)
        self.check([1.0, 0, 0, 0, 0], top_p=1e-6)

    def test_both_filters_apply_k_first(self):
        # Of the first two alone, .731 and .269, the first reaches .7; of all it does not.
        self.check([1.0, 0, 0, 0, 0], top_k=2, top_p=0.7)

    def test_one_is_greedy(self):
        self.check([1.0, 0, 0, 0, 0], top_k=1, temperature=100.0)

    def test_more_than_there_are_is_all(self):
        self.check(self.logits.exp().tolist(), top_k=99)

    def test_order_of_the_logits_does_not_matter(self):
        torch.manual_seed(0)
        flipped = Sampling(top_k=2, top_p=0.99).draw(self.logits.flip(-1).expand(5000, -1))
        assert set(flipped.tolist()) == {3, 4}

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"temperature": 0}, "`temperature` must be a number > 0, got 0"),
            ({"temperature": -1.0}, "temperature"),
            ({"temperature": 1e-38}, "at least 1e-30, got 1e-38: .*top_k=1"),
            ({"temperature": float("nan")}, "temperature"),
            ({"temperature": float("inf")}, "temperature"),
            ({"temperature": "hot"}, "temperature"),
            ({"top_k": 0}, "`top_k` must be an integer >= 1 or None"),
            ({"top_k": 2.0}, "top_k"),
            ({"top_p": 0.0}, r"`top_p` must be a number in \(0, 1\] or None"),
            ({"top_p": 1.1}, "top_p"),
        ],
    )
    def test_bad_values_are_refused(self, kwargs, message):
        with pytest.raises(ValueError, match=message):
            Sampling(**kwargs)


@pytest.mark.parametrize("name", ["n", "num_samples", "max_context"])
def test_when_a_count_is_below_one_then_it_is_named(networks, name):
    with pytest.raises(ValueError, match=f"`{name}` must be an integer >= 1, got 0"):
        run(networks, **{name: 0})


def test_when_stamps_do_not_cover_the_horizon_then_the_shape_is_named(networks):
    tokenizer, predictor = networks
    with pytest.raises(ValueError, match=r"\(2, 25, 5\).*\(2, 20, 5\)"):
        generate(
            tokenizer,
            predictor,
            reference.random_bars(2, 20, 0),
            reference.random_stamps(2, 20, 0),
            n=5,
            max_context=64,
            sampling=Sampling(),
        )


class TestCachedSliding:
    """Past `max_context` with the oldest bars dropped from what was kept."""

    def test_it_is_exact_while_nothing_is_dropped(self, networks):
        greedy = Sampling(top_k=1)
        exact = run(networks, context=20, n=9, max_context=29, sampling=greedy)
        cached = run(networks, context=20, n=9, max_context=29, sampling=greedy, sliding="cached")
        torch.testing.assert_close(cached, exact, rtol=1e-4, atol=1e-5)

    def test_bars_before_the_window_slides_are_exact(self, networks):
        greedy = Sampling(top_k=1)
        exact = run(networks, context=20, n=9, max_context=24, sampling=greedy)
        # A token depends on what is read before it: the fifth bar is the first after a slide.
        with_tokens = {
            sliding: generation.sample_paths(
                *networks,
                reference.random_bars(2, 20, 1),
                reference.random_stamps(2, 29, 1),
                n=9,
                max_context=24,
                sampling=greedy,
                sliding=sliding,
            )
            for sliding in ("exact", "cached")
        }
        torch.testing.assert_close(with_tokens["exact"].bars, exact)
        one, other = with_tokens["exact"], with_tokens["cached"]
        assert torch.equal(one.s1[..., :5], other.s1[..., :5])
        assert torch.equal(one.s2[..., :5], other.s2[..., :5])

    def test_paths_do_not_depend_on_how_rows_are_chunked(self, networks):
        greedy = Sampling(top_k=1)
        kwargs = {"windows": 3, "n": 30, "max_context": 12, "sampling": greedy, "sliding": "cached"}
        whole, single = run(networks, **kwargs), run(networks, **kwargs, path_bytes=1)
        torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-5)

    def test_an_unknown_way_is_refused(self, networks):
        with pytest.raises(ValueError, match="`sliding` must be one of 'exact', 'cached', got 'x'"):
            run(networks, sliding="x")


def test_a_nucleus_is_the_same_whether_all_tokens_are_sorted_or_few(monkeypatch):
    torch.manual_seed(0)
    logits = 1.5 * torch.randn(1, 600)
    wanted = logits.softmax(-1).sort(descending=True)
    inside = set(wanted.indices[0, : 1 + int((wanted.values.cumsum(-1) < 0.8).sum())].tolist())
    assert 3 < len(inside) < generation.NUCLEUS_TRIED
    for tried in (generation.NUCLEUS_TRIED, 2, 10_000):
        monkeypatch.setattr(generation, "NUCLEUS_TRIED", tried)
        drawn = Sampling(top_p=0.8).draw(logits.expand(20_000, -1))
        assert set(drawn.tolist()) == inside


def test_tokens_without_probability_are_never_drawn():
    logits = torch.full((50_000, 8), float("-inf"))
    logits[:, [1, 5]] = 0.0
    assert set(Sampling().draw(logits).tolist()) == {1, 5}


def test_under_autocast_the_predictor_alone_computes_in_lower_precision(networks):
    full = run(networks, num_samples=3, sampling=Sampling(top_k=1))
    with torch.autocast("cpu", torch.bfloat16):
        lower = run(networks, num_samples=3, sampling=Sampling(top_k=1))
    assert lower.dtype == full.dtype == torch.float32
    # Near tokens of a random network are no near bars; but the first bars are mostly the same.
    assert (lower[:, :, 0] == full[:, :, 0]).float().mean() > 0.4


def test_spoilt_weights_of_the_tokenizer_are_named(networks):
    with torch.no_grad():
        networks[0].head.bias[0] = float("nan")
    with pytest.raises(ValueError, match="tokenizer.*weights are spoilt"):
        run(networks)


def test_networks_are_left_without_what_was_folded(networks):
    tokenizer, predictor = networks
    run(networks, n=60, max_context=80)
    assert predictor.queries is None and predictor.tokens.folded is None
    assert predictor.calendar.folded is None
    assert all(getattr(module, "packed", None) is None for module in predictor.modules())
    assert all(getattr(module, "packed", None) is None for module in tokenizer.modules())


def test_memory_of_paths_drawn_together_is_bounded(networks, monkeypatch):
    rows = []
    original = generation._Window.draw
    monkeypatch.setattr(
        generation._Window,
        "draw",
        lambda self, num_samples, sampling: (
            rows.append(len(self.s1) * num_samples) or original(self, num_samples, sampling)
        ),
    )
    most = []
    for num_samples in (100, 400):
        rows.clear()
        run(networks, windows=3, num_samples=num_samples, path_bytes=1_000_000)
        assert sum(rows) == 3 * num_samples
        most.append(max(rows))
    assert most[0] == most[1] < 100
