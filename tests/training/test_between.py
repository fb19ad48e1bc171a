"""An evaluation between epochs: when, what is kept, and that nothing is done twice."""

import json

import pytest
import torch

from tests.training.toy import Clips, Toy, toy_config
from timewalk.artefacts import read_json, sha256_file
from timewalk.config import EncoderConfig, Validation
from timewalk.encoders import build_encoder, load_encoder, load_head
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

    def __init__(self, *scores, key="a"):
        self.scores, self.calls, self.key = list(scores), 0, key

    def lower_is_better(self, metric):
        return metric == "loss"

    def __call__(self, folder, pictures):
        load_encoder(folder)
        self.calls += 1
        score = self.scores[self.calls - 1]
        return {"miou": score, "loss": score, "empty": None}


def between(folder, scores, settings=SETTINGS):
    return BetweenEpochs(settings, folder, scores, {"run": "a"})


def test_it_is_due_before_the_first_epoch_each_so_many_and_after_the_last():
    found = between(None, None)
    assert [i for i in range(11) if found.due(step(i))] == [0, 4, 8, 10]
    assert [i for i in range(8) if found.due(step(i, total=7))] == [0, 4, 7]
    often = between(None, None, SETTINGS.model_copy(update={"every_steps": 3}))
    assert [i for i in range(11) if often.due(step(i))] == [0, 3, 6, 9, 10]


def test_the_best_encoder_is_kept(tmp_path):
    scores = Scores(1.0, 3.0, 2.0)
    one = between(tmp_path / "v", scores)
    for number in range(3):
        record = one(encoder(number), step(4 * number))
    assert record == {
        "validation_miou": 2.0,
        "validation_loss": 2.0,
        "validation_empty": None,
    }
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


def test_of_a_loss_the_smallest_is_the_best(tmp_path):
    settings = Validation(evaluation="clusters", metric="loss")
    one = between(tmp_path, Scores(3.0, 1.0, 2.0), settings)
    for number in range(3):
        one(encoder(number), step(4 * number))
    kept = load_encoder(tmp_path / "best").state_dict()
    assert torch.equal(kept["cls_token"], encoder(1).state_dict()["cls_token"])


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


def test_what_another_evaluation_found_does_not_count(tmp_path):
    between(tmp_path, Scores(1.0))(encoder(), step(0))
    other = Scores(0.5, key="b")
    assert between(tmp_path, other)(encoder(), step(0))["validation_miou"] == 0.5
    assert [x["metrics"]["miou"] for x in read_json(tmp_path / "history.json")] == [0.5]
    assert between(tmp_path, Scores(key="c")).pending(10)


def test_the_same_weights_used_otherwise_are_another_encoder(tmp_path):
    scores = Scores(1.0, 2.0)
    one = build_encoder(EncoderConfig(**TINY), 0)
    between(tmp_path, scores)(one, step(0))
    two = build_encoder(EncoderConfig(**{**TINY, "heads": 2}), 0)
    two.load_state_dict(one.state_dict())
    assert between(tmp_path, scores)(two, step(0))["validation_miou"] == 2.0


def test_what_is_not_finite_is_no_best(tmp_path):
    one = between(tmp_path, Scores(0.4, float("nan"), 0.2))
    assert one(encoder(0), step(0))["validation_miou"] == 0.4
    assert one(encoder(1), step(4))["validation_miou"] is None
    one(encoder(2), step(8))
    kept = load_encoder(tmp_path / "best").state_dict()
    assert torch.equal(kept["cls_token"], encoder(0).state_dict()["cls_token"])
    json.loads((tmp_path / "history.json").read_text(), parse_constant=pytest.fail)


def test_the_best_of_a_lost_part_of_the_training_is_dropped(tmp_path):
    one = between(tmp_path, Scores(0.1, 0.4, 0.3, 0.05, 0.2))
    one(encoder(0), step(0))
    one(encoder(1), step(4))
    # Resumed before step 4 on a machine that rounds otherwise: other weights, another score.
    one(encoder(2), step(4))
    kept = load_encoder(tmp_path / "best").state_dict()
    assert torch.equal(kept["cls_token"], encoder(2).state_dict()["cls_token"])
    # The same, and now the best is an encoder that is no longer kept.
    one(encoder(3), step(4))
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


def test_pictures_are_kept_by_step(tmp_path):
    class Draws(Scores):
        def __call__(self, folder, pictures):
            pictures.mkdir(parents=True)
            (pictures / "x.png").write_text(f"call {self.calls}")
            return super().__call__(folder, pictures)

    one = between(tmp_path, Draws(1.0, 2.0))
    for number in range(2):
        one(encoder(number), step(4 * number))
    kept = {path.parent.name: path.read_text() for path in tmp_path.glob("pictures/*/x.png")}
    assert kept == {"00000000": "call 0", "00000004": "call 1"}


def trainer(folder, scores):
    config = toy_config().model_copy(update={"validation": Validation(evaluation="c", every=1)})
    origin = {"inputs": {"a": "b"}}
    return Trainer(WithEncoder(config), config, Clips(), folder, Machine(CPU), origin, scores)


def test_an_evaluation_leaves_the_training_as_it_is(tmp_path):
    class Draws(Scores):
        def __call__(self, folder, pictures):
            torch.rand(3)
            return super().__call__(folder, pictures)

    plain = trainer(tmp_path / "plain", None)
    plain.run()
    watched = trainer(tmp_path / "watched", Draws(*range(9)))
    watched.run()
    assert all(
        torch.equal(value, watched.method.state_dict()[key])
        for key, value in plain.method.state_dict().items()
    )


def test_a_signal_during_an_evaluation_is_an_interruption(tmp_path):
    class Ends(Scores):
        """A signal to the whole job ends the evaluation's workers."""

        def __call__(self, folder, pictures):
            if self.calls == 1:
                run.stop = True
                raise RuntimeError("DataLoader worker exited unexpectedly")
            return super().__call__(folder, pictures)

    run = trainer(tmp_path, Ends(*range(9)))
    with pytest.raises(InterruptedTraining, match="before step 6"):
        run.run()
    again = trainer(tmp_path, scores := Scores(*range(9)))
    again.run()
    assert again.first == 5
    assert scores.calls == 3


def test_a_fault_of_an_evaluation_is_one(tmp_path):
    class Fails(Scores):
        def __call__(self, folder, pictures):
            raise UserError("no masks.")

    with pytest.raises(UserError, match=r"no masks\."):
        trainer(tmp_path, Fails()).run()


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


def test_another_head_is_evaluated_anew_and_the_best_one_kept(tmp_path):
    """A frozen encoder stays the same while its slots learn."""
    scores = Scores(1.0, 2.0, 1.5)
    one = between(tmp_path / "v", scores)
    for number in range(3):
        one(encoder(), step(4 * number), {"slots": torch.full((2,), float(number))})
    assert scores.calls == 3
    one.export(tmp_path / "run")
    assert load_head(tmp_path / "run" / "best")["slots"].tolist() == [1.0, 1.0]
    assert one(encoder(), step(8), {"slots": torch.full((2,), 2.0)})["validation_miou"] == 1.5
    assert scores.calls == 3
