"""The supervised baseline beyond the battery: labels."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from tests.methods.batches import clip, generator, step
from tests.methods.test_phases import batch, sample
from tests.training.processes import as_clip
from timewalk.errors import UserError
from timewalk.methods.classification import Classification, ClassificationConfig
from timewalk.ops.objectives import build_objective


def config(**keys):
    return ClassificationConfig.model_validate({**ClassificationConfig.miniature(), **keys})


def test_defaults_are_those_of_the_objective():
    found = ClassificationConfig(method="classification", dataset="pouring", classes=5).objective()
    assert found == build_objective({"name": "classification", "classes": 5}, 128).spec


def test_a_frame_s_label_is_that_of_the_last_of_its_context():
    method = Classification(config(context=3, frames_per_clip=4))
    labels = torch.tensor([0, 0, 1, 1, 1, 2, 0, 0, 0, 2, 2, 1])
    shape = method.clip_shape()
    found = method.sample(replace(as_clip(clip(12), shape.sampler), labels=labels), generator())
    assert found["labels"].tolist() == [1, 2, 0, 1]


def test_the_log_says_how_many_are_right():
    method = Classification(config())
    terms = method.loss(batch(method), step()).terms
    assert 0 <= terms["accuracy"] <= 1
    assert sample(method)["labels"].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("labels", [None, torch.full((12,), -1)])
def test_videos_without_labels_are_refused(labels):
    method = Classification(config())
    unlabelled = replace(as_clip(clip(12), method.clip_shape().sampler), labels=labels)
    message = "data set 'miniature': video 'smooth' has no labels .* choose a data set"
    with pytest.raises(UserError, match=message):
        method.sample(unlabelled, generator())


def test_a_label_beyond_the_classes_is_refused():
    method = Classification(config(classes=2))
    message = "video 'smooth' has a frame labelled 2, but the run's `classes` is 2; set it"
    with pytest.raises(UserError, match=message):
        sample(method)


def test_the_number_of_classes_is_needed():
    keys = ClassificationConfig.miniature()
    del keys["classes"]
    with pytest.raises(ValidationError, match="classes"):
        ClassificationConfig.model_validate(keys)
