"""The device of the GPU tests: a CUDA GPU, or with CURATED_SSL_TEST_DEVICE=cpu the CPU, where GPU code runs as well."""

import os

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> str:
    """ "cuda" or "cpu"."""
    wanted = os.environ.get("CURATED_SSL_TEST_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU can be used here")
    return wanted


@pytest.fixture
def cuda(device: str) -> str:
    """For what exists on CUDA alone."""
    if device != "cuda":
        pytest.skip("this exists on CUDA alone")
    return device
