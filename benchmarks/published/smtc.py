"""The published SMTC step, written from a description of the released code.

What costs time and memory there is kept: student and teacher pass whole backbones, the last block
too, of which only the keys are used; every iteration of slot attention builds a graph; the semantic
term makes a table of slots by tokens by tokens for each pair of frames; assignments are solved one
by one; parameters are averaged into the teacher one after the other; while the backbone's rate is
0, its gradients and moments are computed all the same. Left out: anomaly detection, which only
debugging needs, and drop path, whose draws could not be the same.

Shapes: B clips, T frames, b = B T frames, S semantics, P instances of each, N tokens, D width.
"""

import copy
import itertools
import math

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional as F

from published.dora import VisionTransformer

LOGIT, PROBABILITY, AREA, SIMILARITY, MARGIN = 0.3, 0.3, 0.2, 0.5, 0.5
EPSILON, ROUNDS, MOMENTUM, DECAY = 0.05, 3, 0.999, 0.1


class Backbone(VisionTransformer):
    """Keys of the last block, and its tokens, which nothing uses."""

    def __init__(self, *shape):
        super().__init__(*shape)
        self.blocks[-1].attn.qkv.register_forward_hook(self.keep)

    def keep(self, layer, inputs, output):
        self.qkv = output

    def forward(self, images):
        rows, columns = images.shape[-2:]
        x = self.patch_embed(images)
        positions = self.positions(x.shape[1], rows, columns)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + positions
        for block in self.blocks:
            x = block(x)[0]
        return self.qkv.chunk(3, dim=-1)[1][:, 1:], x


class SlotAttention(nn.Module):
    def __init__(self, width, slots):
        super().__init__()
        self.slots_mu = nn.Parameter(torch.randn(1, slots, 1, width))
        self.slots_sigma = nn.Parameter(torch.zeros(1, slots, 1, width))
        self.norm_input, self.norm_slots = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_pre_ff = nn.LayerNorm(width)
        self.project_q, self.project_k = nn.Linear(width, width), nn.Linear(width, width)
        self.project_v = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def updated(self, slots, updates):
        slots = slots + updates
        return slots + self.mlp(self.norm_pre_ff(slots))

    def forward(self, features, noise, iterations):
        """Return semantic slots and logits, instance slots and logits of (b, N, D)."""
        x = self.norm_input(features)
        keys, values = self.project_k(x), self.project_v(x)
        start = self.slots_mu.squeeze(2).expand(len(x), -1, -1)
        semantic, semantic_logits = self.semantics(keys, values, start, iterations)
        mask = (semantic_logits > LOGIT).to(keys.dtype)
        drawn = (self.slots_mu + self.slots_sigma.exp() * noise).detach()
        start = drawn + 0 * (
            self.slots_mu + self.slots_sigma
        )  # a draw's gradient is zero, not none
        found = self.instances(keys, values, start, mask, iterations)
        return semantic, semantic_logits, *found

    def semantics(self, keys, values, start, iterations):
        slots = start
        for index in range(iterations):
            queries = self.project_q(self.norm_slots(slots))
            logits = queries @ keys.mT / math.sqrt(keys.shape[-1])
            weights = logits.softmax(dim=1) + 1e-8
            weights = weights / weights.sum(dim=-1, keepdim=True)
            slots = self.updated(slots, weights @ values)
            if index == iterations - 2:
                slots = (slots - start).detach() + start
        return slots, logits

    def instances(self, keys, values, start, mask, iterations):
        slots = start
        for index in range(iterations):
            queries = self.project_q(self.norm_slots(slots))
            logits = torch.einsum("bspd,bnd->bspn", queries, keys) / math.sqrt(keys.shape[-1])
            weights = (logits.softmax(dim=2) + 1e-8) * mask.unsqueeze(2)
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-8)
            updates = torch.einsum("bspn,bnd->bspd", weights, values)
            slots = self.updated(slots, updates)
            if index == iterations - 2:
                slots = (slots - start).detach() + start
        return slots, logits


class Network(nn.Module):
    """Backbone, correlation with the frame before, slots and the projection of instances."""

    def __init__(self, shape, tokens, slots):
        super().__init__()
        width = shape[0]
        self.encoder = Backbone(*shape)
        self.transport_proj = nn.Conv1d(tokens, width, 1)
        self.slot_attention = SlotAttention(width, slots)
        self.mlp_slot = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, images, noise, iterations):
        """Return semantic logits, keys, semantic, instance and projected instance slots."""
        keys, _ = self.encoder(images.flatten(0, 1))
        return self.slots(keys.unflatten(0, images.shape[:2]), noise, iterations)

    def slots(self, keys, noise, iterations):
        """The same of keys (B, T, N, D)."""
        before = keys.roll(1, dims=1)
        correlation = (before @ keys.mT).flatten(0, 1)  # of each token of the frame before
        fused = keys.flatten(0, 1) + self.transport_proj(correlation).mT
        found = self.slot_attention(fused, noise.flatten(0, 1), iterations)
        semantic, logits, instance, _ = (x.unflatten(0, keys.shape[:2]) for x in found)
        return logits, keys, semantic, instance, F.normalize(self.mlp_slot(instance), dim=-1)


def separation(logits):
    maps = F.normalize(logits.softmax(dim=2) + 1e-8, dim=-1)
    products = maps @ maps.mT
    others = ~torch.eye(products.shape[-1], dtype=torch.bool)
    return products[..., others].mean()


@torch.no_grad()
def transport(first, second):
    """Return the plan (B, N, N) between unit keys of two frames."""
    a, b = first.abs().sum(dim=-1), second.abs().sum(dim=-1)
    a, b = a / a.sum(dim=-1, keepdim=True), b / b.sum(dim=-1, keepdim=True)
    kernel = torch.exp(-(1 - first @ second.mT) / EPSILON)
    column = torch.ones_like(b)
    for _ in range(ROUNDS):
        row = a / (kernel @ column.unsqueeze(-1)).squeeze(-1)
        column = b / (kernel.mT @ row.unsqueeze(-1)).squeeze(-1)
    return torch.diag_embed(row) @ kernel @ torch.diag_embed(column)


def semantic_consistency(student, teacher, keys):
    keys, items = F.normalize(keys, dim=-1), []
    for i, j in itertools.permutations(range(student.shape[1]), 2):
        plan = transport(keys[:, i], keys[:, j])
        ours = torch.log(student[:, i].softmax(dim=1) + 1e-8).unsqueeze(3)
        theirs = teacher[:, j].softmax(dim=1).unsqueeze(2)
        items.append((plan * -(theirs * ours).sum(dim=1)).sum(dim=(1, 2)))
    return torch.cat(items).mean()


@torch.no_grad()
def valid_instances(logits, semantic, instance):
    area = (logits.softmax(dim=2) > PROBABILITY).float().mean(dim=-1)
    alike = F.cosine_similarity(semantic.unsqueeze(3), instance, dim=-1)
    return ((alike > SIMILARITY) & (area > AREA).unsqueeze(-1)).float()


@torch.no_grad()
def assignments(similar):
    """Return for each row first the column that it is matched to, then the others."""
    clips, semantics, count, _ = similar.shape
    order = torch.zeros(similar.shape, dtype=torch.long)
    for clip, semantic in itertools.product(range(clips), range(semantics)):
        _, columns = linear_sum_assignment(similar[clip, semantic].numpy(), maximize=True)
        for row, column in enumerate(columns):
            rest = [other for other in range(count) if other != column]
            order[clip, semantic, row] = torch.tensor([int(column), *rest])
    return order


def instance_consistency(student, teacher, valid_student, valid_teacher):
    total, count = 0, 0
    for i, j in itertools.product(range(student.shape[1]), repeat=2):
        similar = student[:, i] @ teacher[:, j].mT
        order = assignments(similar.detach())
        similar = similar.gather(-1, order)
        wanted = valid_teacher[:, j].unsqueeze(2).expand_as(order).gather(-1, order)[..., 0]
        apart = (similar[..., 1:] - MARGIN).relu().mean(dim=-1)
        total = total + (valid_student[:, i] * (apart - wanted * similar[..., 0])).sum()
        count = count + (valid_student[:, i] + 1e-10).sum()
    return total / count


class PublishedSMTC:
    """Student, teacher, optimiser, and one step of their training."""

    def __init__(self, shape, tokens, slots, iterations):
        self.student, self.iterations = Network(shape, tokens, slots), iterations

    def begin(self):
        """Make optimiser and teacher, once the weights are loaded."""
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        groups = []
        for in_backbone, plain in itertools.product((True, False), repeat=2):
            own = [
                parameter
                for name, parameter in self.student.named_parameters()
                if name.startswith("encoder.") == in_backbone
                and (parameter.ndim == 1 or name.endswith(".bias")) == plain
            ]
            decay = 0.0 if plain else DECAY
            groups.append({"params": own, "weight_decay": decay, "backbone": in_backbone})
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)

    def loss(self, views, noise):
        """Return the loss of two normalised views (B, T, 3, H, W) and draws (B, T, S, P, D)."""
        logits, _, semantic, instance, projected = self.student(views[0], noise[0], self.iterations)
        with torch.no_grad():
            t_logits, keys, t_semantic, t_instance, t_projected = self.teacher(
                views[1], noise[1], self.iterations
            )
        return (
            semantic_consistency(logits, t_logits, keys)
            + separation(logits)
            + instance_consistency(
                projected,
                t_projected,
                valid_instances(logits, semantic, instance),
                valid_instances(t_logits, t_semantic, t_instance),
            )
        )

    def step(self, views, noise, rate, backbone_scale):
        """Take a step; return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (backbone_scale if group["backbone"] else 1)
        loss = self.loss(views, noise)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            pairs = zip(self.teacher.named_parameters(), self.student.parameters(), strict=True)
            for (name, theirs), ours in pairs:
                if "encoder" not in name:
                    theirs.data = MOMENTUM * theirs.data + (1 - MOMENTUM) * ours.data
        return loss.detach()
