"""The loop: an interrupted training ends where an undisturbed one does, bit for bit."""

import json
import multiprocessing
import os
import signal
import threading

import pytest
import torch

from tests.training.toy import Clips, Toy, toy_config
from timewalk.artefacts import alone
from timewalk.errors import UserError
from timewalk.training.batches import BatchSampler, Share, share_of
from timewalk.training.checkpoint import checkpoints, save_checkpoint
from timewalk.training.distributed import Processes
from timewalk.training.loop import InterruptedTraining, Machine, Trainer
from timewalk.training.optimizers import make_optimizer

CPU = torch.device("cpu")


def make(folder, config=None, workers=0, clips=20):
    config = config or toy_config()
    method = Toy(config)
    origin = {"config_sha256": config.model_dump_json(), "inputs": {"a": "b"}}
    return Trainer(method, config, Clips(clips), folder, Machine(CPU, workers), origin)


def weights(trainer):
    tensors = trainer.method.state_dict()
    moments = trainer.optimizer.state_dict()["state"]
    flat = {f"{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
    return tensors | flat


def curve(folder, keys=("step", "epoch", "loss", "draw", "learning_rate", "weight_decay", "seen")):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{key: line[key] for key in keys} for line in lines if "loss" in line]


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(torch.as_tensor(one[key]), torch.as_tensor(two[key])), key


@pytest.mark.parametrize("stop_after", [1, 3, 5, 6, 10, 14])
def test_resume_is_bit_exact(tmp_path, stop_after):
    whole = make(tmp_path / "whole")
    whole.run()
    first = make(tmp_path / "parts")
    original = first.method.after_step

    def stop(step, joint):
        first.stop = step.index + 1 == stop_after
        return original(step, joint)

    first.method.after_step = stop
    with pytest.raises(InterruptedTraining):
        first.run()
    second = make(tmp_path / "parts", workers=1)
    second.run()
    assert second.first == stop_after
    assert_same(weights(whole), weights(second))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def test_a_kill_between_checkpoints_repeats_the_steps(tmp_path):
    whole = make(tmp_path / "whole")
    whole.run()
    killed = make(tmp_path / "parts")

    def kill(step):
        if step.index == 7:
            raise KeyboardInterrupt
        return {"seen": killed.method.seen}

    killed.method.after_backward = kill
    with pytest.raises(KeyboardInterrupt):
        killed.run()
    (tmp_path / "parts" / "metrics.jsonl").open("a").write('{"step": 7, "half')
    again = make(tmp_path / "parts")
    again.run()
    assert again.first == 5  # the end of the first epoch
    assert_same(weights(whole), weights(again))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


@pytest.mark.parametrize("written", [0, 1000])
def test_a_kill_while_a_checkpoint_is_written(tmp_path, written):
    whole = make(tmp_path / "whole")
    whole.run()
    # A plain fork would take the parent's autograd threads along.
    killed = multiprocessing.get_context("forkserver").Process(
        target=_killed_while_saving, args=(tmp_path / "parts", written)
    )
    killed.start()
    killed.join(600)
    assert killed.exitcode == -signal.SIGKILL
    halves = list((tmp_path / "parts").glob(".step-*"))
    assert [half.stat().st_size for half in halves] == [written]
    assert [path.name for path in checkpoints(tmp_path / "parts")] == ["step-000000005.pt"]
    again = make(tmp_path / "parts")
    again.run()
    assert again.first == 5
    assert not list((tmp_path / "parts").glob(".step-*"))
    assert_same(weights(whole), weights(again))
    assert curve(tmp_path / "whole") == curve(tmp_path / "parts")


def _killed_while_saving(folder, written):
    torch.set_num_threads(1)
    save = torch.save

    def half(state, path):
        save(state, path)
        if state["step"] == 10:
            os.truncate(path, written)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = half
    make(folder).run()


def test_what_only_the_machine_needs_may_change_before_a_resume(tmp_path):
    whole = make(tmp_path / "whole")
    whole.run()
    first = make(tmp_path / "parts")
    original = first.method.after_step

    def stop(step, joint):
        first.stop = step.index == 6
        return original(step, joint)

    first.method.after_step = stop
    with pytest.raises(InterruptedTraining):
        first.run()
    changed = make(tmp_path / "parts", toy_config(checkpoint_minutes=99.0, keep_checkpoints=7))
    changed.run()
    assert changed.first == 7
    assert_same(weights(whole), weights(changed))


def test_epochs_have_a_line_of_their_own(tmp_path):
    make(tmp_path).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "epoch_loss" in line]
    assert [line["step"] for line in epochs] == [4, 9, 14]
    steps = [line["loss"] for line in lines if "loss" in line]
    for number, line in enumerate(epochs):
        mean = sum(steps[5 * number : 5 * number + 5]) / 5
        assert line["epoch_loss"] == pytest.approx(mean, rel=1e-6)


def test_a_batch_that_does_not_divide_is_one_sentence():
    with pytest.raises(UserError, match=r"batch_size 10 does not divide among 4 .* use 2 GPU"):
        share_of(10, Processes(0, 4, 0), None)


@pytest.mark.parametrize(("most", "parts"), [(None, 1), (6, 1), (5, 2), (3, 2), (2, 3), (1, 6)])
def test_micro_batches_are_of_equal_size(most, parts):
    assert share_of(12, Processes(1, 2, 1), most) == Share(6, 6, parts)


def test_processes_share_the_batches_of_one():
    whole = list(BatchSampler(20, 8, 0, 0, 5))
    shares = [share_of(8, Processes(n, 2, n), 2) for n in range(2)]
    parts = [list(BatchSampler(20, 8, 0, 0, 5, share)) for share in shares]
    for step, expected in enumerate(whole):
        micro = [part[2 * step + n] for part in parts for n in range(2)]
        assert [sample for batch in micro for sample in batch] == expected


def test_the_number_of_workers_changes_nothing(tmp_path):
    runs = [make(tmp_path / str(n), workers=n) for n in (0, 2)]
    for run in runs:
        run.run()
    assert_same(weights(runs[0]), weights(runs[1]))


def test_a_finished_training_is_not_trained_again(tmp_path):
    make(tmp_path).run()
    again = make(tmp_path)
    again.method.loss = None
    again.run()
    assert again.first == again.total == 15


def test_max_steps_lays_the_schedule_over_the_steps(tmp_path):
    trainer = make(tmp_path, toy_config(max_steps=11, learning_rate=0.64, min_learning_rate=0.0))
    trainer.run()
    rates = [line["learning_rate"] for line in curve(tmp_path)]
    assert len(rates) == 11
    assert rates[0] == 0
    assert max(rates) == pytest.approx(0.64 * 4 / 256)
    assert rates[-1] < 0.3 * max(rates)


def test_a_non_finite_loss_leaves_evidence_and_the_last_checkpoint(tmp_path):
    trainer = make(tmp_path, toy_config(poison_step=7))
    with pytest.raises(UserError, match=r"loss of step 7 is nan.*non-finite-loss\.json"):
        trainer.run()
    evidence = json.loads((tmp_path / "non-finite-loss.json").read_text())
    assert (evidence["step"], evidence["epoch"], len(evidence["clips"])) == (7, 1, 4)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000005.pt"]
    for value in trainer.method.state_dict().values():
        assert torch.isfinite(value).all()


def test_another_configuration_does_not_resume(tmp_path):
    make(tmp_path).run()
    with pytest.raises(UserError, match=r"another configuration .*training\.epochs was 3 and is 5"):
        make(tmp_path, toy_config(epochs=5)).run()
    other = make(tmp_path)
    other.origin["inputs"]["a"] = "c"
    with pytest.raises(
        UserError, match=r"another configuration .*its data or the weights .* have changed"
    ):
        other.run()


def test_a_key_that_is_new_has_its_default(tmp_path):
    make(tmp_path).run()
    path = checkpoints(tmp_path)[-1]
    state = torch.load(path, weights_only=True)
    del state["config"]["training"]["optimizer"]
    torch.save(state, path)
    make(tmp_path).run()
    state["config"]["no_longer"] = 1
    torch.save(state, path)
    with pytest.raises(UserError, match="no longer possible"):
        make(tmp_path).run()
    torch.save({**state, "format": 1}, path)
    with pytest.raises(UserError, match="made by another version"):
        make(tmp_path).run()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_a_damaged_checkpoint_is_named(tmp_path, share):
    make(tmp_path).run()
    newest = checkpoints(tmp_path)[-1]
    os.truncate(newest, int(share * newest.stat().st_size))
    with pytest.raises(UserError, match=rf"{newest.name} cannot be read"):
        make(tmp_path).run()


def test_a_checkpoint_with_code_is_refused(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"step": 1, "bad": Hostile()}, tmp_path / "step-000000001.pt")
    with pytest.raises(UserError, match="cannot be read"):
        make(tmp_path).run()
    assert not (tmp_path / "owned").exists()


def test_the_newest_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == [
        "step-000000002.pt",
        "step-000000003.pt",
    ]


def test_a_batch_larger_than_the_data_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"'toys' holds 3 clips, less than training\.batch_size 4"):
        make(tmp_path, clips=3)


def test_no_decay_on_biases(tmp_path):
    trainer = make(tmp_path)
    trainer.run()
    decays = [group["weight_decay"] for group in trainer.optimizer.param_groups]
    assert decays[0] > 0.3
    assert decays[1] == 0
    assert all(p.ndim == 1 for p in trainer.groups[1].parameters)


def test_sgd_steps(tmp_path):
    method = Toy(toy_config(optimizer="sgd"))
    optimizer = make_optimizer(method.parameter_groups(), method.config.training)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_a_second_training_into_a_folder_waits_for_the_first(tmp_path, caplog):
    whole = make(tmp_path / "whole")
    whole.run()
    held, over, written = threading.Event(), threading.Event(), []

    def hold():
        with alone(tmp_path / "shared", tmp_path / "shared" / "lock"):
            held.set()
            while "waiting for it to end" not in caplog.text and not over.wait(0.01):
                pass
            written.extend((tmp_path / "shared").glob("metrics.jsonl"))

    other = threading.Thread(target=hold)
    other.start()
    held.wait()
    second = make(tmp_path / "shared")
    second.run()
    over.set()
    other.join()
    assert "waiting for it to end" in caplog.text
    assert written == []
    assert_same(weights(whole), weights(second))
