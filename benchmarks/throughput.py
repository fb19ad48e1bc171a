"""Training throughput of DINO and DoRA: samples/s, share of the device's peak, memory.

    python benchmarks/throughput.py                  all rows on the GPU; without one, the miniature
    python benchmarks/throughput.py --miniature      tiny networks on the CPU, in seconds
    python benchmarks/throughput.py --method dora --batch 8 --compile on --profile

ViT-S/16 at the published shapes (DoRA: clips of 8 frames, 6 local views; DINO: 2 global and 8 local
crops; head of 65536), bf16, blocks compiled or not. A step is what the trainer does with a batch:
uint8 views on the device, `wrap`'s loss, backward, clipping, optimiser, teacher. The table is
printed row by row and, with a GPU or `--output`, written as Markdown to `benchmarks/results/`.

FLOPs are counted by hand: matrix products that the method needs, a multiply-add as two, backward as
twice forward (the patch embedding once: pixels need no gradient), no recomputation; of the
student's last block only the class token's row. MFU is these FLOPs over time and the GPU's dense
peak of its data sheet; there is none for a CPU or a GPU that is not listed. Memory: the GPU's peak
of each row; on a CPU the whole process's so far.

What it shows: how fast networks and losses are with data at hand. What not: loading (decode.py),
several GPUs, whether training learns (learn.py). The miniature shows that the script runs, no more.
"""

import argparse
import gc
import time
from pathlib import Path

import torch

from timewalk.artefacts import write_text
from timewalk.methods import get_method
from timewalk.methods.base import Step
from timewalk.ops.clipping import clip_each_
from timewalk.training.optimizers import learning_parameters, make_optimizer, set_rates
from timewalk.training.system import peak_memory_mb
from timewalk.training.wrap import wrap

RESULTS = Path(__file__).parent / "results"
PEAK_FLOPS = {"H200": {"bf16": 989e12, "fp32": 67e12}, "H100": {"bf16": 989e12, "fp32": 67e12}}
BATCH = {"dora": 16, "dino": 64}
SHAPES = {
    "dora": {"frames_per_clip": 8, "step_between_clips": 60, "local_crops": 6},
    "dino": {"local_crops": 8},
}
WARMUP = 3
COLUMNS = (
    *("method", "precision", "compile", "batch", "ms/step", "samples/s", "images/s"),
    *("GFLOPs/sample", "TFLOP/s", "MFU %", "peak MB"),
)


def config_of(name, options, batch, compiled):
    kind = get_method(name).Config
    if options.miniature:
        keys = kind.miniature()
    else:
        keys = {"method": name, "dataset": "random", "encoder": {"name": "vit_small"}}
        keys |= SHAPES[name]
    training = {"batch_size": batch, "precision": options.precision, "warmup_epochs": 0}
    training["compile"] = "default" if compiled else "off"
    return kind(**{**keys, "training": {**keys.get("training", {}), **training}})


def random_batch(name, config, batch, device):
    """Return uint8 views as the loader leaves them."""
    frames = (config.frames_per_clip,) if name == "dora" else ()
    whole = (*frames, 3, config.global_size, config.global_size)
    local = (config.local_crops, *frames, 3, config.local_size, config.local_size)
    whole = whole if name == "dora" else (2, *whole)
    shapes = {"global": (batch, *whole), "local": (batch, *local)}
    rng = torch.Generator(device).manual_seed(0)
    return {
        key: torch.randint(256, shape, dtype=torch.uint8, device=device, generator=rng)
        for key, shape in shapes.items()
    }


def passes(name, config):
    """Return the images of a sample: (whole for the teacher, whole and local for the student)."""
    if name == "dino":
        return 2, 2, config.local_crops
    frames = config.frames_per_clip
    return frames, config.num_objects * frames, config.local_crops * frames


def image_flops(vit, config, side, summary):
    """Return the forward FLOPs of one image in (patch embedding, blocks and head)."""
    width, depth = vit.width, len(vit.blocks)
    patches = (side // vit.stride) ** 2
    tokens = patches + 1
    embedding = 2 * patches * 3 * vit.stride**2 * width
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    class_row = 20 * width**2 + 4 * tokens * width**2 + 4 * tokens * width
    last = class_row if summary else block
    hidden, neck = config.head_hidden, config.head_bottleneck
    head = 2 * (width * hidden + hidden**2 + hidden * neck + neck * config.out_dim)
    return embedding, (depth - 1) * block + last + head


def sample_flops(name, config, vit):
    """Return the FLOPs of a training step for one clip (DoRA) or image (DINO)."""
    teacher, whole, local = passes(name, config)
    total = teacher * sum(image_flops(vit, config, config.global_size, name == "dino"))
    for count, side in ((whole, config.global_size), (local, config.local_size)):
        embedding, rest = image_flops(vit, config, side, True)
        total += count * (2 * embedding + 3 * rest)
    return total


def trainer_step(method, config, device):
    """Return a function of (batch, index) that takes one step as the trainer does."""
    settings = config.training
    loss = wrap(method, settings, device)
    groups = method.parameter_groups()
    optimizer = make_optimizer(groups, settings)

    def step(batch, index):
        where = Step(index, epoch=1, total=1000, steps_per_epoch=100, epochs=10)
        set_rates(optimizer, groups, settings, where)
        optimizer.zero_grad(set_to_none=True)
        total, losses = loss(batch, where)
        total.backward()
        clip_each_(learning_parameters(groups), settings.clip_grad)
        method.after_backward(where)
        optimizer.step()
        method.after_step(where, losses.means | losses.rows)
        return total.detach()

    return step


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_flops(device, precision):
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks.get(precision) for key, peaks in PEAK_FLOPS.items() if key in name), None)


def measure(name, compiled, options, device):
    """Return a row of the table."""
    batch = options.batch or (2 if options.miniature else BATCH[name])
    config = config_of(name, options, batch, compiled)
    method = get_method(name)(config).to(device)
    method.train()
    views = random_batch(name, config, batch, device)
    step = trainer_step(method, config, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for index in range(WARMUP):
        step(views, index)
    wait(device)
    start = time.perf_counter()
    for index in range(WARMUP, WARMUP + options.steps):
        total = step(views, index)
    wait(device)
    seconds = (time.perf_counter() - start) / options.steps
    if not torch.isfinite(total):
        raise SystemExit(f"{name}: the loss is {total.item()}; these figures would mean nothing.")
    memory = peak_memory_mb(device)
    if options.profile:
        profile(step, views, device, f"{name}, compile {'on' if compiled else 'off'}")
    flops = sample_flops(name, config, method.student.backbone)
    rate, peak = batch / seconds, peak_flops(device, options.precision)
    share = f"{100 * rate * flops / peak:.1f}" if peak else "-"
    images = rate * sum(passes(name, config))
    return (
        *(name, options.precision, "on" if compiled else "off", batch, f"{1e3 * seconds:.1f}"),
        *(f"{rate:.1f}", f"{images:.0f}", f"{flops / 1e9:.3g}", f"{rate * flops / 1e12:.3g}"),
        *(share, f"{memory:.0f}"),
    )


def profile(step, views, device, title):
    """Print which operators take the time of two steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    kinds = [ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds.append(ProfilerActivity.CUDA)
    with profiler(activities=kinds) as found:
        for index in range(2):
            step(views, index)
        wait(device)
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(f"\n{title}\n{found.key_averages().table(sort_by=key, row_limit=25)}", flush=True)


def line(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main():
    parser = argparse.ArgumentParser(description="Training throughput of DINO and DoRA.")
    parser.add_argument("--method", choices=sorted(SHAPES), nargs="+", default=sorted(SHAPES))
    parser.add_argument("--compile", choices=("on", "off", "both"))
    parser.add_argument("--batch", type=int, help="samples in a step (16 clips, 64 images)")
    parser.add_argument("--precision", choices=("bf16", "fp32"))
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed")
    parser.add_argument("--device", help="default: the GPU")
    parser.add_argument("--miniature", action="store_true", help="tiny networks, in seconds")
    parser.add_argument("--profile", action="store_true", help="which operators take the time")
    parser.add_argument("--output", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    on_gpu = device.type == "cuda"
    if not on_gpu and not options.device and not options.miniature:
        print("No GPU: the miniature on the CPU, which shows that the script runs, no more.")
        options.miniature = True
    options.precision = options.precision or ("bf16" if on_gpu else "fp32")
    compiles = {"on": [True], "off": [False], "both": [False, True]}
    where = torch.cuda.get_device_name(device) if on_gpu else "CPU, one thread"
    if not on_gpu:
        torch.set_num_threads(1)
    size = "miniature" if options.miniature else "ViT-S/16, published shapes"
    lines = [f"Training throughput: {size}; {where}; torch {torch.__version__}", ""]
    lines += [line(COLUMNS), line("---" for _ in COLUMNS)]
    print("\n".join(lines), flush=True)
    for name in options.method:
        for compiled in compiles[options.compile or ("both" if on_gpu else "off")]:
            lines.append(line(measure(name, compiled, options, device)))
            print(lines[-1], flush=True)
            gc.collect()
            torch._dynamo.reset()
            if on_gpu:
                torch.cuda.empty_cache()
    output = options.output
    if output is None and on_gpu and not options.miniature:
        output = RESULTS / f"throughput-{where.split()[-1].lower()}.md"
    if output:
        write_text(output, "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
