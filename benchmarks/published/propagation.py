"""Label propagation of DINO and CRW, written from a description of their released code.

What costs time and memory there is kept. DINO: the whole affinity of all context cells with all
query cells, exponentiated, multiplied by a window of 0 and 1, transposed, cut at the k-th largest
of each query and divided in place. CRW: a key bank with every frame's whole context, blocks of 2
frames x 100 query cells, -1e10 outside the radius, the k largest of all keys. Only the windows are
built by comparison of indices, not by loops over cells; they come once per video and are not part
of the time per frame.

Shapes: T frames to predict, F context frames, N = h x w cells, D features, C channels.
"""

import torch
from torch.nn import functional as F

BLOCK_FRAMES, BLOCK_CELLS, OUTSIDE = 2, 100, -1e10


def offsets(grid, device):
    """Return differences of rows (h, 1, h, 1) and of columns (1, w, 1, w) of cells."""
    rows, columns = (torch.arange(n, device=device).float() for n in grid)
    return (rows[:, None] - rows)[:, None, :, None], (columns[:, None] - columns)[None, :, None]


class Dino:
    """Frame after frame, from a context as it stands: the first frame and those before.

    Args:
        settings: of the protocol (anything with its names).
        features: F maps (D, h, w), the first frame's first.
        labels: F maps (C, h, w).
    """

    def __init__(self, settings, features, labels):
        self.settings, self.grid = settings, features[0].shape[1:]
        self.features = [self._cells(x) for x in features]
        self.labels = list(labels)
        rows, columns = offsets(self.grid, features[0].device)
        reach = settings.radius
        inside = (rows.abs() <= reach) & (columns.abs() <= reach)
        self.window_NN = inside.float().flatten(2).flatten(0, 1)

    @staticmethod
    def _cells(features):
        return F.normalize(features.flatten(1).T, dim=1)

    def predict(self, frames):
        """Return the soft maps (C, h, w) of the next frames (D, h, w), one after the other."""
        found = []
        for features in frames:
            query_ND = self._cells(features)
            found.append(self._one(query_ND))
            self.features.append(query_ND)
            self.labels.append(found[-1])
            if len(self.features) > self.settings.context + 1:
                del self.features[1], self.labels[1]
        return found

    def _one(self, query_ND):
        context_FDN = torch.stack(self.features).transpose(1, 2)
        query_FND = query_ND[None].expand(len(context_FDN), -1, -1)
        affinity = torch.exp(torch.bmm(query_FND, context_FDN) / self.settings.temperature)
        affinity *= self.window_NN
        affinity = affinity.transpose(1, 2).reshape(-1, len(query_ND))
        top, _ = affinity.topk(self.settings.top_k, dim=0)
        affinity[affinity < top.amin(0)] = 0
        affinity /= affinity.sum(0, keepdim=True)
        labels_CM = torch.stack(self.labels).transpose(0, 1).flatten(1)
        return torch.mm(labels_CM, affinity).unflatten(1, self.grid)


class Crw:
    """All frames' weights first, then the labels; from a context as it stands.

    Args:
        settings: of the protocol (anything with its names).
        features: F maps (D, h, w): the first frame, then the L before the first to predict.
        labels: F maps (C, h, w).
    """

    def __init__(self, settings, features, labels):
        self.settings, self.grid = settings, features[0].shape[1:]
        self.features, self.labels = list(features), list(labels)
        rows, columns = offsets(self.grid, features[0].device)
        inside = (rows.square() + columns.square()).sqrt() < settings.radius
        self.mask_NN = torch.where(inside, 0.0, OUTSIDE).flatten(2).flatten(0, 1)

    def predict(self, frames):
        """Return the soft maps (C, h, w) of the next frames (D, h, w)."""
        length = self.settings.context
        cells = torch.stack([x.flatten(1).T for x in [*self.features, *frames]])
        cells = F.normalize(cells, dim=2)
        context = [[0, *range(1 + t, 1 + t + length)] for t in range(len(frames))]
        bank_TFND = cells[torch.tensor(context, device=cells.device)]
        weights, ids = self._affinities(bank_TFND, cells[-len(frames) :])
        labels = [x.flatten(1).T for x in self.labels]
        found = []
        for own_weights, own_ids, rows in zip(weights, ids, context, strict=True):
            bank_MC = torch.cat([labels[row] for row in rows])
            chosen_kNC = bank_MC[own_ids.to(bank_MC.device)]
            labels.append((chosen_kNC * own_weights.to(bank_MC.device)[..., None]).sum(0))
            found.append(labels[-1].T.unflatten(1, self.grid))
        return found

    def _affinities(self, bank_TFND, query_TND):
        """Return weights and places in the bank of each query's neighbours, (T, k, N)."""
        weights, ids = [], []
        frames, cells = bank_TFND.shape[1:3]
        for start in range(0, len(query_TND), BLOCK_FRAMES):
            keys_tMD = bank_TFND[start : start + BLOCK_FRAMES].flatten(1, 2)
            query_tND = query_TND[start : start + BLOCK_FRAMES]
            found = []
            for first in range(0, cells, BLOCK_CELLS):
                block = slice(first, first + BLOCK_CELLS)
                sims_tMq = torch.bmm(keys_tMD, query_tND[:, block].transpose(1, 2))
                sims_tFNq = sims_tMq.unflatten(1, (frames, cells))
                sims_tFNq[:, 1:] += self.mask_NN[:, block]
                sims_tMq /= self.settings.temperature
                top, places = sims_tMq.topk(self.settings.top_k, dim=1)
                found.append((top.softmax(dim=1).cpu(), places.cpu()))
            parts = zip(*found, strict=True)
            block_weights, block_ids = (torch.cat(part, dim=2) for part in parts)
            weights.append(block_weights)
            ids.append(block_ids)
        return torch.cat(weights), torch.cat(ids)


def dino_ids(soft, patch):
    """Return the winning channels of a map at the size of the input, after the stretching."""
    large = F.interpolate(soft[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    for channel in large:
        if channel.max() > 0:
            channel -= channel.min()
            channel /= channel.max()
    return large.argmax(0)


def crw_ids(soft, size):
    """Return the winning channels of a map at the frame's size."""
    return F.interpolate(soft[None], size, mode="bilinear", align_corners=False)[0].argmax(0)
