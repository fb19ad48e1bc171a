"""The published TimeT step, written from a description of the released code.

What costs time there is kept: six passes of the backbone over all frames (teacher, student with
head, student without; each followed by a second one for an attention map that the loss never sees),
the head on all frames, scores and assignments of which half are thrown away, labels forwarded clip
by clip in double precision over whole affinities, parameters averaged into the teacher one after
the other. That the teacher sees all frames follows from the costs measured (two passes over four
frames). Left out: anomaly detection, which only the original's debugging needs.

Shapes: B clips, F frames, N patches, D features, C channels of the head, K prototypes.
"""

import copy
import math

import torch
from torch import nn
from torch.nn import functional as F

from published.dora import VisionTransformer

EPSILON, ITERATIONS, SCORE_TEMPERATURE = 0.05, 10, 0.1
CONTEXT, RADIUS, TOP_K, TEMPERATURE = 7, 6, 5, 0.1


class Extractor(nn.Module):
    def __init__(self, shape, widths):
        super().__init__()
        self.backbone = VisionTransformer(*shape)
        layers = []
        for inputs, outputs in zip([shape[0], *widths], widths, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        self.head = nn.Sequential(*layers[:-1])

    def forward(self, images, use_head=True):
        features = self.backbone(images)[1][:, 1:]
        attention = self.backbone(images)[2]  # of the last block, in a pass of its own
        return (self.head(features) if use_head else features), attention


class PublishedTimeT:
    """Student, prototypes and teacher, and one step of their training."""

    def __init__(self, shape, widths, prototypes, teacher):
        self.student = Extractor(shape, widths)
        self.student.requires_grad_(False)
        self.student.backbone.blocks[-2:].requires_grad_(True)
        self.student.head.requires_grad_(True)
        self.prototypes = nn.Parameter(prototypes.clone())
        self.has_teacher = teacher
        self.window = None

    def begin(self):
        """Make optimiser and teacher, once the weights are loaded."""
        parts = [
            ([("prototypes", self.prototypes)], 1.0),
            (list(self.student.head.named_parameters()), 1.0),
            (list(self.student.backbone.named_parameters()), 0.1),
        ]
        groups = []
        for named, scale in parts:
            learning = [(n, p) for n, p in named if p.requires_grad]
            weights = [p for n, p in learning if p.ndim > 1 and not n.endswith(".bias")]
            others = [p for n, p in learning if p.ndim <= 1 or n.endswith(".bias")]
            groups += [{"params": weights, "scale": scale, "decays": True}]
            groups += [{"params": others, "scale": scale, "decays": False}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        if self.has_teacher:
            self.teacher = copy.deepcopy(self.student).requires_grad_(False)
            self.teacher_prototypes = self.prototypes.detach().clone()

    def step(self, images, rates):
        """Take a step on normalised images (B, F, 3, S, S); return its loss."""
        loss = self.loss(images)
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rates["lr"] * group["scale"]
            group["weight_decay"] = rates["weight_decay"] if group["decays"] else 0.0
        self.optimizer.step()
        with torch.no_grad():
            self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
            if self.has_teacher:
                self.update_teacher(rates["momentum"])
        return loss.detach()

    def update_teacher(self, momentum):
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for theirs, ours in pairs:
            theirs.data = theirs.data * momentum + ours.data * (1 - momentum)
        mixed = self.teacher_prototypes * momentum + self.prototypes.data * (1 - momentum)
        self.teacher_prototypes = F.normalize(mixed, dim=1)

    def loss(self, images):
        clips, frames = images.shape[:2]
        flat = images.flatten(0, 1)
        if self.has_teacher:
            with torch.no_grad():
                taught, _ = self.teacher(flat)
                taught = taught.unflatten(0, (clips, frames))
        features, _ = self.student(flat)
        features = features.unflatten(0, (clips, frames))
        with torch.no_grad():
            backbone, _ = self.student(flat, use_head=False)
            backbone = backbone.unflatten(0, (clips, frames))
        first_scores = self.scores(features[:, 0], self.prototypes)
        if self.has_teacher:
            first_scores = self.scores(taught[:, 0], self.teacher_prototypes)
        first = self.assign(first_scores)
        last_scores = self.scores(features[:, -1], self.prototypes)
        self.assign(last_scores)  # never used
        side = math.isqrt(features.shape[2])
        loss = 0
        for clip in range(clips):
            labels = first[clip].T.reshape(1, -1, side, side).double()
            forwarded = self.forward_labels(backbone[clip], labels[0], side)
            target = forwarded[-1].argmax(dim=0)
            logits = last_scores[clip].T.reshape(1, -1, side, side) / SCORE_TEMPERATURE
            loss = loss + F.cross_entropy(logits, target[None])
        return loss / clips

    def scores(self, features, prototypes):
        return F.normalize(features, dim=-1) @ prototypes.T

    @torch.no_grad()
    def assign(self, scores):
        clips, patches, count = scores.shape
        mass = torch.exp(scores.flatten(0, 1) / EPSILON).T
        mass /= mass.sum()
        rows = mass.shape[1]
        for _ in range(ITERATIONS):
            mass /= mass.sum(dim=1, keepdim=True)
            mass /= count
            mass /= mass.sum(dim=0, keepdim=True)
            mass /= rows
        mass /= mass.sum(dim=0, keepdim=True)
        return mass.T.reshape(clips, patches, count)

    @torch.no_grad()
    def forward_labels(self, features, first, side):
        """Return the labels (F - 1, K, side, side) of one clip's later frames."""
        recent, maps = [], []
        for time in range(1, len(features)):
            sources = [features[0], *(f for f, _ in recent)]
            labels = [first, *(m for _, m in recent)]
            found = self.forward_frame(features[time], sources, labels, side)
            maps.append(found)
            recent = [*recent, (features[time], found)][-CONTEXT:]
        return torch.stack(maps)

    def forward_frame(self, target, sources, labels, side):
        query = F.normalize(target, dim=1)
        keys = F.normalize(torch.stack(sources), dim=2)
        products = torch.bmm(query.expand(len(keys), -1, -1), keys.transpose(1, 2))
        affinity = torch.exp(products / TEMPERATURE)
        affinity = affinity * self.neighbours(side)[None]
        affinity = affinity.transpose(2, 1).reshape(-1, side * side)  # sources and patches, queries
        kth = affinity.topk(TOP_K, dim=0).values[-1]
        affinity[affinity < kth] = 0
        affinity = affinity / affinity.sum(dim=0, keepdim=True)
        bank = torch.cat([m.flatten(1) for m in labels], dim=1)  # labels, sources and patches
        return (bank @ affinity.double()).reshape(-1, side, side)

    def neighbours(self, side):
        """Made once, patch by patch."""
        if self.window is None:
            self.window = torch.zeros(side, side, side, side)
            for row in range(side):
                for column in range(side):
                    top, left = max(0, row - RADIUS), max(0, column - RADIUS)
                    rows = slice(top, row + RADIUS + 1)
                    self.window[row, column, rows, left : column + RADIUS + 1] = 1
            self.window = self.window.reshape(side * side, side * side)
        return self.window
