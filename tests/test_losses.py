"""The facade of the alignment loss: what it offers, and what it needs."""

import inspect
import subprocess
import sys

import torch

from timewalk import losses

NEEDS = """
import sys
import torch, numpy, numpy.random
before = set(sys.modules)
import timewalk.losses
added = {name.partition(".")[0] for name in set(sys.modules) - before}
present = {name.partition(".")[0] for name in sys.modules}
assert added - sys.stdlib_module_names <= {"timewalk", "torch", "numpy"}, added
assert not {"snakemake", "mlflow", "pydantic", "torchvision", "scipy", "sklearn", "av"} & present
"""


def test_needs_torch_and_numpy_alone():
    subprocess.run([sys.executable, "-c", NEEDS], check=True)


def test_arguments_are_the_published_ones():
    signature = inspect.signature(losses.compute_alignment_loss)
    positional = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    }
    assert positional == {
        "embs": inspect.Parameter.empty,
        "batch_size": inspect.Parameter.empty,
        "steps": None,
        "seq_lens": None,
        "stochastic_matching": False,
        "normalize_embeddings": False,
        "loss_type": "classification",
        "similarity_type": "l2",
        "num_cycles": 20,
        "cycle_length": 2,
        "temperature": 0.1,
        "label_smoothing": 0.1,
        "variance_lambda": 0.001,
        "huber_delta": 0.1,
        "normalize_indices": True,
    }
    pair = inspect.signature(losses.align_pair_of_sequences)
    assert list(pair.parameters) == ["embs1", "embs2", "similarity_type", "temperature"]
    names = "embs steps seq_lens num_steps batch_size loss_type similarity_type temperature "
    names += "label_smoothing variance_lambda huber_delta normalize_indices"
    deterministic = inspect.signature(losses.compute_deterministic_alignment_loss)
    assert list(deterministic.parameters) == names.split()


def test_the_example_runs():
    embs = torch.randn(3, 4, 8, requires_grad=True)
    loss = losses.compute_alignment_loss(
        embs,
        batch_size=len(embs),
        steps=torch.tensor([[0, 3, 5, 9]] * 3),
        seq_lens=torch.tensor([10, 20, 30]),
        loss_type="regression_mse_var",
    )
    loss.backward()
    assert loss.shape == ()
    assert embs.grad.any()


def test_all_that_is_named_is_there():
    assert all(callable(getattr(losses, name)) for name in losses.__all__)
