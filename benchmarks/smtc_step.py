"""One SMTC step: ours against a plain transcription of the published one, on one CPU thread.

    python benchmarks/smtc_step.py            ViT-S/16, one clip of 4 frames of 256, 16 x 4 slots
    python benchmarks/smtc_step.py --small    a ViT of 4 blocks, in seconds

Same weights, same float views, same draws of instances, float32, no drop path. First both do two
steps whose losses must agree, and the first one's gradients. Then each side, in a fresh process of
its own, takes turns with the others: a step to warm up, then medians of CPU and wall seconds (other
work on the machine lengthens both). `frozen` is the phase in which the encoder does not learn: the
published one computes its gradients all the same. Memory: what a side adds to its process, networks
and optimiser included, and not the imports. Two minutes on an idle machine, more on a busy one.

What it shows: what one step costs at equal numbers. What not: a GPU, loading (the colours of the
views are drawn there, in ours by the loader's workers), half precision, large batches, where the
published table of slots by tokens by tokens counts for more.
"""

import argparse
import multiprocessing
import statistics
import time
from importlib import import_module
from pathlib import Path

import torch

from published.smtc import PublishedSMTC
from timewalk.methods.base import Step
from timewalk.methods.smtc import SMTC
from timewalk.methods.smtc_config import SMTCConfig
from timewalk.ops.schedules import warmup_cosine
from timewalk.training.optimizers import make_optimizer, set_rates

REPEATS, WARMUP, STEPS = 5, 1, 100
LOSS_TOL, GRADIENT_TOL = 1e-5, 1e-3
SHARPNESS = 20
"""factor on the queries' weights: with those at the start no semantic is large enough for its
instances to be valid, and the instance loss would be 0"""
SHIFTS = {"slot_attention.norm_slots.bias", "slot_attention.project_q.bias"}
"""they shift all scores of a token alike, which a softmax takes no notice of: no gradient"""
SIZES = {
    "reference": {"encoder": {"name": "vit_small"}},
    "small": {
        "encoder": {"name": "vit_small", "width": 96, "depth": 4, "heads": 4, "image_size": 112},
        "image_size": 112,
        "slots": 6,
        "instances": 3,
    },
}


def config_of(size, frozen):
    keys = dict(SIZES[size])
    return SMTCConfig.model_validate(
        {
            "method": "smtc",
            "dataset": "random",
            "encoder": {"drop_path": 0.0, **keys.pop("encoder")},
            "training": {"batch_size": 1, "precision": "fp32"},
            "frozen_steps": STEPS if frozen else 0,
            **keys,
        }
    )


def method_of(config):
    method = SMTC(config)
    for network in (method.student, method.teacher):
        network.slots.slot_attention.project_q.weight.data.mul_(SHARPNESS)
    return method


def step_number(index):
    return Step(index=index, epoch=0, total=STEPS, steps_per_epoch=STEPS, epochs=1)


def views(config):
    """Return normalised views (1, 2, T, 3, L, L): a smooth random picture that drifts, and another
    contrast of it."""
    rng = torch.Generator().manual_seed(0)
    side, frames = config.image_size, config.frames_per_clip
    coarse = torch.randn(1, 3, 12, 12, generator=rng)
    wide = torch.nn.functional.interpolate(coarse, (side + 8 * frames,) * 2, mode="bicubic")
    drift = [wide[0, :, 8 * t : 8 * t + side, 4 * t : 4 * t + side] for t in range(frames)]
    clip = torch.stack(drift)
    return torch.stack([clip, 0.8 * clip + 0.1]).unsqueeze(0)


class Ours:
    """The step as the trainer takes it."""

    def __init__(self, size, frozen):
        self.config = config_of(size, frozen)
        self.method = method_of(self.config)
        self.groups = self.method.parameter_groups()
        self.optimizer = make_optimizer(self.groups, self.config.training)

    def step(self, images, index):
        step = step_number(index)
        set_rates(self.optimizer, self.groups, self.config.training, step)
        self.optimizer.zero_grad(set_to_none=True)
        batch = {"images": images, "noise_seed": torch.tensor([index])}
        self.losses = self.method.loss(batch, step)
        self.losses.total.backward()
        self.optimizer.step()
        self.method.after_step(step, {})
        return self.losses.total.detach()

    def gradients(self):
        student = self.method.student
        named = {f"encoder.{n}": p.grad for n, p in student.encoder.named_parameters()}
        named |= {n: p.grad for n, p in student.slots.named_parameters()}
        return {name: gradient for name, gradient in named.items() if gradient is not None}


class Published:
    """The transcribed step at the weights, rates and draws of ours."""

    def __init__(self, size, frozen):
        self.config = config = config_of(size, frozen)
        method = method_of(config)
        vit, slots = method.student.encoder, method.student.slots
        shape = (vit.width, len(vit.blocks), vit.heads, config.encoder.image_size)
        tokens = (config.image_size // vit.stride) ** 2
        self.model = PublishedSMTC(shape, tokens, config.slots, config.iterations)
        named = {f"encoder.{name}": x for name, x in vit.state_dict().items()}
        self.model.student.load_state_dict(named | slots.state_dict())
        self.model.begin()
        self.draws = method._noise

    def step(self, images, index):
        training = self.config.training
        rate = warmup_cosine(index, STEPS, training.learning_rate, training.min_learning_rate)
        scale = 0 if index < self.config.frozen_steps else self.config.backbone_lr_scale
        noise = self.draws([index], images.shape[2])
        return self.model.step(images.unbind(dim=1), noise, rate, scale)

    def gradients(self):
        return {name: p.grad for name, p in self.model.student.named_parameters()}


def distance(theirs, ours):
    """Return the largest relative distance of the gradients of a parameter that has one."""
    others, worst = theirs.gradients(), 0.0
    last = f"encoder.blocks.{len(ours.method.encoder.blocks) - 1}."
    for name, gradient in ours.gradients().items():
        other = others[name].clone()
        if name in SHIFTS:
            continue
        if name.endswith("attn.qkv.bias") and not name.startswith(last):
            other.unflatten(0, (3, -1))[1].zero_()  # the keys' bias: ours has no rounding there
        norm = other.norm().clamp(min=1e-12)
        worst = max(worst, ((gradient - other).norm() / norm).item())
    return worst


def check(size, frozen):
    """Do two steps on both sides; stop unless losses and the first gradients agree."""
    theirs, ours = Published(size, frozen), Ours(size, frozen)
    images = views(ours.config)
    losses = [(theirs.step(images, 0), ours.step(images, 0))]
    terms = {name: round(float(term), 4) for name, term in ours.losses.terms.items()}
    worst = distance(theirs, ours)
    losses.append((theirs.step(images, 1), ours.step(images, 1)))
    print(f"{'frozen' if frozen else 'learning'}: first step {terms}")
    for expected, found in losses:
        print(f"  loss published {expected:.7f}, ours {found:.7f}")
        torch.testing.assert_close(found, expected, rtol=LOSS_TOL, atol=0)
    print(f"  largest relative distance of a parameter's gradient {worst:.1e}")
    assert worst < GRADIENT_TOL, "gradients differ"


def high_water_mb():
    """Return the most memory this process ever held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def serve(connection, side, size, frozen):
    """Do a step for each number that comes, until None; then send peak memory."""
    torch.set_num_threads(1)
    images = views(config_of(size, frozen))
    import_module("timm.models.vision_transformer")  # a library is no part of a step's memory
    before = high_water_mb()
    side = side(size, frozen)
    while (index := connection.recv()) is not None:
        wall, cpu = time.perf_counter(), time.process_time()
        side.step(images, index)
        connection.send((time.process_time() - cpu, time.perf_counter() - wall))
    connection.send(high_water_mb() - before)


class Worker:
    """One side in a process of its own, where no other's memory is in its way."""

    def __init__(self, side, size, frozen):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, side, size, frozen)
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # so that a worker that dies ends the wait for its answer

    def ask(self, what):
        self.connection.send(what)
        return self.connection.recv()


def main():
    parser = argparse.ArgumentParser(description="One SMTC step: ours against the published one.")
    parser.add_argument("--small", action="store_true", help="a small ViT, in seconds")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    size = "small" if options.small else "reference"
    torch.set_num_threads(1)
    for frozen in (False, True):
        check(size, frozen)
    workers = {
        (name, frozen): Worker(side, size, frozen)
        for frozen in (False, True)
        for name, side in (("published", Published), ("ours", Ours))
    }
    costs = {key: [] for key in workers}
    for index in range(WARMUP + options.repeats):
        for key, worker in workers.items():
            costs[key].append(worker.ask(index))
    peaks = {key: worker.ask(None) for key, worker in workers.items()}
    report({key: pairs[WARMUP:] for key, pairs in costs.items()}, peaks)


def report(costs, peaks):
    print(
        f"\n{'':20} {'CPU s':>7} {'min':>6} {'max':>6} {'ratio':>6} {'wall s':>7} {'ratio':>6} "
        f"{'peak MB':>8} {'share':>6}"
    )
    for (name, frozen), pairs in costs.items():
        cpu, wall = zip(*pairs, strict=True)
        theirs = "published", frozen
        base = [statistics.median(kind) for kind in zip(*costs[theirs], strict=True)]
        cpu_s, wall_s, peak = statistics.median(cpu), statistics.median(wall), peaks[name, frozen]
        print(
            f"{name + (', frozen' if frozen else ''):20} {cpu_s:7.3f} {min(cpu):6.3f} "
            f"{max(cpu):6.3f} {base[0] / cpu_s:6.2f} {wall_s:7.3f} {base[1] / wall_s:6.2f} "
            f"{peak:8.0f} {peak / peaks[theirs]:6.2f}"
        )


if __name__ == "__main__":
    main()
