"""One TimeT step: ours against a plain transcription of the published one, on one CPU thread.

    python benchmarks/timet_step.py            ViT-S/16, one clip of 4 frames of 224, K 200
    python benchmarks/timet_step.py --small    a ViT of 4 blocks, in seconds

Same weights, same float views, float32, without queue, each side with and without a teacher (in the
textbook's direction). First both do one step whose loss and gradients must agree. Then the sides
take turns: a step to warm up, then medians of CPU and wall seconds (other work on the machine
lengthens both). Target: three times as fast. Two minutes on an idle machine, more on a busy one.

What it shows: what one step costs at equal numbers; the published one passes its backbone four
times, with a teacher six times, ours once, with a graph for the last frame's last two blocks alone.
What not: a GPU, loading (decode.py), half precision, large batches.
"""

import argparse
import statistics
import time

import torch

from published.timet import PublishedTimeT
from timewalk.methods.base import Step
from timewalk.methods.timet import TimeT
from timewalk.methods.timet_config import TimeTConfig
from timewalk.ops.schedules import warmup_cosine
from timewalk.training.optimizers import make_optimizer, set_rates

REPEATS, WARMUP, STEPS = 5, 1, 100
LOSS_TOL, GRADIENT_TOL = 1e-6, 1e-4
SIZES = {
    "reference": {"encoder": {"name": "vit_small"}},
    "small": {
        "encoder": {"name": "vit_small", "width": 96, "depth": 4, "heads": 4, "image_size": 112},
        "image_size": 112,
        "prototypes": 50,
        "head_widths": [128, 64],
    },
}


def config_of(size, teacher):
    training = {"batch_size": 1, "epochs": 1}
    return TimeTConfig.model_validate(
        {
            "method": "timet",
            "dataset": "random",
            "training": training,
            "teacher": teacher,
            **SIZES[size],
        }
    )


def step_number(index):
    return Step(index=index, epoch=0, total=STEPS, steps_per_epoch=STEPS, epochs=1)


def views(config):
    """Return a normalised clip (1, F, 3, S, S): a smooth random picture that drifts."""
    rng = torch.Generator().manual_seed(0)
    side, frames = config.image_size, config.frames_per_clip
    coarse = torch.randn(1, 3, 12, 12, generator=rng)
    wide = torch.nn.functional.interpolate(coarse, (side + 8 * frames,) * 2, mode="bicubic")
    drift = [wide[0, :, 8 * t : 8 * t + side, 4 * t : 4 * t + side] for t in range(frames)]
    return torch.stack(drift).unsqueeze(0)


class Ours:
    """The step as the trainer takes it."""

    def __init__(self, size, teacher):
        self.config = config_of(size, teacher)
        self.method = TimeT(self.config)
        self.groups = self.method.parameter_groups()
        self.optimizer = make_optimizer(self.groups, self.config.training)

    def step(self, images, index):
        step = step_number(index)
        set_rates(self.optimizer, self.groups, self.config.training, step)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.method.loss({"images": images}, step)
        losses.total.backward()
        self.optimizer.step()
        self.method.after_step(step, losses.rows)
        return losses.total.detach()

    def gradients(self):
        return {name: p.grad for name, p in self.method.named_parameters() if p.requires_grad}


class Published:
    """The transcribed step at the weights and rates of ours."""

    def __init__(self, size, teacher):
        self.config = config_of(size, teacher)
        method = TimeT(self.config)
        vit = method.encoder
        shape = (vit.width, len(vit.blocks), vit.heads, self.config.encoder.image_size)
        prototypes = method.prototypes.detach()
        self.model = PublishedTimeT(shape, self.config.head_widths, prototypes, teacher)
        self.model.student.backbone.load_state_dict(vit.state_dict())
        self.model.student.head.load_state_dict(method.head.state_dict())
        self.model.begin()

    def step(self, images, index):
        training = self.config.training
        start, end = training.weight_decay, training.weight_decay_end
        after = min(index + 1, STEPS - 1)
        rates = {
            "lr": warmup_cosine(index, STEPS, training.learning_rate, training.min_learning_rate),
            "weight_decay": warmup_cosine(index, STEPS, start, end),
            "momentum": warmup_cosine(after, STEPS, self.config.ema_momentum, 1.0),
        }
        return self.model.step(images, rates)

    def gradients(self):
        student = self.model.student
        parts = {"encoder.": student.backbone, "head.": student.head}
        named = {p + n: x.grad for p, part in parts.items() for n, x in part.named_parameters()}
        return named | {"prototypes": self.model.prototypes.grad}


def check(size, teacher):
    """Do the first step on both sides; stop unless loss and gradients agree."""
    theirs, ours = Published(size, teacher), Ours(size, teacher)
    if teacher:  # one that differs from the student
        rng = torch.Generator().manual_seed(1)
        noise = torch.randn(ours.method.prototypes.shape, generator=rng)
        ours.method.teacher.prototypes.copy_(torch.nn.functional.normalize(noise))
        theirs.model.teacher_prototypes = ours.method.teacher.prototypes.clone()
    images = views(ours.config)
    expected, found = theirs.step(images, 0), ours.step(images, 0)
    gradients, worst = theirs.gradients(), 0.0
    for name, gradient in ours.gradients().items():
        other = gradients[name]
        if name.endswith("attn.qkv.bias"):  # the keys' bias: ours has no rounding there
            other.unflatten(0, (3, -1))[1].zero_()
        worst = max(worst, ((gradient - other).norm() / other.norm()).item())
    print(
        f"{'with' if teacher else 'no'} teacher: loss published {expected:.7f}, ours {found:.7f}; "
        f"largest relative distance of a parameter's gradient {worst:.1e}"
    )
    torch.testing.assert_close(found, expected, rtol=LOSS_TOL, atol=0)
    assert worst < GRADIENT_TOL, "gradients differ"


def main():
    parser = argparse.ArgumentParser(description="One TimeT step: ours against the published one.")
    parser.add_argument("--small", action="store_true", help="a small ViT, in seconds")
    parser.add_argument("--repeats", type=int, default=REPEATS)
    options = parser.parse_args()
    size = "small" if options.small else "reference"
    torch.set_num_threads(1)
    for teacher in (False, True):
        check(size, teacher)
    sides = {
        (name, teacher): side(size, teacher)
        for teacher in (False, True)
        for name, side in (("published", Published), ("ours", Ours))
    }
    images = views(config_of(size, False))
    costs = {key: [] for key in sides}
    for index in range(WARMUP + options.repeats):
        for key, side in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            side.step(images, index)
            costs[key].append((time.process_time() - cpu, time.perf_counter() - wall))
    report({key: pairs[WARMUP:] for key, pairs in costs.items()})


def report(costs):
    print(f"\n{'':24} {'CPU s':>7} {'min':>6} {'max':>6} {'ratio':>6} {'wall s':>7} {'ratio':>6}")
    for (name, teacher), pairs in costs.items():
        cpu, wall = zip(*pairs, strict=True)
        base = [statistics.median(k) for k in zip(*costs["published", teacher], strict=True)]
        cpu_s, wall_s = statistics.median(cpu), statistics.median(wall)
        print(
            f"{name + (', teacher' if teacher else ''):24} {cpu_s:7.3f} {min(cpu):6.3f} "
            f"{max(cpu):6.3f} {base[0] / cpu_s:6.2f} {wall_s:7.3f} {base[1] / wall_s:6.2f}"
        )


if __name__ == "__main__":
    main()
