"""The published DoRA step, written from a description of the released code.

What costs time and memory there is kept: every block materialises its softmaxed attention and hands
it on with queries and keys; frames go through the networks one at a time; the teacher's attention,
queries, keys and tokens of all frames are stored; the student runs once for each masked object and
once for the local views, the first of which the loss then leaves out; parameters are clipped, and
averaged into the teacher, one after the other. Module names are those of the published checkpoints,
so that one set of weights fits both sides. Drop path is left out: its draws could not be the same.

Shapes: B clips, F frames, K objects, L local views, N patches, H heads, d width, D head width.
"""

import math
import warnings

import torch
from torch import nn
from torch.nn import functional as F

PATCH = 16


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        rows, tokens, width = x.shape
        qkv = self.qkv(x).reshape(rows, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attention = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = (attention @ v).transpose(1, 2).reshape(rows, tokens, width)
        return self.proj(x), attention.detach(), q.detach(), k.detach()


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)

    def forward(self, x):
        y, attention, q, k = self.attn(self.norm1(x))
        x = x + y
        x = x + self.mlp(self.norm2(x))
        return x, attention, q, k


class PatchEmbed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH, PATCH)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(self, width, depth, heads, image_size):
        super().__init__()
        self.patch_embed = PatchEmbed(width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (image_size // PATCH) ** 2 + 1, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def positions(self, patches, rows, columns):
        known = self.pos_embed.shape[1] - 1
        if patches == known and rows == columns:
            return self.pos_embed
        side = int(math.sqrt(known))
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        scale = ((rows // PATCH + 0.1) / side, (columns // PATCH + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
        grid = grid.permute(0, 2, 3, 1).reshape(1, patches, -1)
        return torch.cat((self.pos_embed[:, :1], grid), dim=1)

    def forward(self, x):
        rows, columns = x.shape[-2:]
        x = self.patch_embed(x)
        positions = self.positions(x.shape[1], rows, columns)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + positions
        for block in self.blocks:
            x, attention, q, k = block(x)
        x = self.norm(x)
        return x[:, 0], x, attention, q, k


class Head(nn.Module):
    def __init__(self, width, outputs, hidden, bottleneck):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        with warnings.catch_warnings():  # the parametrisation that replaces it has other key names
            warnings.simplefilter("ignore", FutureWarning)
            layer = nn.Linear(bottleneck, outputs, bias=False)
            self.last_layer = nn.utils.weight_norm(layer)
        self.last_layer.weight_g.data.fill_(1)
        self.last_layer.weight_g.requires_grad = False

    def forward(self, x):
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, p=2))


class FrameByFrame(nn.Module):
    """Backbone and head over views of one size, each (B, F, 3, S, S)."""

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, views):
        """Return logits (F, views B, D) and tokens, attention, queries and keys of all frames."""
        collected = []
        for frame in range(views[0].shape[1]):
            images = torch.cat([view[:, frame] for view in views])
            summary, *rest = self.backbone(images)
            collected.append((self.head(summary), *rest))
        return [torch.stack(values) for values in zip(*collected, strict=True)]


@torch.no_grad()
def sinkhorn(scores_BNK, epsilon=0.05, iterations=30):
    results = []
    for scores in scores_BNK:
        scaled = scores / epsilon
        mass = (scaled - scaled.max()).exp().T
        mass /= mass.sum()
        objects, patches = mass.shape
        for _ in range(iterations):
            mass /= mass.sum(dim=1, keepdim=True)
            mass /= objects
            mass /= mass.sum(dim=0, keepdim=True)
            mass /= patches
        results.append((mass * patches).T)
    return torch.stack(results)


def _flat(x):
    """(B, H, N + 1, d / H) to (B, N, d) without the class token."""
    return x.transpose(1, 2).flatten(2)[:, 1:]


@torch.no_grad()
def masked_views(images, tokens, attention, queries, keys, heads):
    """Return K masked clips (B, F, 3, S, S); inputs are stacked over frames first."""
    attention_BKN = attention[0][:, heads, 0, 1:]
    prototypes_BKd = torch.einsum("bkn,bnd->bkd", attention_BKN, _flat(queries[0]))
    patches_BNd = F.normalize(tokens[0][:, 1:], dim=-1)
    assignment_BNK = sinkhorn(torch.einsum("bnd,bkd->bnk", patches_BNd, prototypes_BKd))
    refined_BKd = torch.einsum("bnk,bnd->bkd", assignment_BNK, patches_BNd)
    clips = []
    for number in range(len(heads)):
        frames = []
        for frame in range(images.shape[1]):
            key_BNd = _flat(keys[frame])
            scores_BN = torch.einsum("bd,bnd->bn", refined_BKd[:, number], key_BNd)
            map_BN = (scores_BN / key_BNd.shape[-1] ** 0.5).softmax(dim=-1)
            map_BN = F.normalize(map_BN, dim=-1, p=2)
            rows = images.shape[-2] // PATCH
            mask = (map_BN > map_BN.mean()).float().unflatten(-1, (rows, -1)).unsqueeze(1)
            frames.append(
                images[:, frame] * F.interpolate(mask, scale_factor=PATCH, mode="nearest")
            )
        clips.append(torch.stack(frames, dim=1))
    return clips


class Loss(nn.Module):
    """The published loop, with its carry-over from object to object and its lost local view."""

    def __init__(self, outputs, momentum=0.9):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, outputs))

    def forward(self, objects, local_FXD, teacher_FBD, temperature):
        frames = len(teacher_FBD)
        carried, terms = 0, []
        for object_FBD in objects:
            for frame in range(frames):
                target = ((teacher_FBD[frame] - self.center) / temperature).softmax(dim=-1).detach()
                term = self._entropy(target, object_FBD[frame])
                local, pairs = 0, 0
                crops = local_FXD[frame].chunk(len(local_FXD[frame]) // len(target))
                for number, logits in enumerate(crops):
                    if number == 0:
                        continue
                    local = local + self._entropy(target, logits)
                    pairs += 1
                carried = carried + 0.5 * (term + local / pairs)
            carried = carried / frames
            terms.append(carried)
        self.update(teacher_FBD)
        return sum(terms) / len(terms)

    @staticmethod
    def _entropy(target, logits):
        return torch.sum(-target * F.log_softmax(logits / 0.1, dim=-1), dim=-1).mean()

    @torch.no_grad()
    def update(self, teacher_FBD):
        mean = teacher_FBD.flatten(0, 1).mean(dim=0, keepdim=True)
        self.center = self.center * self.momentum + mean * (1 - self.momentum)


def clip_each(network, clip):
    for parameter in network.parameters():
        if parameter.grad is not None:
            factor = clip / (parameter.grad.norm(2) + 1e-6)
            if factor < 1:
                parameter.grad.mul_(factor)


class PublishedDora:
    """Networks, optimiser and one step.

    Args:
        shape: width, depth and heads of the ViT.
        sizes: side of the global view; the head's output, hidden and bottleneck widths.
    """

    def __init__(self, shape, sizes):
        image_size, outputs, hidden, bottleneck = sizes
        self.student, self.teacher = (
            FrameByFrame(
                VisionTransformer(*shape, image_size), Head(shape[0], outputs, hidden, bottleneck)
            )
            for _ in range(2)
        )
        self.teacher.requires_grad_(False)
        self.criterion = Loss(outputs)
        named = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        plain = [n.endswith(".bias") or p.ndim == 1 for n, p in named]
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [
                        p for (_, p), is_plain in zip(named, plain, strict=True) if not is_plain
                    ]
                },
                {
                    "params": [
                        p for (_, p), is_plain in zip(named, plain, strict=True) if is_plain
                    ],
                    "weight_decay": 0.0,
                },
            ]
        )

    def step(self, images, local, heads, rates):
        """Do one step on float views; return loss and masked clips.

        Args:
            images: (B, F, 3, S, S).
            local: L views (B, F, 3, s, s).
            heads: the K heads that were drawn.
            rates: dict of lr, weight_decay, clip, temperature, momentum.
        """
        for number, group in enumerate(self.optimizer.param_groups):
            group["lr"] = rates["lr"]
            if number == 0:
                group["weight_decay"] = rates["weight_decay"]
        with torch.no_grad():
            teacher, *seen = self.teacher([images])
        masked = masked_views(images, *seen, heads)
        objects = [self.student([clip])[0] for clip in masked]
        local = self.student(local)[0]
        loss = self.criterion(objects, local, teacher, rates["temperature"])
        self.optimizer.zero_grad()
        loss.backward()
        clip_each(self.student, rates["clip"])
        self.optimizer.step()
        with torch.no_grad():
            momentum = rates["momentum"]
            for theirs, ours in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                theirs.data.mul_(momentum).add_((1 - momentum) * ours.detach().data)
        return loss.detach(), masked
