"""One DoRA step: ours against a plain transcription of the published one, on one CPU thread.

    python benchmarks/dora_step.py            ViT-S/16, one clip of 4 frames, 2 local views, D 4096
    python benchmarks/dora_step.py --small    a ViT of 4 blocks, in seconds

Same weights, same float views, same heads drawn, float32, no drop path, `compat: published`. First
both do one step whose loss, masks and gradients must agree. Then each side, in a fresh process of
its own, takes turns with the others: two steps to warm up, then medians of CPU and wall seconds
(other work on the machine lengthens both). Memory: what a side adds to its process, networks and
optimiser included, and not the imports. `cheap` and `full` are the settings of
`training.activation_checkpointing`. Targets: 1.15 times as fast, better 1.3, and half the memory.
Two to three minutes on an idle machine, more on a busy one.

What it shows: what one step costs at equal numbers, and which part of ours takes it. The published
loop throws one local view's pass away, which ours at equal numbers does not make: `intended` is the
same step of ours with the loss that counts that view too. What not: a GPU (throughput.py), loading
(decode.py), drop path, half precision.
"""

import argparse
import multiprocessing
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch

from published.dora import PublishedDora
from timewalk.methods.base import Step
from timewalk.methods.dora import DoRA, DoraConfig
from timewalk.ops.clipping import clip_each_
from timewalk.ops.schedules import warmup_cosine
from timewalk.training.optimizers import learning_parameters, make_optimizer, set_rates
from timewalk.training.wrap import recompute

REPEATS, WARMUP, STEPS = 3, 2, 100
LOSS_RTOL, GRADIENT_TOL = 1e-4, 1e-3
SIZES = {
    "reference": {"encoder": {"name": "vit_small"}, "frames_per_clip": 4, "out_dim": 4096},
    "small": {
        "encoder": {"name": "vit_small", "width": 96, "depth": 4, "heads": 4, "image_size": 64},
        "frames_per_clip": 3,
        "out_dim": 256,
        "global_size": 64,
        "local_size": 32,
        "head_hidden": 256,
        "head_bottleneck": 64,
    },
}
PARTS = ("teacher", "tracking", "student forward", "backward", "clip", "optimiser", "EMA")


class Watch:
    """CPU seconds by the name of a part."""

    def __init__(self):
        self.seconds = defaultdict(float)

    @contextmanager
    def __call__(self, name):
        start = time.process_time()
        yield
        self.seconds[name] += time.process_time() - start

    def around(self, owner, attribute, name):
        """Time a method of one object from now on."""
        plain = getattr(owner, attribute)

        def timed(*arguments, **keys):
            with self(name):
                return plain(*arguments, **keys)

        setattr(owner, attribute, timed)


def config_of(size, compat):
    keys = dict(SIZES[size])
    encoder = {"drop_path": 0.0, **keys.pop("encoder")}
    training = {"batch_size": 1, "epochs": 1, "warmup_epochs": 0, "precision": "fp32"}
    return DoraConfig(
        method="dora",
        dataset="random",
        encoder=encoder,
        training=training,
        local_crops=2,
        freeze_last_layer_epochs=0,
        compat=compat,
        **keys,
    )


def step_number(index):
    return Step(index=index, epoch=0, total=STEPS, steps_per_epoch=STEPS, epochs=1)


def views(config):
    """Return normalised views (1, F, 3, S, S) and (1, L, F, 3, s, s): smooth random pictures."""
    rng = torch.Generator().manual_seed(0)
    frames, crops = config.frames_per_clip, config.local_crops

    def pictures(count, side):
        coarse = torch.randn(count, 3, 7, 7, generator=rng)
        return torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")

    whole = pictures(frames, config.global_size).unsqueeze(0)
    local = pictures(crops * frames, config.local_size).unflatten(0, (1, crops, frames))
    return whole, local


class Ours:
    """The step as the trainer takes it."""

    def __init__(self, size, compat="published", checkpointing="off"):
        self.config = config_of(size, compat)
        self.method = DoRA(self.config)
        self.method.train()
        if checkpointing != "off":
            for region in self.method.student.backbone.regions():
                recompute(region, checkpointing)
        self.groups = self.method.parameter_groups()
        self.optimizer = make_optimizer(self.groups, self.config.training)
        self.watch = Watch()
        teacher = self.method.teacher
        self.watch.around(teacher.backbone, "tokens", "teacher")
        self.watch.around(teacher.head, "forward", "teacher")
        self.watch.around(self.method, "look", "teacher and tracking")
        self.watch.around(self.method.student, "forward", "student forward")

    def step(self, whole, local, index):
        watch, step = self.watch, step_number(index)
        set_rates(self.optimizer, self.groups, self.config.training, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.method.loss({"global": whole, "local": local}, step)
        with watch("backward"):
            losses.total.backward()
        with watch("clip"):
            clip_each_(learning_parameters(self.groups), self.config.training.clip_grad)
        with watch("optimiser"):
            self.optimizer.step()
        with watch("EMA"):
            self.method.after_step(step, losses.means)
        return losses.total.detach()


class Published:
    """The transcribed step at the weights, rates and heads of ours."""

    def __init__(self, size):
        self.config = config_of(size, "published")
        method = DoRA(self.config)
        self.choose_heads = method.choose_heads
        blocks = method.student.backbone
        shape = (blocks.width, len(blocks.blocks), blocks.heads)
        widths = (self.config.out_dim, self.config.head_hidden, self.config.head_bottleneck)
        self.model = PublishedDora(shape, (self.config.encoder.image_size, *widths))
        for network in (self.model.student, self.model.teacher):
            network.load_state_dict(method.student.state_dict())

    def step(self, whole, local, index):
        training, where = self.config.training, step_number(index)
        peak = training.learning_rate * training.batch_size / 256
        rates = {
            "lr": warmup_cosine(index, STEPS, peak, training.min_learning_rate),
            "weight_decay": warmup_cosine(
                index, STEPS, training.weight_decay, training.weight_decay_end
            ),
            "clip": training.clip_grad,
            "temperature": self.config.teacher_temperature,
            "momentum": warmup_cosine(index, STEPS, self.config.momentum_teacher, 1.0),
        }
        heads = self.choose_heads(where)
        loss, self.masked = self.model.step(whole, list(local.unbind(1)), heads, rates)
        return loss


def check(theirs, ours, whole, local):
    """Do the first step on both sides; stop unless loss, masks and gradients agree."""
    seen = []
    ours.method.student.register_forward_pre_hook(lambda _, crops: seen.append(crops[0]))
    expected, found = theirs.step(whole, local, 0), ours.step(whole, local, 0)
    masked = torch.stack(theirs.masked).flatten(0, 2)
    different = (masked != seen[0]).float().mean().item()
    print(
        f"loss: published {expected:.6f}, ours {found:.6f}; masked pixels that differ {different}"
    )
    assert different == 0, "masks differ"
    torch.testing.assert_close(found, expected, rtol=LOSS_RTOL, atol=0)
    gradients = {n: p.grad for n, p in theirs.model.student.named_parameters()}
    worst = 0.0
    for name, parameter in ours.method.student.named_parameters():
        if parameter.requires_grad:
            distance = (parameter.grad - gradients[name]).norm() / gradients[name].norm()
            worst = max(worst, distance.item())
    print(f"gradients (clipped): largest relative distance of a parameter's {worst:.1e}")
    assert worst < GRADIENT_TOL, "gradients differ"
    centre = theirs.model.criterion.center
    torch.testing.assert_close(ours.method.centre, centre, rtol=1e-3, atol=1e-6)


def high_water_mb():
    """Return the most memory this process ever held."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def serve(connection, name, size):
    """Do a step for each number that comes, until None; then send peak memory and parts."""
    torch.set_num_threads(1)
    inputs = views(config_of(size, "published"))
    import_module("timm.models.vision_transformer")  # a library is no part of a step's memory
    before = high_water_mb()
    side = SIDES[name](size)
    while (index := connection.recv()) is not None:
        if index == WARMUP and name == "ours":
            side.watch.seconds.clear()
        wall, cpu = time.perf_counter(), time.process_time()
        side.step(*inputs, index)
        connection.send((time.process_time() - cpu, time.perf_counter() - wall))
    parts = dict(side.watch.seconds) if name == "ours" else {}
    connection.send((high_water_mb() - before, parts))


class Worker:
    """One side in a process of its own, where no other's memory is in its way."""

    def __init__(self, name, size):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, size), daemon=True)
        self.process.start()
        theirs.close()  # so that a worker that dies ends the wait for its answer

    def ask(self, what):
        self.connection.send(what)
        return self.connection.recv()


SIDES = {
    "published": Published,
    "ours": Ours,
    "ours, intended": lambda size: Ours(size, "intended"),
    "ours, cheap": lambda size: Ours(size, checkpointing="cheap"),
    "ours, full": lambda size: Ours(size, checkpointing="full"),
}


def main():
    parser = argparse.ArgumentParser(description="One DoRA step: ours against the published one.")
    parser.add_argument("--small", action="store_true", help="a small ViT, in seconds")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    size = "small" if options.small else "reference"
    torch.set_num_threads(1)
    check(Published(size), Ours(size), *views(config_of(size, "published")))
    workers = {name: Worker(name, size) for name in SIDES}
    costs = {name: [] for name in SIDES}
    for index in range(WARMUP + options.repeats):
        for name, worker in workers.items():
            costs[name].append(worker.ask(index))
    ends = {name: worker.ask(None) for name, worker in workers.items()}
    report(costs, ends, options.repeats)


def report(costs, ends, repeats):
    print(
        f"\n{'':16} {'CPU s':>7} {'min':>6} {'max':>6} {'ratio':>6} {'wall s':>7} {'ratio':>6} "
        f"{'peak MB':>8} {'share':>6}"
    )
    base = [statistics.median(kind) for kind in zip(*costs["published"][WARMUP:], strict=True)]
    for name, pairs in costs.items():
        cpu, wall = zip(*pairs[WARMUP:], strict=True)
        cpu_s, wall_s, memory = statistics.median(cpu), statistics.median(wall), ends[name][0]
        print(
            f"{name:16} {cpu_s:7.2f} {min(cpu):6.2f} {max(cpu):6.2f} {base[0] / cpu_s:6.2f} "
            f"{wall_s:7.2f} {base[1] / wall_s:6.2f} {memory:8.0f} "
            f"{memory / ends['published'][0]:6.2f}"
        )
    parts = ends["ours"][1]
    parts["tracking"] = parts["teacher and tracking"] - parts["teacher"]
    print("\nours, CPU s a step (means):")
    for part in PARTS:
        print(f"  {part:16} {parts[part] / repeats:7.3f}")


if __name__ == "__main__":
    main()
