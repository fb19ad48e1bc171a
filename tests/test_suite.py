"""The configuration: what is wrong is named, with its path and the nearest known key."""

import copy
import dataclasses
import json

import jsonschema
import pytest
import yaml

from timewalk import evaluation, schema, suite
from timewalk.errors import UserError

BASE = {
    "datasets": {"walk": {"videos": ["venice"]}},
    "labelled": {"digits": {"kind": "arrays", "path": "digits"}},
    "runs": {
        "dora": {"method": "dora", "dataset": "walk", "training": {"epochs": 3}},
        "random": {"method": "random"},
    },
    "evaluations": {"knn": {"kind": "knn", "dataset": "digits"}},
}


def changed(path, value):
    raw = copy.deepcopy(BASE)
    node = raw
    *parents, last = path.split(".")
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return raw


def test_an_evaluation_for_some_runs():
    loaded = suite.load_suite(changed("evaluations.knn.runs", ["dora"]))
    assert loaded.evaluations_of("dora") == ["knn"]
    assert loaded.evaluations_of("random") == []
    with pytest.raises(UserError, match=r"evaluations\.knn\.runs: unknown run 'dorra'.*'dora'"):
        suite.load_suite(changed("evaluations.knn.runs", ["dorra"]))


def test_defaults_come_from_the_method():
    loaded = suite.load_suite(BASE)
    training = loaded.run("dora").training
    assert (training.epochs, training.warmup_epochs, training.weight_decay_end) == (3, 10, 0.4)
    assert loaded.videos["venice"].source.startswith("https://")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("blurr", {}, "blurr: unknown key; did you mean 'blur'"),
        ("blur.treshold", 0.3, "blur.treshold: unknown key; did you mean 'threshold'"),
        ("blur.threshold", 1.5, "blur.threshold is 1.5: .*less than or equal to 1"),
        ("datasets.walk.frames.fps", 0, "datasets.walk.frames.fps is 0: .*greater than 0"),
        ("datasets.walk.videos", [], "datasets.walk: name at least one"),
        ("datasets.walk.folders", "x", "has both `videos` and `folders`; keep one"),
        ("datasets.walk.list", "x.txt", "has both `videos` and `list`; keep one"),
        ("datasets.walk", {"folders": "x", "list": "y"}, "has both `folders` and `list`"),
        ("datasets.walk.labelled", "digits", "has both `videos` and `labelled`; keep one"),
        ("datasets.walk", {"labelled": "digit"}, "unknown labelled set 'digit'.*'digits'"),
        ("datasets.walk", {"labelled": "digits"}, "labelled: 'digits' holds no videos; name one"),
        ("datasets.walk", {"folders": ""}, "or one of `folders`, or a `list`"),
        ("datasets.walk", {"list": "x", "frames": {}}, "`frames` means nothing for `list`"),
        ("datasets.walk", {"folders": "x", "storage": "folder"}, "nothing for `folders`"),
        ("datasets.walk.videos", ["venise"], "unknown video 'venise'.*venice"),
        ("runs.dora.metod", "x", r"runs\.dora\.metod: unknown key; did you mean 'method'"),
        ("runs.dora.method", "dorra", r"runs\.dora\.method: .*'dorra'.*'dora'"),
        ("runs.dora.training.epoch", 3, r"runs\.dora\.training\.epoch: unknown key.*'epochs'"),
        ("runs.dora.training.epochs", 0, r"runs\.dora\.training\.epochs is 0"),
        ("runs.dora.training.learning_rate", float("nan"), r"learning_rate is nan"),
        ("runs.dora.encoder.patchsize", 8, r"encoder\.patchsize: unknown key.*'patch_size'"),
        ("runs.dora.dataset", "wolk", r"runs\.dora\.dataset: unknown data set 'wolk'.*'walk'"),
        ("runs.dora", {"dataset": "walk"}, r"runs\.dora: the key 'method' is missing"),
        ("runs.logs", {"method": "random"}, "the name 'logs' is taken"),
        ("labelled.digits.kindd", "x", r"labelled\.digits\..*kindd: unknown key.*'kind'"),
        ("labelled.digits.crop", 512, "crop is 512 but resize is 256"),
        ("evaluations.knn.kind", "kn", r"evaluations\.knn\.kind: .*'kn'.*'knn'"),
        ("evaluations.knn.temprature", 1, r"temprature: unknown key.*'temperature'"),
        ("evaluations.knn.dataset", "x", r"evaluations\.knn\.dataset: unknown labelled set"),
        (
            "labelled.digits",
            {"kind": "davis2017", "root": "x"},
            r"evaluations\.knn\.dataset: 'knn' needs labelled images, but 'digits' holds lab",
        ),
        ("labelled.digits", {"kind": "vip", "root": "x", "subset": "vall"}, "subset is 'vall'"),
    ],
)
def test_a_mistake_is_one_sentence(path, value, message):
    with pytest.raises(UserError, match=message):
        suite.load_suite(changed(path, value))


def test_an_evaluation_of_videos_needs_videos(monkeypatch):
    entry = dataclasses.replace(evaluation.get_evaluation("knn"), labels=("videos",))
    monkeypatch.setitem(evaluation._ENTRIES, "knn", entry)
    with pytest.raises(
        UserError, match=r"'knn' needs labelled videos, but 'digits' holds labelled images"
    ):
        suite.load_suite(changed("labelled.digits.path", "digits"))
    videos = suite.load_suite(changed("labelled.digits", {"kind": "moving_shapes"}))
    assert videos.config.labelled["digits"].frames == 8


@pytest.mark.parametrize(
    ("value", "what"), [(False, "off"), ("faces", "faces"), ({"what": False}, "off")]
)
def test_blur_shorthand(value, what):
    assert suite.load_suite(changed("blur", value)).config.blur.what == what


@pytest.mark.parametrize("file", ["config.yaml", "workflow/demo.yaml"])
def test_shipped_configurations_are_valid(root, file):
    loaded = suite.load_suite(suite.read_config(root / file))
    assert {"dora", "random", "pretrained"} <= loaded.runs.keys()


def test_the_example_of_smtcs_page_is_valid(root):
    page = (root / "docs" / "methods" / "smtc.md").read_text()
    example = page.split("## Scoring the authors' checkpoint\n")[1].split("```")[1]
    loaded = suite.load_suite(yaml.safe_load(example.partition("\n")[2]))
    names = ["object_discovery", "davis_smtc", "davis_smtc_s8"]
    assert loaded.evaluations_of("smtc_published") == names


def test_paper_settings(root):
    run = suite.load_suite(suite.read_config(root / "config.yaml")).run("dora")
    assert (run.frames_per_clip, run.step_between_clips, run.local_crops) == (8, 60, 6)
    assert (run.out_dim, run.norm_last_layer, run.training.epochs) == (65536, False, 100)
    assert (run.training.batch_size, run.training.min_learning_rate) == (48, 1e-5)


def test_published_schema_is_the_models(root):
    file = root / "workflow" / "schemas" / "config.schema.json"
    assert json.loads(file.read_text()) == schema.json_schema(), "run make schema"


def test_published_page_is_the_models(root):
    assert (root / "docs" / "configuration.md").read_text() == schema.config_markdown(), (
        "make schema"
    )


def test_every_key_says_what_it_means():
    whole = schema.json_schema()
    for name, node in [("top level", whole), *whole["$defs"].items()]:
        for key, item in node.get("properties", {}).items():
            if key not in ("kind",):
                assert item.get("description"), f"{name}.{key} has no meaning"


def test_schema_accepts_and_refuses_what_the_models_do(root):
    validator = jsonschema.Draft202012Validator(schema.json_schema())
    shipped = yaml.safe_load((root / "config.yaml").read_text())
    assert list(validator.iter_errors(shipped)) == []
    assert list(validator.iter_errors(changed("runs.dora.training.epochs", 0)))
    assert list(validator.iter_errors(changed("runs.dora.metod", 1)))
    assert list(validator.iter_errors(changed("blurr", 1)))


def test_merge_lays_one_configuration_over_another():
    base, over = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 3}, "d": [2]}
    assert suite.merge(base, over) == {"a": {"b": 3, "c": 2}, "d": [2]}


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "holds no keys")]
)
def test_read_config_names_the_file(tmp_path, text, message):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=rf"mine\.yaml.*{message}"):
        suite.read_config(file)


def test_a_run_may_begin_with_another_runs_encoder():
    loaded = suite.load_suite(changed("runs.dora.encoder", {"weights": "run:random"}))
    assert loaded.origins == {"dora": "random"}
    assert loaded.run("dora").encoder.weights == "results/random/encoder.safetensors"
    with pytest.raises(UserError, match=r"runs\.dora\.encoder\.weights: unknown run 'randm'"):
        suite.load_suite(changed("runs.dora.encoder", {"weights": "run:randm"}))
    with pytest.raises(UserError, match=r"runs\.dora\.encoder\.weights: 'dora' begins with"):
        suite.load_suite(changed("runs.dora.encoder", {"weights": "run:dora"}))


def test_a_run_that_begins_with_another_has_its_architecture():
    weights = {"weights": "run:random"}
    with pytest.raises(
        UserError, match=r"encoder\.name: vit_tiny, but the run 'random'.*vit_small"
    ):
        suite.load_suite(changed("runs.dora.encoder", {**weights, "name": "vit_tiny"}))
    with pytest.raises(UserError, match=r"encoder\.weights_part means nothing for the encoder of"):
        suite.load_suite(changed("runs.dora.encoder", {**weights, "weights_part": "student"}))


def test_a_validation_names_an_evaluation():
    found = suite.load_suite(changed("runs.dora.validation", {"evaluation": "knn"}))
    assert found.runs["dora"].validation.evaluation == "knn"
    with pytest.raises(UserError, match=r"validation\.evaluation: unknown evaluation 'knnn'"):
        suite.load_suite(changed("runs.dora.validation", {"evaluation": "knnn"}))


SETS = {
    "shapes": {"kind": "moving_shapes"},
    "davis": {"kind": "davis2017", "root": "x"},
    "objects": {"kind": "davis2017", "root": "x", "task": "unsupervised"},
    "large": {
        "kind": "davis2017",
        "root": "x",
        "task": "unsupervised",
        "resolution": "Full-Resolution",
    },
    "single": {"kind": "davis2016", "root": "x"},
    "mose": {"kind": "mose", "root": "x"},
    "people": {"kind": "jhmdb", "root": "x"},
    "parts": {"kind": "vip", "root": "x"},
    "segtrack": {"kind": "segtrack_v2", "root": "x"},
    "fbms": {"kind": "fbms59", "root": "x"},
}


def with_evaluation(kind, dataset, **keys):
    raw = copy.deepcopy(BASE) | {"labelled": SETS}
    raw["evaluations"] = {"it": {"kind": kind, "dataset": dataset, **keys}}
    return raw


@pytest.mark.parametrize(
    ("kind", "dataset", "message"),
    [
        (
            "object_discovery",
            "mose",
            "needs a set of kind davis2017 or moving_shapes, but 'mose' is of kind mose; name",
        ),
        (
            "object_discovery",
            "davis",
            "needs a set with `task: unsupervised`, but 'davis' has `task: semi-supervised`; name",
        ),
        ("object_discovery", "large", "`resolution: 480p`, but 'large' has `resolution: Full-Res"),
        ("davis", "objects", "`task: semi-supervised`, but 'objects' has `task: unsupervised`"),
        (
            "davis",
            "single",
            "of kind davis2017 or moving_shapes, but 'single' is of kind davis2016",
        ),
        ("jhmdb", "parts", "'jhmdb' needs a set of kind jhmdb, but 'parts' is of kind vip"),
        ("vip", "people", "'vip' needs a set of kind vip, but 'people' is of kind jhmdb"),
        (
            "foreground_segmentation",
            "mose",
            "of kind davis2016 or davis2017 or moving_shapes or fbms59 or segtrack_v2, but 'mose'",
        ),
    ],
)
def test_an_evaluation_says_which_sets_it_reads(kind, dataset, message):
    with pytest.raises(UserError) as caught:
        suite.load_suite(with_evaluation(kind, dataset))
    assert str(caught.value).startswith(f"evaluations.it.dataset: '{kind}' needs a set ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "datasets"),
    [
        ("object_discovery", ["objects", "shapes"]),
        ("davis", ["davis", "shapes"]),
        ("jhmdb", ["people"]),
        ("vip", ["parts"]),
        (
            "foreground_segmentation",
            ["single", "davis", "objects", "large", "segtrack", "fbms", "shapes"],
        ),
        ("propagation_iou", ["mose", "davis", "shapes"]),
    ],
)
def test_the_sets_that_it_reads(kind, datasets):
    for dataset in datasets:
        loaded = suite.load_suite(with_evaluation(kind, dataset))
        assert loaded.evaluation("it").dataset == dataset


PHASES = {
    "records": {"kind": "phase_records", "root": "x"},
    "frames": {
        "kind": "phase_frames",
        "dataset": "walk",
        "label_file": "x.json",
        "classes": ["up", "down"],
        "test": ["venice"],
    },
}


def with_phases(**frames):
    raw = copy.deepcopy(BASE)
    raw["datasets"] = {
        "walk": {"videos": ["venice", "wildlife"]},
        "stills": {"images": "x"},
        "pour": {"labelled": "records"},
    }
    raw["labelled"] |= PHASES | {"frames": PHASES["frames"] | frames}
    return raw


def test_videos_with_phases_train_and_are_read_by_their_evaluations(monkeypatch):
    assert suite.load_suite(with_phases()).dataset("pour").labelled == "records"
    raw = with_phases()
    raw["evaluations"]["knn"]["dataset"] = "records"
    message = r"'knn' needs labelled images, but 'records' holds videos with phases of an action;"
    with pytest.raises(UserError, match=message):
        suite.load_suite(raw)
    entry = dataclasses.replace(evaluation.get_evaluation("knn"), labels=("phases",))
    monkeypatch.setitem(evaluation._ENTRIES, "knn", entry)
    assert suite.load_suite(raw).evaluation("knn").dataset == "records"
    raw["evaluations"]["knn"]["dataset"] = "digits"
    message = r"'knn' needs videos with phases of an action, but 'digits' holds labelled images"
    with pytest.raises(UserError, match=message):
        suite.load_suite(raw)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"dataset": "wolk"}, r"labelled\.frames\.dataset: unknown data set 'wolk'.*'walk'"),
        ({"dataset": "stills"}, r"labelled\.frames\.dataset: 'stills' holds still images"),
        ({"test": ["venise"]}, r"labelled\.frames\.test: unknown video 'venise'.*'venice'"),
        (
            {"test": ["venice", "wildlife"]},
            r"labelled\.frames\.test: names every video of 'walk', so that none is left to train",
        ),
        ({"test": []}, r"labelled\.frames\..*test is \[\]"),
        ({"classes": []}, r"labelled\.frames\..*classes is \[\]"),
        ({"stride": 0}, r"stride is 0"),
    ],
)
def test_phases_of_frames(frames, message):
    with pytest.raises(UserError, match=message):
        suite.load_suite(with_phases(**frames))


def test_slots_are_asked_of_runs_that_may_have_them():
    keys = {"proposals": "slots", "runs": ["random"]}
    with pytest.raises(
        UserError, match=r"evaluations\.it\.proposals: is 'slots', but the run 'random' of .* none"
    ):
        suite.load_suite(with_evaluation("object_discovery", "objects", **keys))
    for changes in ({"proposals": "clusters"}, {"proposals": "auto"}, {"runs": None}):
        suite.load_suite(with_evaluation("object_discovery", "objects", **keys | changes))
    raw = with_evaluation("foreground_segmentation", "single", **keys | {"runs": ["it"]})
    raw["runs"]["it"] = {"method": "pretrained", "encoder": {"weights": "x.pth"}}
    suite.load_suite(raw)
    raw["runs"]["it"] = {"method": "smtc", "dataset": "walk"}
    suite.load_suite(raw)


@pytest.mark.parametrize("method", ["smtc", "timet"])
def test_methods_that_compare_clips_take_no_parts_of_a_batch(method):
    run = {"method": method, "dataset": "walk", "training": {"micro_batch_size": 8}}
    with pytest.raises(
        UserError,
        match=rf"^runs\.dora\.training\.micro_batch_size: '{method}' compares .* leave it out",
    ):
        suite.load_suite(changed("runs.dora", run))
    run["training"]["micro_batch_size"] = None
    suite.load_suite(changed("runs.dora", run))
    suite.load_suite(changed("runs.dora.training.micro_batch_size", 2))


def test_labels_are_needed_where_a_method_learns_from_them():
    raw = with_phases()
    learner = {"method": "classification", "classes": 3, "encoder": {"name": "vit_tiny"}}
    raw["runs"]["supervised"] = {**learner, "dataset": "pour"}
    assert suite.load_suite(raw).run("supervised").dataset == "pour"
    raw["runs"]["supervised"]["dataset"] = "walk"
    message = r"runs\.supervised\.dataset: 'classification' learns from labels .*'walk' is no"
    with pytest.raises(UserError, match=message):
        suite.load_suite(raw)


def dense():
    raw = copy.deepcopy(BASE)
    raw["labelled"] |= {"scenes": {"kind": "ade20k_shapes"}, "things": {"kind": "coco_shapes"}}
    raw["finetuning"] = {
        "parse": {"task": "semantic_segmentation", "dataset": "scenes"},
        "detect": {"task": "detection", "dataset": "things"},
    }
    raw["evaluations"] |= {
        "ade20k": {"kind": "ade20k", "dataset": "scenes", "network": "parse"},
        "coco": {"kind": "coco", "dataset": "things", "network": "detect"},
    }
    return raw


def test_an_evaluation_of_a_fine_tuned_network():
    loaded = suite.load_suite(dense())
    assert loaded.finetuning("parse").task == "semantic_segmentation"
    assert loaded.evaluation("ade20k").network == "parse"
    with pytest.raises(UserError, match="unknown fine-tuning 'pars'; did you mean 'parse'"):
        loaded.finetuning("pars")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("evaluations.ade20k.network", "pars", r"network: unknown fine-tuning 'pars'.*parse"),
        ("evaluations.ade20k.network", "detect", "tests networks of the task semantic_seg"),
        ("evaluations.coco.dataset", "scenes", "needs images with objects, but 'scenes' holds"),
        ("finetuning.parse.dataset", "things", "needs images with masks, but 'things' holds"),
        ("finetuning.parse.dataset", "nothing", r"parse\.dataset: unknown labelled set"),
        ("finetuning.parse.task", "detektion", r"finetuning\.parse\.task: unknown task"),
        ("finetuning.parse.head", "fcn", r"finetuning\.parse\.head is 'fcn'"),
        ("finetuning.parse", {"dataset": "scenes"}, "the key 'task' is missing"),
    ],
)
def test_a_mistake_of_a_fine_tuning(path, value, message):
    raw = dense()
    *parents, last = path.split(".")
    node = raw
    for part in parents:
        node = node[part]
    node[last] = value
    with pytest.raises(UserError, match=message):
        suite.load_suite(raw)


def test_no_network_is_tested_between_epochs():
    raw = dense()
    raw["runs"]["dora"]["validation"] = {"evaluation": "ade20k"}
    with pytest.raises(UserError, match="'ade20k' tests a network that is fine-tuned from a fin"):
        suite.load_suite(raw)
