"""Where steps and kernels of GPUs are tested: there, or on a CPU by Triton's interpreter."""

import os

import pytest
import torch

from darts_kronos.nn import fused_step

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu")

needs_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
by_triton = pytest.mark.skipif(
    DEVICE.type != "cuda" and not INTERPRETED, reason="needs a GPU, or Triton's interpreter"
)


class OutOfResources(Exception):
    """What Triton raises where a GPU has no room for a kernel."""

    __module__ = "triton.runtime.errors"


def triton_kernels(monkeypatch):
    """The kernels of paths, in place of those that the device would have."""
    pytest.importorskip("triton")
    from darts_kronos.nn import gpu_kernels

    monkeypatch.setattr(fused_step, "gpu_kernels", lambda: gpu_kernels)
    return gpu_kernels


def step_fixture(module, fused):
    """A fixture of the class of the step that is made: of the network's layers, or of kernels."""

    @pytest.fixture(params=["module", pytest.param("fused", marks=by_triton)])
    def step(request, monkeypatch):
        if request.param == "fused":
            triton_kernels(monkeypatch)
            return fused
        monkeypatch.setattr(fused_step, "gpu_kernels", lambda: None)
        return module

    return step
