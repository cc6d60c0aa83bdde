"""What several test modules share."""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
