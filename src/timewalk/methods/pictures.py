"""Pictures of what methods see.

Shapes: T frames, S side of a frame, N nodes, h and w rows and columns of cells.
"""

import colorsys

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from timewalk.ops.cycles import likeliest_paths

COLOURS = ((230, 60, 60), (60, 120, 240), (250, 200, 40), (60, 190, 100), (180, 80, 220))
STRIP_WIDTH = 960
"""pixels, about, of a strip of many frames"""
STARTS = ((0.5, 0.5), (0.25, 0.25), (0.25, 0.75), (0.75, 0.25), (0.75, 0.75))
"""where walks begin, as shares of the side: row and column"""


def walks_picture(
    frames_TSSC: np.ndarray, centres_N2: np.ndarray, forward_TNN: Tensor
) -> np.ndarray:
    """Return frames with the likeliest walks from five nodes, and a walker's whereabouts below.

    Args:
        frames_TSSC: uint8 (T, S, S, 3).
        centres_N2: row and column of each node in pixels.
        forward_TNN: (T - 1, N, N) transitions.

    Returns:
        uint8 (2 S, T S, 3): above, a dot for each walk in each frame; below, each frame lit by the
        probability that a walker from the middle node is there, the likeliest node brightest.
    """
    side = frames_TSSC.shape[1]
    wanted_S12 = np.array(STARTS)[:, None] * side
    starts_S = torch.from_numpy(np.square(wanted_S12 - centres_N2).sum(axis=-1).argmin(axis=1))
    paths_ST = likeliest_paths(forward_TNN, starts_S).numpy()
    above = [
        _dotted(frame, centres_N2[nodes])
        for frame, nodes in zip(frames_TSSC, paths_ST.T, strict=True)
    ]
    where_N = F.one_hot(starts_S[0], len(centres_N2)).float()
    below = []
    for number, frame in enumerate(frames_TSSC):
        if number > 0:
            where_N = where_N @ forward_TNN[number - 1]
        below.append(_lit(frame, where_N))
    return np.concatenate([np.concatenate(row, axis=1) for row in (above, below)])


def labels_picture(frames_TSSC: np.ndarray, labels_Thw: np.ndarray) -> np.ndarray:
    """Return frames, and below them the labels of their cells in colours over the frames.

    Args:
        frames_TSSC: uint8 (T, S, S, 3).
        labels_Thw: integers (T, h, w); equal numbers have equal colours, in any picture.

    Returns:
        uint8 (2 S, T S, 3).
    """
    side = frames_TSSC.shape[1]
    # Steps of the golden ratio: neighbouring numbers are of distant hues.
    hues = (np.arange(labels_Thw.max() + 1) * 0.6180339887) % 1
    palette = np.array([colorsys.hsv_to_rgb(hue, 0.85, 1.0) for hue in hues]) * 255
    rows, columns = (np.arange(side) * cells // side for cells in labels_Thw.shape[1:])
    colours = palette[labels_Thw[:, rows][:, :, columns]]
    grey = frames_TSSC.mean(axis=-1, keepdims=True)
    below = (0.6 * colours + 0.4 * grey).round().astype(np.uint8)
    return np.concatenate([np.concatenate(row, axis=1) for row in (frames_TSSC, below)])


def self_similarity_picture(frames_TSSC: np.ndarray, embeddings_TD: Tensor) -> np.ndarray:
    """Return frames, and below them how close the embeddings of any two frames are.

    Args:
        frames_TSSC: uint8 (T, S, S, 3).
        embeddings_TD: of the frames.

    Returns:
        uint8 (s + s T, s T, 3) with small frames of side s: below frame t the column of its
        distances, white where none, black for the largest of all.
    """
    side = min(frames_TSSC.shape[1], max(8, STRIP_WIDTH // len(frames_TSSC)))
    small = [Image.fromarray(frame).resize((side, side)) for frame in frames_TSSC]
    strip = np.concatenate([np.asarray(image) for image in small], axis=1)
    distances_TT = torch.cdist(embeddings_TD, embeddings_TD)
    light_TT = 255 * (1 - distances_TT / distances_TT.max().clamp(min=1e-12))
    cells_TT = light_TT.round().clamp(0, 255).to(torch.uint8).numpy()
    cells = cells_TT.repeat(side, axis=0).repeat(side, axis=1)
    return np.concatenate([strip, np.repeat(cells[..., None], 3, axis=-1)])


def _dotted(frame: np.ndarray, places: np.ndarray) -> np.ndarray:
    image = Image.fromarray(frame)
    draw = ImageDraw.Draw(image)
    radius = max(2, len(frame) // 40)
    for (row, column), colour in zip(places.tolist(), COLOURS, strict=True):
        box = (column - radius, row - radius, column + radius, row + radius)
        draw.ellipse(box, fill=colour, outline=(255, 255, 255))
    return np.asarray(image)


def _lit(frame: np.ndarray, where_N: Tensor) -> np.ndarray:
    """The nodes are the cells of a square grid over the frame."""
    side = round(len(where_N) ** 0.5)
    cells = (where_N / where_N.max()).view(1, 1, side, side)
    light = F.interpolate(cells, size=frame.shape[:2], mode="bilinear")[0, 0].numpy()
    lit: np.ndarray = (0.2 + 0.8 * light[..., None]) * frame
    return lit.round().astype(np.uint8)
