"""What several test modules share."""

from functools import partial

import pytest
import torch
from scripts.itermask import IterMask
from scripts.networks import ReconstructionUNet


@pytest.fixture
def brain_mask():
    """Brains of three sizes, the last slice without any: (4, 1, 32, 48), bool."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 48), indexing="ij")
    return torch.stack([rows**2 + columns**2 < size**2 for size in (0.9, 0.6, 0.3, 0.0)])[:, None]


@pytest.fixture
def image(brain_mask):
    """Slices with structure in the brain and -3 outside: (4, 1, 32, 48)."""
    noise = torch.randn(brain_mask.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(brain_mask, noise, torch.tensor(-3.0))


@pytest.fixture
def small_network():
    """Makes a network of two levels with attention on the coarse one."""
    return partial(
        ReconstructionUNet, channels=4, channel_multipliers=(1, 2), residual_blocks=1, attention_levels=(1,)
    )


@pytest.fixture
def model(small_network):
    """Two seeded small networks with a threshold that some errors exceed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return IterMask(small_network, radius=4, threshold=1.0).eval()
