"""An evaluation between epochs: when, what is kept, and that nothing is done twice."""

import json

import pytest
import torch

from tests.training.toy import Clips, Toy, toy_config
from timewalk.artefacts import read_json, sha256_file
from timewalk.config import EncoderConfig, Validation
from timewalk.encoders import build_encoder, load_encoder
from timewalk.errors import UserError
from timewalk.methods.base import Step
from timewalk.training.between import BetweenEpochs
from timewalk.training.loop import InterruptedTraining, Machine, Trainer

CPU = torch.device("cpu")
TINY = {"name": "vit_tiny", "width": 24, "depth": 1, "heads": 3, "patch_size": 8, "image_size": 16}
SETTINGS = Validation(evaluation="clusters", every=2, metric="miou")


def encoder(seed=0):
    return build_encoder(EncoderConfig(**TINY), seed)


def step(index, total=10, steps_per_epoch=2):
    return Step(index, index // steps_per_epoch, total, steps_per_epoch, 5)


class Scores:
    """Returns the given scores one after the other and counts."""

    def __init__(self, *scores):
        self.scores, self.calls = list(scores), 0

    def __call__(self, folder):
        load_encoder(folder)
        self.calls += 1
        return {"miou": self.scores[self.calls - 1], "empty": None}


def between(folder, scores, settings=SETTINGS):
    return BetweenEpochs(settings, folder, scores, {"run": "a"})


def test_it_is_due_before_the_first_epoch_each_so_many_and_after_the_last():
    found = between(None, None)
    assert [i for i in range(11) if found.due(step(i))] == [0, 4, 8, 10]
    assert [i for i in range(8) if found.due(step(i, total=7))] == [0, 4, 7]


def test_the_best_encoder_is_kept(tmp_path):
    scores = Scores(1.0, 3.0, 2.0)
    one = between(tmp_path / "v", scores)
    for number in range(3):
        record = one(encoder(number), step(4 * number))
    assert record == {"validation_miou": 2.0, "validation_empty": None}
    one.export(tmp_path / "run")
    best = load_encoder(tmp_path / "run" / "best").state_dict()
    assert all(torch.equal(best[key], value) for key, value in encoder(1).state_dict().items())
    history = read_json(tmp_path / "run" / "validation.json")
    assert [(x["step"], x["epoch"], x["metrics"]["miou"]) for x in history] == [
        (0, 0, 1.0),
        (4, 2, 3.0),
        (8, 4, 2.0),
    ]
    best_file = tmp_path / "run" / "best" / "encoder.safetensors"
    assert history[1]["encoder_sha256"] == sha256_file(best_file)


def test_the_same_encoder_is_not_evaluated_twice(tmp_path):
    scores = Scores(1.0, 2.0)
    first = between(tmp_path, scores)(encoder(), step(0))
    assert between(tmp_path, scores)(encoder(), step(0)) == first
    assert scores.calls == 1
    between(tmp_path, scores)(encoder(1), step(0))
    assert scores.calls == 2
    assert len(read_json(tmp_path / "history.json")) == 1


def test_no_metric_no_best(tmp_path):
    one = between(tmp_path, Scores(1.0), Validation(evaluation="clusters"))
    one(encoder(), step(0))
    assert not (tmp_path / "best").exists()


def test_an_unknown_metric_is_said_before_the_training(tmp_path):
    one = between(tmp_path, Scores(1.0), Validation(evaluation="clusters", metric="miuo"))
    with pytest.raises(UserError, match=r"validation\.metric: 'clusters' has no metric 'miuo'.*"):
        one(encoder(), step(0))


class WithEncoder(Toy):
    """The toy, beside an encoder that can be saved."""

    def __init__(self, config):
        super().__init__(config)
        self.toy, self.encoder = self.encoder, encoder()
        self.encoder.requires_grad_(False)

    def loss(self, batch, step):
        saved, self.encoder = self.encoder, self.toy
        try:
            return super().loss(batch, step)
        finally:
            self.encoder = saved

    def after_step(self, step, joint):
        with torch.no_grad():
            self.encoder.cls_token.add_(1)
        return {}


def trainer(folder, scores):
    config = toy_config().model_copy(update={"validation": Validation(evaluation="c", every=1)})
    origin = {"inputs": {"a": "b"}}
    return Trainer(WithEncoder(config), config, Clips(), folder, Machine(CPU), origin, scores)


def lines(folder):
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(x["step"], x["validation_miou"]) for x in found if "validation_miou" in x]


def test_the_loop_evaluates_and_a_resumed_one_does_not_repeat_it(tmp_path):
    scores = Scores(*range(9))
    whole = trainer(tmp_path / "whole", scores)
    whole.run()
    # Three epochs of five steps; the last evaluation stands at the last step.
    assert lines(tmp_path / "whole") == [(0, 0), (5, 1), (10, 2), (14, 3)]
    trainer(tmp_path / "whole", scores).run()
    assert scores.calls == 4

    parts = trainer(tmp_path / "parts", scores := Scores(*range(9)))
    counted = parts.method.after_step

    def stop(step, joint):
        parts.stop = step.index == 6
        return counted(step, joint)

    parts.method.after_step = stop
    with pytest.raises(InterruptedTraining):
        parts.run()
    assert lines(tmp_path / "parts") == [(0, 0), (5, 1)]
    trainer(tmp_path / "parts", scores).run()
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert scores.calls == 4
