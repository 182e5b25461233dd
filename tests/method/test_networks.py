"""The network of the paper: its sizes, and what it refuses."""

from functools import partial

import numpy as np
import pytest
import torch
from scripts.method.networks import AttentionBlock, ReconstructionUNet, ResidualBlock


def test_unet_says_which_size_it_needs(small_network):
    with pytest.raises(ValueError, match="multiples of 2, got 9 x 8"):
        small_network(in_channels=1, out_channels=1)(torch.zeros(1, 1, 9, 8))


def test_unet_of_the_paper_has_attention_at_32_16_and_8_of_128():
    network = ReconstructionUNet(2, 1)
    seen = []
    for module in network.modules():
        if type(module).__name__ == "AttentionBlock":
            module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 2, 128, 128)).shape == (1, 1, 128, 128)
    assert sorted(set(seen)) == [8, 16, 32]


def test_unet_of_patches_says_which_size_it_needs(small_network):
    network = partial(small_network, patch_size=2)(in_channels=1, out_channels=1)
    with pytest.raises(ValueError, match="multiples of 4, got 10 x 8"):
        network(torch.zeros(1, 1, 10, 8))


@pytest.mark.parametrize(("scale", "size"), [(None, (8, 12)), ("down", (4, 6)), ("up", (16, 24))])
def test_residual_block_adds_to_a_shortcut_of_its_size(scale, size):
    block = ResidualBlock(3, 3, scale=scale).eval()
    torch.nn.init.zeros_(block.conv2.weight), torch.nn.init.zeros_(block.conv2.bias)
    features = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    expected = {
        None: features,
        "down": features.unflatten(3, (6, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5)),
        "up": features.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3),
    }
    found = block(features)
    assert found.shape[2:] == size
    torch.testing.assert_close(found, expected[scale])


def test_attention_is_that_of_the_formula():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block = AttentionBlock(4).eval()
    features = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    flat = features.flatten(2).double().numpy() / np.sqrt(1 + 1e-5)  # batch norm of mean 0 and variance 1
    weights = {name: value.detach().double().numpy().squeeze() for name, value in block.named_parameters()}
    qkv = np.einsum("oc,ncp->nop", weights["qkv.weight"], flat) + weights["qkv.bias"][:, None]
    query, key, value = np.split(qkv, 3, axis=1)
    likeness = np.exp(np.einsum("ncp,ncq->npq", query, key) / np.sqrt(4))
    attended = np.einsum("npq,ncq->ncp", likeness / likeness.sum(axis=2, keepdims=True), value)
    added = np.einsum("oc,ncp->nop", weights["projection.weight"], attended) + weights["projection.bias"][:, None]
    expected = features.numpy() + added.reshape(features.shape)
    np.testing.assert_allclose(block(features).detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_unet_gives_a_slice_of_the_size_it_got(patch_size):
    options = {"channels": 2, "channel_multipliers": (1, 2), "residual_blocks": 1, "attention_levels": ()}
    network = ReconstructionUNet(3, 2, patch_size=patch_size, **options)
    assert network(torch.zeros(2, 3, 12, 20)).shape == (2, 2, 12, 20)
