"""One batch over several processes."""

import pytest
import torch
from conftest import free_port
from scripts.training.distributed import JointBatchNorm2d


def compare_batch_norm(rank, port, device):
    """What one of two processes checks: outputs, gradients and statistics are those of the joint batch."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for dtype, mean, tolerance in (
        (torch.float32, 3.0, 1e-5),
        (torch.float32, 100.0, 3e-4),
        (torch.bfloat16, 3.0, 0.02),
    ):
        generator = torch.Generator().manual_seed(0)
        features, gradient = (torch.randn(6, 5, 7, 9, generator=generator).to(device) for _ in range(2))
        alone, joint = torch.nn.BatchNorm2d(5).to(device), JointBatchNorm2d(5).to(device)
        for module in (alone, joint):
            module.weight.data = torch.rand(5, generator=torch.Generator().manual_seed(1)).to(device)
        whole = (mean + 2 * features).to(dtype)
        own = whole[rank::2].clone().requires_grad_()
        expected, found = alone(whole.requires_grad_()), joint(own)
        expected.backward(gradient.to(dtype)), found.backward(gradient[rank::2].to(dtype))
        torch.distributed.all_reduce(joint.weight.grad), torch.distributed.all_reduce(joint.bias.grad)
        pairs = [(found, expected[rank::2]), (own.grad, whole.grad[rank::2])]
        pairs += [(joint.weight.grad, alone.weight.grad), (joint.bias.grad, alone.bias.grad)]
        pairs += [(joint.running_mean, alone.running_mean), (joint.running_var, alone.running_var)]
        for value, reference in pairs:
            torch.testing.assert_close(value, reference, rtol=tolerance, atol=tolerance)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_joint_batch_norm_is_that_of_the_joint_batch(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; there is none")
    torch.multiprocessing.spawn(compare_batch_norm, (free_port(), device), nprocs=2)
