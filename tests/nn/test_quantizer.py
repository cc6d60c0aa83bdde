import pytest
import torch

from darts_kronos.nn.quantizer import BinarySphericalQuantizer, bits_to_ids, ids_to_bits


@pytest.mark.parametrize("n_bits", [1, 4, 10])
def test_ids_survive_the_round_trip_through_bits(n_bits):
    ids = torch.arange(2**n_bits)
    assert torch.equal(bits_to_ids(ids_to_bits(ids, n_bits)), ids)


def test_the_least_significant_bit_comes_first():
    assert bits_to_ids(torch.tensor([1.0, -1.0, -1.0])).item() == 1
    assert bits_to_ids(torch.tensor([-1.0, -1.0, 1.0])).item() == 4


def test_codes_lie_on_the_unit_sphere_and_zero_is_negative():
    quantizer = BinarySphericalQuantizer(beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05)
    code, unit = quantizer(torch.tensor([[3.0, 0.0, -2.0, 1.0]]))
    torch.testing.assert_close(code, torch.tensor([[0.5, -0.5, -0.5, 0.5]]))
    torch.testing.assert_close(code.norm(dim=-1), torch.ones(1))
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(1))


def test_the_gradient_passes_straight_through_the_sign():
    quantizer = BinarySphericalQuantizer(beta=0.0, gamma0=1.0, gamma=1.0, zeta=0.0)
    z = torch.randn(5, 6, requires_grad=True)
    weights = torch.randn(5, 6)
    code, _ = quantizer(z)
    (code * weights).sum().backward()
    expected = z.detach().clone().requires_grad_()
    (torch.nn.functional.normalize(expected, dim=-1) * 6**-0.5 * weights).sum().backward()
    torch.testing.assert_close(z.grad, expected.grad)


def test_the_loss_is_negative_and_rewards_a_used_codebook():
    quantizer = BinarySphericalQuantizer(beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05)
    corners = ids_to_bits(torch.arange(2**6), 6)
    used = quantizer.loss(*quantizer(corners))
    collapsed = quantizer.loss(*quantizer(corners[:1].repeat(64, 1)))
    assert used < 0
    assert used < collapsed


@pytest.mark.parametrize("c", [0.5, 0.01])
def test_weights_that_are_all_alike_scale_the_loss_and_no_more(c):
    torch.manual_seed(0)
    quantizer = BinarySphericalQuantizer(beta=0.05, gamma0=1.0, gamma=1.1, zeta=0.05)
    x = torch.randn(8, 20, 6, requires_grad=True)

    def gradient(weights):
        loss = quantizer.loss(*quantizer(x), weights)
        (found,) = torch.autograd.grad(loss, x)
        return loss.detach(), found

    plain, expected = gradient(None)
    scaled, found = gradient(torch.full((8, 20), c))
    torch.testing.assert_close(scaled / c, plain)
    torch.testing.assert_close(found / c, expected)
    # Bars of no weight are as if they were not there.
    some = torch.full((8, 20), c)
    some[:, 10:] = 0.0
    here = quantizer.loss(*quantizer(x[:, :10]), None)
    torch.testing.assert_close(quantizer.loss(*quantizer(x), some) / c, here)
