import torch
import torch.distributed as dist

from timewalk.ops.collectives import mean_over_processes


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
