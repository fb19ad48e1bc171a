"""What SMTC (ICCV 2023) asks of slots: its three losses, and which instances take part.

Source: SMTC's released code. Everything in float32 (float64 stays), whatever the networks'
precision.

Shapes: B clips, T frames, S semantic slots, P instances of a semantic, N tokens of a frame, D
width, R = T (T - 1) ordered pairs of different frames, the first of a pair slowest.
"""

from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from timewalk.ops.assignment import best_permutations
from timewalk.ops.distillation import full
from timewalk.ops.transport import transport_plan

EPSILON = 1e-8
MARGIN = 0.5
"""similarity below which instances that were not matched are left alone"""
CHUNK_NUMEL = 1 << 21
"""entries of the transport plans that are made at once, 8 MB: clips go one such share at a time"""


def separation(logits_BTSN: Tensor) -> Tensor:
    """Return how much the semantics' maps overlap: their mean cosine, 0 when disjoint.

    The published `entro_cons`, which despite its name holds no entropy. Of a single semantic: 0.

    Args:
        logits_BTSN: of the student.
    """
    with torch.autocast(logits_BTSN.device.type, enabled=False):
        maps_BTSN = F.normalize(full(logits_BTSN).softmax(dim=2) + EPSILON, dim=-1)
        slots = maps_BTSN.shape[2]
        # All products of two maps but those of a map with itself, which are 1.
        overlap_BT = maps_BTSN.sum(dim=2).square().sum(dim=-1) - slots
        return overlap_BT.mean() / max(1, slots * (slots - 1))


def semantic_consistency(
    student_logits_BTSN: Tensor, teacher_logits_BTSN: Tensor, teacher_keys_BTND: Tensor
) -> Tensor:
    """Return the cross-entropy of the student's semantics with the teacher's of the other frames.

    The published `bi_cons`. The teacher's semantics of frame j are carried to the tokens of frame i
    along a transport plan between the keys of both, for every i and every other j.

    Args:
        student_logits_BTSN: what is differentiated.
        teacher_logits_BTSN: constant.
        teacher_keys_BTND: constant; keys of the encoder's last block before fusion.

    Raises:
        ValueError: clips of one frame.
    """
    frames = student_logits_BTSN.shape[1]
    if frames < 2:
        raise ValueError(
            f"semantic consistency compares the frames of a clip, but clips have {frames}; "
            "set frames_per_clip to 2 or more"
        )
    with torch.autocast(student_logits_BTSN.device.type, enabled=False):
        logs_BTSN = (full(student_logits_BTSN).softmax(dim=2) + EPSILON).log()
        target_BTSN = _carried(full(teacher_logits_BTSN).softmax(dim=2), teacher_keys_BTND)
        items = len(logs_BTSN) * frames * (frames - 1)
        return -(target_BTSN * logs_BTSN).sum() / items


@torch.no_grad()
def _carried(semantics_BTSN: Tensor, keys_BTND: Tensor) -> Tensor:
    """Return what reaches each frame from all others together, (B, T, S, N).

    The cross-entropy is linear in its target, so that this sum over the other frames stands for
    them all, and no table of tokens by tokens outlives its clips.
    """
    frames, tokens = keys_BTND.shape[1:3]
    _, second = _pairs(frames)
    clips = max(1, CHUNK_NUMEL // (len(second) * tokens**2))
    parts = []
    for semantics, keys in zip(
        semantics_BTSN.detach().split(clips), keys_BTND.split(clips), strict=True
    ):
        plan_RBNN = transport_between_frames(keys)
        carried_RBNS = plan_RBNN @ semantics.transpose(0, 1)[second].mT
        parts.append(carried_RBNS.unflatten(0, (frames, frames - 1)).sum(dim=1).transpose(0, 1))
    return torch.cat(parts).mT


@torch.no_grad()
def transport_between_frames(keys_BTND: Tensor) -> Tensor:
    """Return how much of each token goes to which token of another frame, (R, B, N, N).

    Row: token of a pair's first frame; column: token of its second. A token's mass is the sum of
    the magnitudes of its unit key, the cost of a way 1 minus the cosine of both ends' keys.
    """
    first, second = _pairs(keys_BTND.shape[1])
    with torch.autocast(keys_BTND.device.type, enabled=False):
        units_BTND = F.normalize(full(keys_BTND), dim=-1)
        mass_TBN = units_BTND.abs().sum(dim=-1).transpose(0, 1)
        rows_BRD = units_BTND.flatten(1, 2)
        shape = units_BTND.shape[1:3]
        cosine_BTNTN = (rows_BRD @ rows_BRD.mT).unflatten(2, shape).unflatten(1, shape)
        cost_RBNN = 1 - cosine_BTNTN.permute(1, 3, 0, 2, 4)[first, second]
        return transport_plan(cost_RBNN, mass_TBN[first], mass_TBN[second])


def _pairs(frames: int) -> tuple[list[int], list[int]]:
    pairs = list(permutations(range(frames), 2))
    return [i for i, _ in pairs], [j for _, j in pairs]


@torch.no_grad()
def valid_instances(
    logits_BTSN: Tensor,
    semantic_BTSD: Tensor,
    instance_BTSPD: Tensor,
    *,
    probability: float = 0.3,
    min_area: float = 0.2,
    min_similarity: float = 0.5,
) -> Tensor:
    """Return which instances take part in the instance loss, bool (B, T, S, P).

    Args:
        logits_BTSN: of the semantics.
        semantic_BTSD: semantic slots.
        instance_BTSPD: instance slots.
        probability: above it a token belongs to a semantic.
        min_area: share of a frame's tokens that a semantic must exceed.
        min_similarity: cosine with its semantic that an instance must exceed.
    """
    with torch.autocast(logits_BTSN.device.type, enabled=False):
        belongs_BTSN = full(logits_BTSN).softmax(dim=2) > probability
        large_BTS = full(belongs_BTSN).mean(dim=-1) > min_area
        semantic_BTS1D, instance = full(semantic_BTSD).unsqueeze(3), full(instance_BTSPD)
        alike_BTSP = F.cosine_similarity(semantic_BTS1D, instance, dim=-1) > min_similarity
        return alike_BTSP & large_BTS.unsqueeze(-1)


def instance_consistency(
    student_BTSPD: Tensor,
    teacher_BTSPD: Tensor,
    valid_student_BTSP: Tensor,
    valid_teacher_BTSP: Tensor,
    *,
    total_valid: Tensor | None = None,
) -> Tensor:
    """Return how far the student's instances are from the teacher's of the same semantic.

    Each of the student's frames meets each of the teacher's, the same one included; of a semantic,
    instances are matched one to one so that similarities sum to the most. Matched ones are drawn
    together where both are valid, others apart beyond a similarity of 0.5. Of one instance a
    semantic only the drawing together is left. Without valid instances loss and gradient are 0.

    Args:
        student_BTSPD: projected instances of length 1, what is differentiated.
        teacher_BTSPD: the same of the teacher, constant.
        valid_student_BTSP: those of the student that count.
        valid_teacher_BTSP: those of the teacher that others are drawn to.
        total_valid: number of valid instances of the student to divide by, in place of this
            batch's own; where the gradients of processes are averaged, its mean over them.
    """
    with torch.autocast(student_BTSPD.device.type, enabled=False):
        student, teacher = full(student_BTSPD), full(teacher_BTSPD).detach()
        frames, instances = student.shape[1], student.shape[3]
        similar_BTUSPQ = torch.einsum("btspd,busqd->btuspq", student, teacher)
        match_BTUSP = best_permutations(similar_BTUSPQ)
        matched_BTUSP = _at(similar_BTUSPQ, match_BTUSP)
        # Of the teacher's frame u, for each of the student's frames.
        wanted_BUSP = valid_teacher_BTSP.to(student.dtype)
        wanted_BTUSP = wanted_BUSP.unsqueeze(1).expand_as(matched_BTUSP).gather(-1, match_BTUSP)
        close_BTUSPQ = (similar_BTUSPQ - MARGIN).relu()
        others_BTUSP = close_BTUSPQ.sum(dim=-1) - _at(close_BTUSPQ, match_BTUSP)
        items_BTUSP = others_BTUSP / max(1, instances - 1) - wanted_BTUSP * matched_BTUSP
        total = valid_student_BTSP.sum() if total_valid is None else total_valid
        counted_BTUSP = items_BTUSP * valid_student_BTSP.unsqueeze(2)
        return counted_BTUSP.sum() / (frames * full(total)).clamp(min=EPSILON)


def _at(table: Tensor, columns: Tensor) -> Tensor:
    """Return the entry of each row's column."""
    return table.gather(-1, columns.unsqueeze(-1)).squeeze(-1)
