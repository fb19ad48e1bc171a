"""What processes share: means, rows in the batch's order, the joint batch's normalisation."""

import multiprocessing
import os

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from tests.ports import free_port
from timewalk.ops.collectives import mean_over_processes, rows_of_processes
from timewalk.training.distributed import (
    JointBatchNorm,
    Processes,
    from_main,
    joined,
    mean_of_all,
    share_batch_norm,
)

CPU = torch.device("cpu")
SIZE = 2


HALF = (torch.float16, torch.bfloat16)


def half_normalisation():
    return share_batch_norm(nn.Sequential(nn.BatchNorm2d(2)), CPU)


def half_inputs(kind):
    """Maps whose sums, and sums of squares, are beyond float16."""
    rng = torch.Generator().manual_seed(2)
    return (60 * torch.randn(6, 2, 32, 32, generator=rng) + 100).to(kind)


def networks():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    body = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4), nn.Conv2d(4, 2, 1))
    return head, body


def inputs():
    rng = torch.Generator().manual_seed(1)
    return 3 * torch.randn(6, 5, generator=rng) + 7, torch.randn(6, 3, 8, 8, generator=rng)


def backward(network, data, rows):
    output = network(data[rows])
    # Rows that count differently: else the gradient of a normalised batch is nothing.
    weight = torch.arange(1.0, len(data) + 1)[rows].reshape(-1, *[1] * (output.ndim - 1))
    (weight * output.square()).flatten(1).sum(1).mean().backward()
    return output.detach()


def _worker(rank, folder, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    found = {}
    with joined(Processes(rank, SIZE, rank), CPU):
        found["mean"] = mean_over_processes(torch.full((2,), float(rank)))
        found["rows"] = rows_of_processes(torch.tensor([[rank], [10 + rank]]))
        means = {"a": torch.tensor(float(rank)), "b": torch.full((2, 3), 2.0 * rank)}
        found |= {f"all.{key}": value for key, value in mean_of_all(means).items()}
        found["main"] = torch.tensor(from_main(rank + 5))
        for name, network, data in zip(("head", "body"), networks(), inputs(), strict=True):
            share_batch_norm(network, CPU)
            found[f"{name}.output"] = backward(network, data, slice(3 * rank, 3 * rank + 3))
            for key, parameter in network.named_parameters():
                found[f"{name}.grad.{key}"] = mean_over_processes(parameter.grad)
            found |= {f"{name}.buffer.{k}": v for k, v in network.named_buffers()}
            found[f"{name}.eval"] = network.eval()(data).detach()
        uneven = share_batch_norm(networks()[1], CPU)
        rows = (slice(0, 2), slice(2, 6))[rank]
        found["uneven"] = uneven(inputs()[1][rows]).detach()
        for kind in HALF:
            found[str(kind)] = half_normalisation()(half_inputs(kind)[rows]).detach()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    context = multiprocessing.get_context("forkserver")
    port = str(free_port())
    workers = [context.Process(target=_worker, args=(n, str(folder), port)) for n in range(SIZE)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0] * SIZE
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(SIZE)]


def test_means_and_rows(found):
    for result in found:
        assert result["mean"].tolist() == [0.5, 0.5]
        assert result["rows"].flatten().tolist() == [0, 10, 1, 11]
        assert result["all.a"] == 0.5
        assert torch.equal(result["all.b"], torch.ones(2, 3))
        assert result["main"] == 5


@pytest.mark.parametrize("which", [0, 1])
def test_batch_normalisation_sees_the_joint_batch(found, which):
    name, network, data = ("head", "body")[which], networks()[which], inputs()[which]
    output = backward(network, data, slice(None))
    joint = torch.cat([result[f"{name}.output"] for result in found])
    torch.testing.assert_close(joint, output, rtol=1e-5, atol=1e-5)
    for result in found:
        for key, parameter in network.named_parameters():
            torch.testing.assert_close(
                result[f"{name}.grad.{key}"], parameter.grad, rtol=1e-4, atol=1e-4
            )
        for key, value in network.named_buffers():
            torch.testing.assert_close(result[f"{name}.buffer.{key}"], value)
    evaluated = network.eval()(data)
    torch.testing.assert_close(found[0][f"{name}.eval"], evaluated, rtol=1e-5, atol=1e-5)


def test_processes_need_not_hold_as_many_rows(found):
    expected = networks()[1](inputs()[1])
    joint = torch.cat([result["uneven"] for result in found])
    torch.testing.assert_close(joint, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", HALF)
def test_half_precision_is_normalised_in_float32(found, kind):
    joint = torch.cat([result[str(kind)] for result in found])
    assert joint.dtype == kind
    expected = nn.BatchNorm2d(2)(half_inputs(kind).float())
    error = torch.finfo(kind).eps
    torch.testing.assert_close(joint.float(), expected.detach(), rtol=error, atol=error)


def test_one_process_is_normalised_as_ever():
    network, expected = networks()[1], networks()[1]
    share_batch_norm(network, CPU)
    assert isinstance(network[1], JointBatchNorm)
    data = inputs()[1]
    assert torch.equal(network(data), expected(data))
    assert network.state_dict().keys() == expected.state_dict().keys()
