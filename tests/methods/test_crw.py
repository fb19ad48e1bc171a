"""CRW beyond the battery: views, nodes, draws, batch norm over processes, refused keys."""

import math
import multiprocessing
import os

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from tests.methods.batches import batch, clip, generator
from tests.ports import free_port
from tests.training.processes import train
from timewalk.config import RunConfig
from timewalk.data.patches import patch_grid
from timewalk.data.views import normalise
from timewalk.encoders import load_head
from timewalk.errors import UserError
from timewalk.methods.base import Step
from timewalk.methods.crw import CRW, CrwConfig, _changed
from timewalk.ops.collectives import mean_over_processes
from timewalk.training.distributed import Processes, joined, share_batch_norm
from timewalk.training.run import _export

CPU = torch.device("cpu")
TINY = {"name": "vit_tiny", "width": 24, "depth": 1, "heads": 4, "patch_size": 8, "image_size": 32}


def config(**keys):
    return CrwConfig.model_validate({**CrwConfig.miniature(), **keys})


def published(**keys):
    return CrwConfig.model_validate({"method": "crw", "dataset": "walks", **keys})


def step():
    return Step(0, 0, 10, 10, 1)


class TestConfig:
    def test_defaults_are_the_published_ones(self):
        found = published()
        training = found.training
        assert (found.frames_per_clip, found.step_between_frames, found.clips_per_video) == (
            8,
            8,
            5,
        )
        assert (found.image_size, found.patch_size, found.walk_nodes) == (256, 64, "grid")
        assert (found.edge_dropout, found.feature_dropout, found.temperature) == (0.1, 0, 0.07)
        assert (training.optimizer, training.learning_rate, training.epochs) == ("adam", 1e-4, 25)
        assert (training.milestones, training.gamma) == ([20, 30, 40], 0.3)
        assert (training.weight_decay, training.weight_decay_end, training.clip_grad) == (0, 0, 0)
        assert found.encoder.name == "resnet18_s8"

    @pytest.mark.parametrize(
        ("keys", "message"),
        [
            ({"frames_per_clip": 2}, "frames_per_clip is 2, but the shortest walk .* 3 or more"),
            ({"patch_size": 24}, "patch_size 24 leaves one patch in an image_size of 32"),
            ({"patch_size": 20}, "patch_size is 20; make it a multiple of encoder.patch_size 8"),
            ({"walk_nodes": "map", "image_size": 36}, "image_size is 36; make it a multiple of"),
            ({"walk_nodes": "map", "patch_flip": True}, "patch_flip mean nothing for `walk_nodes"),
            ({"edge_dropout": 1.0}, "less than 1"),
            ({"training": {"augment": "device"}}, "worker"),
        ],
    )
    def test_what_cannot_be_is_refused(self, keys, message):
        with pytest.raises(ValidationError, match=message):
            config(**keys)

    def test_machines_and_nodes_are_two_things(self):
        assert issubclass(CrwConfig, RunConfig)
        assert published(nodes=2).nodes == 2


class TestViews:
    def test_a_grid_of_patches(self):
        method = CRW(published(encoder=TINY, frames_per_clip=4))
        views = method.views(clip(4), generator())
        assert views["images"].shape == (4, 49, 3, 64, 64)
        assert views["images"].dtype == torch.uint8
        assert views["seed"].dtype == torch.int64
        places = patch_grid(method.config.image_size, method.config.patch_size)
        assert places[:2] == [(0, 0), (0, 32)]
        assert places[-1] == (192, 192)

    def test_whole_frames(self):
        method = CRW(config(walk_nodes="map", crop=False))
        frames = clip()
        found = method.views(frames, generator())["images"]
        assert found.shape == (3, 1, 3, 32, 32)
        for image, frame in zip(found, frames.permute(0, 2, 3, 1).numpy(), strict=True):
            expected = Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR)
            assert np.array_equal(image[0].permute(1, 2, 0), np.asarray(expected))

    def test_patches_lie_where_the_grid_says(self):
        """A frame of two colours: each patch shows those of its place."""
        frames = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
        frames[..., 16:] = 200
        patches = CRW(config(crop=False)).views(frames, generator())["images"].float()
        means = patches.mean(dim=(0, 2, 3, 4)).view(3, 3)
        assert torch.all(means[:, 0] == 0)
        assert torch.all(means[:, 2] == 200)
        assert torch.all((means[:, 1] > 50) & (means[:, 1] < 150))

    def test_every_frame_and_patch_has_its_own_draws(self):
        frames = clip(1).expand(3, -1, -1, -1)
        images = CRW(config(crop=False)).views(frames, generator())["images"]
        assert not torch.equal(images[0], images[1])
        images = CRW(config(walk_nodes="map")).views(frames, generator())["images"]
        assert not torch.equal(images[0], images[1])

    def test_jitter_and_flip(self):
        image = Image.fromarray(clip(1)[0].permute(1, 2, 0).numpy())
        assert _changed(image, False, False, generator()) is image
        before = np.asarray(image).astype(int)
        changed = np.asarray(_changed(image, True, False, generator())).astype(int)
        assert changed.mean() != before.mean()
        # Three factors of at most a tenth each.
        assert abs(changed - before).max() <= 0.34 * 255
        flipped = [np.asarray(_changed(image, False, True, generator(n))) for n in range(20)]
        mirrored = [np.array_equal(x, before[:, ::-1]) for x in flipped]
        assert all(m or np.array_equal(x, before) for m, x in zip(mirrored, flipped, strict=True))
        assert 3 < sum(mirrored) < 17


class TestLoss:
    def test_at_the_start_walkers_are_lost(self):
        method = CRW(config(encoder={"name": "resnet18_s8"}, frames_per_clip=4))
        losses = method.loss(batch(method, 3, frames=4), step())
        assert losses.total.item() == pytest.approx(math.log(9), abs=0.4)
        names = {f"{what}_cycle_{k}" for what in ("xent", "accuracy") for k in (1, 2)}
        assert losses.terms.keys() == names
        mean = (losses.terms["xent_cycle_1"] + losses.terms["xent_cycle_2"]) / 2
        torch.testing.assert_close(losses.total.detach(), mean)

    def test_of_a_map_every_cell_is_a_node(self):
        method = CRW(config(encoder={"name": "resnet18_s8"}, walk_nodes="map", image_size=40))
        nodes = method.nodes(batch(method)["images"])
        assert nodes.shape == (2, 3, 25, 128)
        torch.testing.assert_close(nodes.norm(dim=-1), torch.ones(2, 3, 25))
        method.eval()
        nodes = method.nodes(batch(method)["images"])
        deepest = method.encoder.deepest(
            normalise(batch(method)["images"][1, 2], method.encoder.mean, method.encoder.std)
        )
        row = method.head(deepest[0, :, 1, 3])
        torch.testing.assert_close(nodes[1, 2, 8], row / row.norm(), rtol=1e-4, atol=1e-5)

    def test_a_patch_is_the_mean_of_its_map(self):
        method = CRW(config(head_depth=2)).eval()
        images = batch(method)["images"]
        normalised = normalise(images[1, 2, 4:5], method.encoder.mean, method.encoder.std)
        row = method.head(method.encoder.deepest(normalised).mean(dim=(2, 3)))[0]
        found = method.nodes(images)[1, 2, 4]
        torch.testing.assert_close(found, row / row.norm(), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("keys", [{"edge_dropout": 0.4}, {"feature_dropout": 0.4}])
    def test_what_is_dropped_depends_on_the_clips_seed(self, keys):
        method = CRW(config(edge_dropout=0.0).model_copy(update=keys))
        data = batch(method)
        one = method.loss(data, step()).total
        assert method.loss(data, step()).total == one
        parts = [method.loss({k: x[n : n + 1] for k, x in data.items()}, step()) for n in (0, 1)]
        torch.testing.assert_close(sum(part.total for part in parts) / 2, one)
        other = method.loss({**data, "seed": data["seed"] + 1}, step()).total
        assert other != one
        # Without dropout of edges (or features) nothing is drawn.
        plain = CRW(config(edge_dropout=0.0))
        assert (
            plain.loss({**data, "seed": data["seed"] + 1}, step()).total
            == plain.loss(data, step()).total
        )

    def test_shared_drops_are_a_matter_of_compat(self):
        keys = {"edge_dropout": 0.4, "frames_per_clip": 4}
        intended, published_ = (CRW(config(**keys, compat=c)) for c in ("intended", "published"))
        data = batch(intended, frames=4)
        data["images"] = normalise(data["images"], (0.5,) * 3, (0.5,) * 3)
        assert published_.loss(data, step()).total > 1.05 * intended.loss(data, step()).total

    def test_published_training_normalises_as_cifar(self):
        method = CRW(config(compat="published"))
        images = batch(method)["images"]
        mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
        torch.testing.assert_close(method.nodes(images), method.nodes(normalise(images, mean, std)))
        assert method.encoder.mean == (0.485, 0.456, 0.406)

    def test_flipped_walks_differ(self):
        plain, flipped = CRW(config()), CRW(config(flip_walks=True))
        data = batch(plain)
        assert plain.loss(data, step()).total != flipped.loss(data, step()).total


def test_batch_norm_needs_the_whole_batch():
    assert CRW(config()).splits
    assert not CRW(config(encoder={"name": "resnet18_s8"})).splits


def test_clips_of_short_and_long_videos():
    shape = CRW(config(frames_per_clip=4, step_between_frames=8, clips_per_video=None)).clip_shape()
    assert shape[:5] == (4, 8, None, True, None)


def test_an_epoch_smaller_than_a_batch_names_the_key(tmp_path):
    keys = {**CrwConfig.miniature()["training"], "batch_size": 4}
    message = (
        r"holds 2 clips an epoch, less than .*batch_size 4; .* raise the run's clips_per_video"
    )
    with pytest.raises(UserError, match=message):
        train(config(clips_per_video=2, training=keys), tmp_path)


def test_timm_networks_train_too():
    method = CRW(config(encoder={"name": "resnet18"}))
    assert method.unused_parameters
    method.loss(batch(method), step()).total.backward()
    assert method.encoder.body.layer4[1].bn2.weight.grad.any()


def test_the_head_is_exported(tmp_path):
    method = CRW(config(head_depth=1))
    _export(method, {}, tmp_path, {}, {})
    found = load_head(tmp_path)
    assert {key: tuple(x.shape) for key, x in found.items()} == {
        "0.weight": (24, 24),
        "0.bias": (24,),
        "2.weight": (128, 24),
        "2.bias": (128,),
    }


@pytest.mark.parametrize("walk_nodes", ["grid", "map"])
def test_pictures_show_frames_and_leave_the_encoder_alone(walk_nodes):
    keys = {"encoder": {"name": "resnet18_s8"}, "walk_nodes": walk_nodes, "image_size": 64}
    method = CRW(config(**keys))
    before = {key: x.clone() for key, x in method.state_dict().items()}
    picture = method.visualise(clip(5))["walks"]
    assert picture.shape == (2 * 64, 5 * 64, 3)
    assert method.encoder.training
    assert all(torch.equal(before[key], x) for key, x in method.state_dict().items())


def gradients(rows, count=4):
    """Return loss and gradients of some clips of a batch in float64, and the statistics seen."""
    method = CRW(config(encoder={"name": "resnet18_s8"})).double()
    data = batch(method, count)
    data["images"] = normalise(data["images"], (0.5,) * 3, (0.5,) * 3).double()
    if rows != slice(None):
        share_batch_norm(method, CPU)
    total = method.loss({key: x[rows] for key, x in data.items()}, step()).total
    total.backward()
    found = {"loss": total.detach()} | {k: p.grad for k, p in method.named_parameters()}
    return found, dict(method.named_buffers())


def _worker(rank, folder, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    torch.set_num_threads(1)
    with joined(Processes(rank, 2, rank), CPU):
        found, buffers = gradients(slice(2 * rank, 2 * rank + 2))
        found = {key: mean_over_processes(x) for key, x in found.items()}
    torch.save({**found, **buffers}, f"{folder}/{rank}.pt")


def test_a_resnet_on_two_processes_learns_as_on_one(tmp_path):
    """In float64: at the kinks of ReLU float32's rounding decides on whole gradients."""
    context = multiprocessing.get_context("forkserver")
    port = str(free_port())
    workers = [context.Process(target=_worker, args=(n, str(tmp_path), port)) for n in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
    assert [worker.exitcode for worker in workers] == [0, 0]
    expected, buffers = gradients(slice(None))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for key, value in {**expected, **buffers}.items():
            torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-11, msg=key)
