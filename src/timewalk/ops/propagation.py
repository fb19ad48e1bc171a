"""Label propagation: the first frame's labels carried through a video by nearest neighbours.

Each cell of a frame takes the labels of its ``top_k`` most similar cells (cosine) in a context of
earlier frames, weighted by a softmax of the similarities. Source: the released code of CRW, DINO
and SMTC, whose protocols are :class:`Propagation` settings (docs/evaluations/davis.md).

The full affinity is never formed. A tile of query cells is compared with the part of each context
frame that its windows cover, one matrix product for all frames together; of all frames at a
position only the largest similarity is ranked, since the k largest values lie at the k positions
with the largest maxima. Copies of the first frame are counted, not computed again.

Shapes: C channels, D features, h and w rows and columns of cells, N = h x w, F context frames,
q queries of a tile, K key positions of its window, k neighbours.
"""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TILES = {"cpu": (8, 8), "cuda": (16, 16)}
"""rows and columns of a tile of queries: small ones compute little beyond the windows, wide ones
copy little, large ones launch little"""
FREE_QUERIES = 128
"""queries that are compared with all of a frame at once"""


@dataclass(frozen=True)
class Propagation:
    """How labels are propagated.

    Attributes:
        context: previous frames that a frame looks at, beside the long-term frames.
        top_k: neighbours of a cell, over all context frames together.
        temperature: of the softmax over the neighbours' cosine similarities.
        radius: how far in cells a neighbour may lie from the cell's own position.
        window: `disc`: Euclidean distance < radius, and long-term frames are free of it;
            `square`: rows and columns each at most radius off, in every frame; infinite: no limit.
        fill: before the video's start, copies of the first frame are context (CRW); else there
            is only what there is.
        keep_ties: neighbours equal to the k-th count too.
        long_term: frames that stay in context. 0 is the first; m > 0 stands for it until frame
            context + m and for frame m + 1 from then on (CRW's numbering).
        normalise: per cell, channels of the long-term first frame are brought to 0..1.
    """

    context: int
    top_k: int
    temperature: float
    radius: float
    window: Literal["disc", "square"] = "disc"
    fill: bool = True
    keep_ties: bool = False
    long_term: tuple[int, ...] = (0,)
    normalise: bool = False

    @property
    def reach(self) -> float:
        """Largest difference of rows or columns between a cell and its neighbours."""
        if self.window == "square" or math.isinf(self.radius):
            return self.radius
        return math.ceil(self.radius) - 1


class Candidates(NamedTuple):
    """Possible neighbours of some queries.

    Attributes:
        similarity: (q, k) cosine; -inf where there is no neighbour.
        cell: (q, k) row of the label bank.
        copies: (q, k) how often the neighbour stands in the context.
    """

    similarity: Tensor
    cell: Tensor
    copies: Tensor


@dataclass(frozen=True)
class Frame:
    """A frame of the context.

    Attributes:
        features: (h, w, D), of unit length.
        labels: (h, w, C).
    """

    features: Tensor
    labels: Tensor


class Context(NamedTuple):
    """What a frame looks at.

    Attributes:
        free: frames without a window, how often each stands there, and how many copies of it
            stand there with a window.
        near: frames with a window, and how often each stands there.
    """

    free: list[tuple[Frame, int, int]]
    near: list[tuple[Frame, int]]


class Propagator:
    """Labels of one video, frame after frame.

    Args:
        settings: the protocol.
        features: (D, h, w) of the first frame; any length, they are normalised here.
        labels: (C, h, w) of the first frame, soft or hard.
        tile: rows and columns of a tile of queries; None: as fits the device.
    """

    def __init__(
        self,
        settings: Propagation,
        features: Tensor,
        labels: Tensor,
        tile: tuple[int, int] | None = None,
    ) -> None:
        if features.shape[1:] != labels.shape[1:]:
            raise ValueError(
                f"features {tuple(features.shape)} and labels {tuple(labels.shape)} are not of "
                "the same grid"
            )
        self.settings = settings
        self.tile = tile or TILES.get(features.device.type, (16, 16))
        self.grid = (features.shape[1], features.shape[2])
        self.time = 0
        self.first = Frame(unit(features), labels.float().permute(1, 2, 0).contiguous())
        self.long_first = self.first
        if settings.normalise:
            brought = normalise_channels(self.first.labels, dim=-1)
            self.long_first = Frame(self.first.features, brought)
        self.recent: deque[Frame] = deque(maxlen=settings.context)
        self.kept: dict[int, Frame] = {}
        self._windows: dict[tuple[int, ...], Tensor] = {}
        self._buffers: dict[str, Tensor] = {}
        self._ring: Tensor | None = None

    def step(self, features: Tensor) -> Tensor:
        """Propagate to the next frame.

        Args:
            features: (D, h, w) of that frame.

        Returns:
            (C, h, w) its soft labels; they sum to 1 over channels where those of the context do.
        """
        self.time += 1
        queries, context = unit(features), self.context()
        frames = [frame for frame, *_ in context.free] + [frame for frame, _ in context.near]
        bank_MC = torch.cat([frame.labels.flatten(0, 1) for frame in frames])
        labels = vote(self._neighbours(queries, context), bank_MC, self.settings)
        frame = Frame(self._place(queries), labels.unflatten(0, self.grid))
        self.recent.append(frame)
        if self.time > 1 and self.time - 1 in self.settings.long_term:
            self.kept[self.time] = frame
        return frame.labels.permute(2, 0, 1)

    def _place(self, features: Tensor) -> Tensor:
        """Write features over those of the frame that leaves the context."""
        if self.settings.long_term != (0,) or not self.settings.context:
            return features
        if self._ring is None:
            self._ring = features.new_empty((self.settings.context, *features.shape))
        return self._ring[self.time % len(self._ring)].copy_(features)

    def replace_features(self, features: list[Tensor]) -> None:
        """Give the frames in :meth:`frames_in_context` new features (of an adapted encoder)."""
        numbers = self.frames_in_context()
        fresh = {n: unit(f) for n, f in zip(numbers, features, strict=True)}
        self.first = replace(self.first, features=fresh[0])
        self.long_first = replace(self.long_first, features=fresh[0])
        self.kept = {n: replace(frame, features=fresh[n]) for n, frame in self.kept.items()}
        start = self.time + 1 - len(self.recent)
        recent = [replace(f, features=fresh[start + i]) for i, f in enumerate(self.recent)]
        self.recent = deque(recent, maxlen=self.settings.context)

    def frames_in_context(self) -> list[int]:
        """Return the numbers of the frames that the next one looks at, in order."""
        recent = range(self.time + 1 - len(self.recent), self.time + 1)
        return sorted({0, *self.kept, *recent})

    def context(self) -> Context:
        """Return the context of frame ``time``."""
        settings, recent = self.settings, [(frame, 1) for frame in self.recent]
        if settings.window == "square":
            return Context([], [(self.long_first, 1), *recent])
        copies = max(0, settings.context - self.time + 1) if settings.fill else 0
        late = [m for m in settings.long_term if m > 0 and self.time > settings.context + m]
        free = [(self.kept[m + 1], 1, 0) for m in late]
        firsts = len(settings.long_term) - len(late)
        if settings.normalise and copies:
            # The long-term entry is normalised, its copies are not.
            recent.insert(0, (self.first, copies))
            copies = 0
        if firsts:
            free.insert(0, (self.long_first, firsts, copies))
        return Context(free, recent)

    def _neighbours(self, queries: Tensor, context: Context) -> Candidates:
        """Return the best candidates of all cells, (N, k)."""
        if self.settings.normalise and any(frame is self.first for frame, _ in context.near):
            # Copies of the first frame tie in similarity but not in labels: the order decides.
            return self._one_by_one(queries, context)
        parts = [
            self._anywhere(queries, entry, number) for number, entry in enumerate(context.free)
        ]
        if context.near:
            parts.append(self._within(queries, context))
        return best(parts, self.settings)

    def _anywhere(self, queries: Tensor, entry: tuple[Frame, int, int], number: int) -> Candidates:
        """Return candidates in a frame without a window."""
        (frame, times, copies), (h, w) = entry, self.grid
        keys_ND = frame.features.flatten(0, 1)
        cells = torch.arange(h * w, device=queries.device)
        rows_h1 = torch.arange(h, device=queries.device)[:, None]
        found = []
        for own in cells.split(FREE_QUERIES):
            q_qD = queries.flatten(0, 1)[own]
            shape = (len(own), len(cells))
            sims_qN = torch.mm(q_qD, keys_ND.T, out=self._buffer("free", shape))
            sims_qhw = sims_qN.view(-1, h, w)
            columns_qk = sims_qhw.amax(1).topk(min(self.settings.top_k, w), dim=1).indices
            columns_qhk = columns_qk[:, None].expand(-1, h, -1)
            similarity, index = _top(sims_qhw.gather(2, columns_qhk).flatten(1), self.settings)
            cell = (rows_h1 * w + columns_qhk).flatten(1).gather(1, index)
            counted = torch.full_like(similarity, times)
            if copies:
                off_rows, off_columns = cell // w - own[:, None] // w, cell % w - own[:, None] % w
                counted += copies * self._inside(off_rows, off_columns)
            found.append(Candidates(similarity, cell + number * h * w, counted))
        return joined(found)

    def _within(self, queries: Tensor, context: Context) -> Candidates:
        """Return candidates in frames with a window."""
        h, w = self.grid
        frames, reach = [frame for frame, _ in context.near], self.settings.reach
        found, order = [], []
        cells = torch.arange(h * w, device=queries.device).view(h, w)
        for columns in spans(w, self.tile[1], reach):
            width = columns.keys.stop - columns.keys.start
            band = self._buffer("band", (len(frames), h, width, queries.shape[-1]))
            for place, frame in zip(band, frames, strict=True):
                place.copy_(frame.features[:, columns.keys])
            for rows in spans(h, self.tile[0], reach):
                q_qD = queries[rows.queries, columns.queries].flatten(0, 1)
                window = band[:, rows.keys].flatten(1, 2)
                part = self._in_tile(q_qD, window, Tile(rows, columns), len(context.free))
                found.append(part)
                order.append(cells[rows.queries, columns.queries].flatten())
        back = torch.cat(order).argsort()
        return Candidates(*(values[back] for values in joined(found)))

    def _in_tile(self, q_qD: Tensor, keys_FKD: Tensor, tile: "Tile", offset: int) -> Candidates:
        """Return a tile's candidates; ``offset`` frames stand before these in the label bank."""
        (frames, positions), (h, w) = keys_FKD.shape[:2], self.grid
        out = self._buffer("near", (frames, len(q_qD), positions))
        sims_FqK = torch.bmm(q_qD.expand(frames, -1, -1), keys_FKD.transpose(1, 2), out=out)
        top_qK = sims_FqK.amax(0) + self._window(tile)
        k = min(self.settings.top_k, positions)
        values, index = top_qK.topk(k, dim=1)
        if self.settings.keep_ties:
            kth = _kth(_gather(sims_FqK, values, index), self.settings.top_k)
            tied = int(((top_qK >= kth) & (top_qK > -torch.inf)).sum(1).max())
            if tied > k:
                values, index = top_qK.topk(tied, dim=1)
        width = tile.columns.keys.stop - tile.columns.keys.start
        rows, columns = index // width, index % width
        cell_qk = (rows + tile.rows.keys.start) * w + columns + tile.columns.keys.start
        numbers = torch.arange(offset, offset + frames, device=index.device)
        cell_qFk = cell_qk[:, None] + (numbers * (h * w))[:, None]
        similarity, index = _top(_gather(sims_FqK, values, index), self.settings)
        cell = cell_qFk.flatten(1).gather(1, index)
        return Candidates(similarity, cell, torch.ones_like(similarity))

    def _buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return memory that is used again: fresh pages cost as much time as the products."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers.pop(name, None)
            self._buffers[name] = self.first.features.new_empty(size)
        return self._buffers[name][:size].view(shape)

    def _one_by_one(self, queries: Tensor, context: Context) -> Candidates:
        """Return the best candidates where copies have other labels than their original: each copy
        takes part in the ranking, in the original's order, since it decides which of them stays."""
        h, w = self.grid
        cells = torch.arange(h * w, device=queries.device)
        found = []
        for own in cells.split(math.prod(self.tile)):
            q_qD = queries.flatten(0, 1)[own]
            off_rows, off_columns = (
                (cells // w - (own // w)[:, None]),
                cells % w - (own % w)[:, None],
            )
            inside = self._inside(off_rows, off_columns)
            sims, rows = [], []
            entries = [(frame, times, True) for frame, times, _ in context.free]
            entries += [(frame, copies, False) for frame, copies in context.near]
            for number, (frame, times, free) in enumerate(entries):
                sims_qN = q_qD @ frame.features.flatten(0, 1).T
                if not free:
                    sims_qN = sims_qN.masked_fill(~inside, -torch.inf)
                sims += [sims_qN] * times
                rows += [cells + number * h * w] * times
            similarity, index = _top(torch.cat(sims, dim=1), self.settings)
            found.append((similarity, torch.cat(rows)[index], torch.ones_like(similarity)))
        return Candidates(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def _inside(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Return whether cells so many rows and columns off lie in the window."""
        radius = self.settings.radius
        if self.settings.window == "disc":
            return rows.square() + columns.square() < radius**2
        return (rows.abs() <= radius) & (columns.abs() <= radius)

    def _window(self, tile: "Tile") -> Tensor:
        """Return 0 inside and -inf outside the window of each query of a tile, (q, K)."""
        shape = (*tile.rows.shape, *tile.columns.shape)
        if shape not in self._windows:
            rows, columns = (
                span.offsets(self.first.labels.device) for span in (tile.rows, tile.columns)
            )
            inside = self._inside(rows[:, None, :, None], columns[None, :, None, :])
            window = torch.zeros(inside.shape, device=inside.device)
            window[~inside] = -torch.inf
            self._windows[shape] = window.flatten(0, 1).flatten(1)
        return self._windows[shape]


@dataclass(frozen=True)
class Span:
    """Rows (columns) of a tile and those that its windows reach."""

    queries: slice
    keys: slice

    @property
    def shape(self) -> tuple[int, int, int]:
        """What the offsets depend on."""
        size = self.queries.stop - self.queries.start
        return size, self.keys.start - self.queries.start, self.keys.stop - self.queries.start

    def offsets(self, device: torch.device) -> Tensor:
        """Return key minus query, (queries, keys)."""
        queries = torch.arange(self.queries.start, self.queries.stop, device=device)
        keys = torch.arange(self.keys.start, self.keys.stop, device=device)
        return keys - queries[:, None]


@dataclass(frozen=True)
class Tile:
    """A rectangle of query cells.

    Attributes:
        rows: of the grid.
        columns: of the grid.
    """

    rows: Span
    columns: Span


def spans(size: int, tile: int, reach: float) -> Iterator[Span]:
    """Yield the tiles of one axis of ``size`` cells."""
    for start in range(0, size, tile):
        stop = min(start + tile, size)
        first = 0 if reach > start else start - int(reach)
        last = size if reach > size - stop else stop + int(reach)
        yield Span(slice(start, stop), slice(first, last))


def best(parts: list[Candidates], settings: Propagation) -> Candidates:
    """Return the ``top_k`` most similar of several lists, best first; all that tie if asked."""
    joint = Candidates(*(torch.cat(lists, dim=1) for lists in zip(*parts, strict=True)))
    similarity, order = _top(joint.similarity, settings)
    return Candidates(similarity, joint.cell.gather(1, order), joint.copies.gather(1, order))


def joined(found: list[Candidates]) -> Candidates:
    """Return the candidates of all queries; shorter lists (fewer ties) are filled up."""
    longest = max(part.cell.shape[1] for part in found)
    fills = (-torch.inf, 0, 0)
    return Candidates(
        *(
            torch.cat([F.pad(x, (0, longest - x.shape[1]), value=fill) for x in lists])
            for lists, fill in zip(zip(*found, strict=True), fills, strict=True)
        )
    )


def vote(found: Candidates, bank_MC: Tensor, settings: Propagation) -> Tensor:
    """Return the labels (N, C) that candidates (N, k), best first, give from a label bank (M, C).

    A candidate with copies takes as many of the ``top_k`` places, as far as they go.
    """
    counted = found.copies
    if not settings.keep_ties:
        before = counted.cumsum(1) - counted
        counted = counted.minimum((settings.top_k - before).clamp_min(0))
    likeness = (found.similarity - found.similarity[:, :1]) / settings.temperature
    weights = counted * likeness.exp()
    weights = weights / weights.sum(1, keepdim=True)
    return torch.einsum("nk,nkc->nc", weights, bank_MC[found.cell])


def unit(features: Tensor) -> Tensor:
    """Return features (D, h, w) as (h, w, D), each cell's of length 1."""
    x_hwD = features.float().permute(1, 2, 0).clone(memory_format=torch.contiguous_format)
    return x_hwD.div_(torch.linalg.vector_norm(x_hwD, dim=-1, keepdim=True).clamp_min_(1e-12))


def normalise_channels(labels: Tensor, dim: int) -> Tensor:
    """Return soft labels with each cell's channels brought to 0..1 (CRW's ``norm_mask``).

    A cell whose channels are all equal becomes 0 (the original divides by 0 there).
    """
    shifted = labels - labels.amin(dim, keepdim=True)
    return shifted / shifted.amax(dim, keepdim=True).clamp_min(torch.finfo(labels.dtype).tiny)


def _gather(sims_FqK: Tensor, values_qk: Tensor, index_qk: Tensor) -> Tensor:
    """Return the similarities of all frames at some positions, (q, F * k)."""
    found = sims_FqK.gather(2, index_qk.expand(len(sims_FqK), -1, -1))
    found = found.masked_fill(values_qk == -torch.inf, -torch.inf)
    return found.transpose(0, 1).flatten(1)


def _top(similarity: Tensor, settings: Propagation) -> tuple[Tensor, Tensor]:
    """Return the ``top_k`` largest of each row, and where; all that tie with the k-th if asked."""
    k = min(settings.top_k, similarity.shape[1])
    if settings.keep_ties:
        similarity = similarity.masked_fill(similarity < _kth(similarity, k), -torch.inf)
        k = max(k, int((similarity > -torch.inf).sum(1).max()))
    values, index = similarity.topk(k, dim=1)
    return values, index


def _kth(similarity: Tensor, k: int) -> Tensor:
    """Return each query's k-th largest similarity, (q, 1)."""
    return similarity.topk(min(k, similarity.shape[1]), dim=1).values[:, -1:]
