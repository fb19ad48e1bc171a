import torch
import torch.distributed as dist

from timewalk.ops.collectives import gathered, mean_over_processes


def test_one_process_is_left_alone():
    x = torch.rand(3)
    assert mean_over_processes(x) is x


def _worker(rank, folder):
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found = mean_over_processes(torch.full((2,), float(rank)))
    dist.destroy_process_group()
    assert found.tolist() == [0.5, 0.5]


def test_two_processes_share_their_mean(tmp_path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)


def test_one_process_gathers_nothing():
    x = torch.rand(3, requires_grad=True)
    assert gathered(x) is x


def joint_loss(rows, weight):
    """A loss whose clips see each other, with a parameter behind the gathering."""
    return (weight * rows @ rows.T).tanh().sum()


def rows_and_weights():
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(4, 3, generator=rng, dtype=torch.float64)
    shared = torch.randn(3, 3, generator=rng, dtype=torch.float64).requires_grad_()
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    return rows, shared, weight


def _gathering(rank, folder):
    store = f"file://{folder}/gathering"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    rows, shared, weight = rows_and_weights()
    joint_loss(gathered(rows[2 * rank : 2 * rank + 2] @ shared), weight).backward()
    for parameter in (shared, weight):  # what DDP does
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    dist.destroy_process_group()
    rows, alone, other = rows_and_weights()
    joint_loss(rows @ alone, other).backward()
    torch.testing.assert_close(shared.grad, alone.grad)
    torch.testing.assert_close(weight.grad, other.grad)


def test_the_gradient_of_two_processes_is_that_of_one(tmp_path):
    torch.multiprocessing.spawn(_gathering, (str(tmp_path),), nprocs=2)
