"""Networks on several cores give each slice what they give on one."""

import threading

import pytest
import torch
from scripts.method.networks import ReconstructionUNet
from scripts.method.parallel import MOST_SLICES, InThreads, in_threads
from torch import nn


@pytest.fixture
def threads():
    """Sets how many threads PyTorch has, as long as a test runs; threads that start have one."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def network():
    torch.manual_seed(0)
    return ReconstructionUNet(2, 3, 4, (1, 2), residual_blocks=1, attention_levels=(), patch_size=1).eval()


@pytest.mark.parametrize("number", [0, 1, 3, 8, 21])
def test_batch_has_the_same_result(threads, number):
    threads(2)
    image = torch.randn(number, 2, 12, 20)
    with torch.no_grad():
        torch.testing.assert_close(InThreads(network())(image), network()(image))


def test_full_batches_are_bit_identical_for_any_number_of_threads(threads):
    image, results = torch.randn(4 * MOST_SLICES, 2, 12, 20), []
    for number in (1, 2, 4):
        threads(number)
        with torch.no_grad():
            results.append(InThreads(network())(image))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


class Noting(nn.Module):
    """Notes who computes, with how many threads and slices, and whether gradients are kept."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, image):
        self.seen.append(
            (threading.current_thread().name, torch.get_num_threads(), len(image), torch.is_grad_enabled())
        )
        return image + 1


def test_threads_share_the_slices_and_have_one_thread_each(threads):
    threads(2)
    noting = Noting()
    with torch.no_grad():
        result = InThreads(noting)(torch.arange(20.0).view(20, 1, 1, 1))
    assert result.flatten().tolist() == list(range(1, 21))
    assert sorted(slices for _, _, slices, _ in noting.seen) == [4, 8, 8]
    assert all(name != threading.main_thread().name for name, *_ in noting.seen)
    assert all(number == 1 and not gradients for _, number, _, gradients in noting.seen)
    assert torch.get_num_threads() == 2


def test_few_slices_are_shared_too(threads):
    threads(2)
    noting = Noting()
    with torch.no_grad():
        InThreads(noting)(torch.zeros(4, 1, 1, 1))
    assert [slices for _, _, slices, _ in noting.seen] == [2, 2]


def test_one_thread_computes_itself(threads):
    threads(1)
    noting = Noting()
    with torch.no_grad():
        InThreads(noting)(torch.zeros(9, 1, 1, 1))
    assert [(name, slices) for name, _, slices, _ in noting.seen] == [(threading.main_thread().name, n) for n in (8, 1)]


def test_training_is_left_alone(threads):
    threads(2)
    noting = Noting()
    InThreads(noting)(torch.zeros(20, 1, 1, 1, requires_grad=True)).sum().backward()
    assert [slices for _, _, slices, _ in noting.seen] == [20]


def test_error_of_a_thread_is_raised(threads):
    class Failing(nn.Module):
        def forward(self, image):
            raise ValueError("no room")

    threads(2)
    with torch.no_grad(), pytest.raises(ValueError, match="no room"):
        InThreads(Failing())(torch.zeros(4, 1, 1, 1))
    assert torch.get_num_threads() == 2


def test_twin_shares_the_weights():
    model = nn.Sequential(network(), Noting())
    twin = in_threads(model)
    assert all(isinstance(child, InThreads) for child in twin.children())
    assert twin[0].network is model[0] and not any(isinstance(child, InThreads) for child in model.children())
