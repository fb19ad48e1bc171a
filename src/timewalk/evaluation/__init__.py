"""The registry of evaluations: one line each, imported only when used.

To add one: its file in this folder with a ``Config`` and ``evaluate``, and its line below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

from timewalk.errors import UserError
from timewalk.registry import load_module, patterns_meet, summary

Labels = Literal["images", "masks", "objects", "phases", "tracks", "videos"]
VIDEOS: tuple[Labels, ...] = ("videos",)
PHASES: tuple[Labels, ...] = ("phases",)
MASKS: tuple[Labels, ...] = ("masks", "videos")
DAVIS = ("davis2017", "moving_shapes")
"""kinds of sets in the layout of DAVIS 2017"""
DAVIS_METRICS = ("JF_mean", "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay")


@dataclass(frozen=True)
class Entry:
    """One evaluation.

    Attributes:
        module: where it is: a module with ``Config`` and
            ``evaluate(inputs: Inputs, config, output_dir: Path) -> Result`` (``base.py``). What
            it has half done it keeps in ``output_dir``, and goes on from there.
        needs: `embeddings` (features of both splits, computed once for all evaluations of a run),
            `encoder` (the network itself: the job gets a GPU and more time), or `network` (the
            encoder fine-tuned with a head, by the entry of ``finetuning:`` that its key
            ``network`` names).
        labels: what its labelled set may be made of: `images` with a class each, still images with
            `masks`, images of `objects` (:class:`timewalk.data.objects.LabelledObjects`), `videos`
            (:class:`timewalk.data.sequences.LabelledVideos`), `tracks`, videos with a box a frame
            (:class:`timewalk.data.tracks.LabelledTracks`), or videos with `phases`
            (:class:`timewalk.data.phases.PhaseVideos`).
        kinds: of labelled sets that it reads, where it does not read all of these.
        keys: what those of the set's keys that it has must be.
        task: of the fine-tuning that gave the network, where it needs one.
        falling: patterns (``*``, ``?``) of the names of the metrics of which less is better.
        metrics: patterns of the names of all metrics.
        headline: patterns of the metric that stands for the evaluation in short tables, the most
            wanted first.
        described: patterns of metrics that are counts or describe, and are not ranked.
    """

    module: str
    needs: Literal["embeddings", "encoder", "network"]
    labels: tuple[Labels, ...] = ("images",)
    kinds: tuple[str, ...] = ()
    keys: Mapping[str, str] = field(default_factory=dict)
    task: str | None = None
    falling: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    headline: tuple[str, ...] = ()
    described: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import and return the module.

        Raises:
            UserError: there is none, it lacks what an evaluation has, or an import in it fails.
        """
        line = f'{__file__}: Entry("{self.module}")'
        module = load_module(self.module, line)
        for needed in ("Config", "evaluate"):
            if not hasattr(module, needed):
                raise UserError(
                    f"{line}: its module has no '{needed}'; correct this line, or write it there."
                )
        return module

    def declares(self, metric: str) -> bool:
        """Return whether a metric is one of the entry's."""
        return any(fnmatchcase(metric, pattern) for pattern in self.metrics)

    def lower_is_better(self, metric: str) -> bool:
        """Return whether less of a metric is better."""
        return any(fnmatchcase(metric, pattern) for pattern in self.falling)

    def is_score(self, metric: str) -> bool:
        """Return whether one value of a metric is better than another."""
        return not any(fnmatchcase(metric, pattern) for pattern in self.described)

    def headline_of(self, metrics: Sequence[str]) -> str | None:
        """Return which metric stands for the evaluation; None where it only draws."""
        for pattern in self.headline:
            if found := [metric for metric in metrics if fnmatchcase(metric, pattern)]:
                return found[-1]
        return None


_ENTRIES = {
    "ade20k": Entry(
        "timewalk.evaluation.ade20k",
        needs="network",
        labels=MASKS,
        task="semantic_segmentation",
        headline=("miou",),
        metrics=("miou", "macc", "aacc"),
    ),
    "algorithm_loss": Entry(
        "timewalk.evaluation.algorithm_loss",
        needs="encoder",
        labels=PHASES,
        falling=("loss_*", "tcc_*", "sal_*", "tcn_*"),
        headline=("loss_test", "*_test"),
        metrics=("loss_*", "tcc_*", "sal_*", "tcn_*", "accuracy_*"),
    ),
    "alignment_video": Entry(
        "timewalk.evaluation.alignment_video",
        needs="embeddings",
        labels=PHASES,
        falling=("dtw_cost*", "phase_difference"),
        headline=("same_phase_percent", "dtw_cost_percent"),
        described=("dtw_cost",),
        metrics=("dtw_cost", "dtw_cost_percent", "phase_difference", "same_phase_percent"),
    ),
    "attention": Entry(
        "timewalk.evaluation.attention",
        needs="encoder",
        described=("*",),
        metrics=("entropy_bits", "heads", "kept_percent"),
    ),
    "clustering": Entry(
        "timewalk.evaluation.clustering",
        needs="encoder",
        labels=MASKS,
        headline=("miou",),
        described=("clusters", "background_clusters"),
        metrics=(
            "miou",
            "miou_without_background",
            "pixel_accuracy",
            "background_clusters",
            "clusters",
        ),
    ),
    "coco": Entry(
        "timewalk.evaluation.coco",
        needs="network",
        labels=("objects",),
        task="detection",
        headline=("mask_ap", "box_ap"),
        metrics=("box_ap*", "mask_ap*"),
    ),
    "davis": Entry(
        "timewalk.evaluation.video_segmentation",
        needs="encoder",
        labels=VIDEOS,
        kinds=DAVIS,
        keys={"task": "semi-supervised", "resolution": "480p"},
        falling=("*_decay",),
        headline=("JF_mean",),
        described=("adapt_*",),
        metrics=(*DAVIS_METRICS, "gain_JF_mean", "plain_*", "adapt_seconds", "adapt_updates"),
    ),
    "dense_retrieval": Entry(
        "timewalk.evaluation.dense_retrieval",
        needs="encoder",
        labels=MASKS,
        headline=("miou",),
        described=("memory_patches",),
        metrics=(
            "miou",
            "miou_without_background",
            "pixel_accuracy",
            "miou_fixed",
            "memory_patches",
        ),
    ),
    "few_shot": Entry(
        "timewalk.evaluation.few_shot",
        needs="embeddings",
        labels=PHASES,
        headline=("accuracy",),
        described=("*ci95_k*", "*sem_k*"),
        metrics=("accuracy*", "train_accuracy_k*", "*ci95_k*", "*sem_k*"),
    ),
    "foreground": Entry(
        "timewalk.evaluation.foreground",
        needs="encoder",
        labels=MASKS,
        headline=("jaccard",),
        described=("foreground_percent", "threshold", "clusters_foreground"),
        metrics=(
            "jaccard",
            "jaccard_other_boundary",
            "boundary_f",
            "miou",
            "miou_without_background",
            "pixel_accuracy",
            "miou_fixed",
            "threshold",
            "foreground_percent",
            "clusters_foreground",
        ),
    ),
    "foreground_segmentation": Entry(
        "timewalk.evaluation.foreground_segmentation",
        needs="encoder",
        labels=VIDEOS,
        kinds=("davis2016", *DAVIS, "fbms59", "segtrack_v2"),
        headline=("J",),
        described=("sequences",),
        metrics=("J", "J_*", "sequences"),
    ),
    "got10k": Entry(
        "timewalk.evaluation.got10k",
        needs="encoder",
        labels=("tracks",),
        headline=("ao", "mao"),
        described=("fps",),
        metrics=("ao", "sr50", "sr75", "mao", "msr50", "msr75", "fps"),
    ),
    "jhmdb": Entry(
        "timewalk.evaluation.pose",
        needs="encoder",
        labels=VIDEOS,
        kinds=("jhmdb",),
        headline=("PCK_0.1", "PCK_*"),
        described=("adapt_*",),
        metrics=("PCK_*", "gain_PCK_0.1", "plain_*", "adapt_seconds", "adapt_updates"),
    ),
    "kendalls_tau": Entry(
        "timewalk.evaluation.kendalls_tau",
        needs="embeddings",
        labels=PHASES,
        headline=("tau",),
        described=("pairs", "*_pairs"),
        metrics=("tau", "train_tau", "pairs", "train_pairs"),
    ),
    "knn": Entry(
        "timewalk.evaluation.knn",
        needs="embeddings",
        headline=("top1_k20", "top1_k*"),
        metrics=("top1_k*", "top5_k*"),
    ),
    "linear": Entry(
        "timewalk.evaluation.linear",
        needs="encoder",
        headline=("top1_final",),
        described=("best_epoch",),
        metrics=("top1_final", "top5_final", "top1_best", "top5_best", "best_epoch"),
    ),
    "linear_segmentation": Entry(
        "timewalk.evaluation.linear_segmentation",
        needs="encoder",
        labels=MASKS,
        headline=("miou",),
        described=("best_epoch",),
        metrics=(
            "miou",
            "miou_without_background",
            "pixel_accuracy",
            "miou_fixed",
            "miou_best",
            "best_epoch",
        ),
    ),
    "object_discovery": Entry(
        "timewalk.evaluation.object_discovery",
        needs="encoder",
        labels=VIDEOS,
        kinds=DAVIS,
        keys={"task": "unsupervised", "resolution": "480p"},
        falling=("*_decay",),
        headline=("JF_mean",),
        described=("candidates_*", "from_slots"),
        metrics=(
            *DAVIS_METRICS,
            "frame_matched_*",
            "candidates_mean",
            "candidates_max",
            "from_slots",
        ),
    ),
    "overclustering": Entry(
        "timewalk.evaluation.overclustering",
        needs="encoder",
        labels=MASKS,
        headline=("miou",),
        described=("clusters", "background_clusters"),
        metrics=(
            "miou",
            "miou_without_background",
            "pixel_accuracy",
            "background_clusters",
            "clusters",
        ),
    ),
    "pca": Entry(
        "timewalk.evaluation.pca",
        needs="encoder",
        described=("*",),
        metrics=("explained_percent_*",),
    ),
    "phase_classification": Entry(
        "timewalk.evaluation.phase_classification",
        needs="embeddings",
        labels=PHASES,
        headline=("accuracy",),
        metrics=("accuracy*", "train_accuracy_*"),
    ),
    "phase_progression": Entry(
        "timewalk.evaluation.phase_progression",
        needs="embeddings",
        labels=PHASES,
        falling=("transition_error",),
        headline=("r2",),
        metrics=("r2*", "train_r2_*", "transition_error"),
    ),
    "propagation_iou": Entry(
        "timewalk.evaluation.propagation_iou",
        needs="encoder",
        labels=VIDEOS,
        headline=("miou",),
        described=("objects",),
        metrics=("miou", "miou_objects", "objects"),
    ),
    "tsne": Entry(
        "timewalk.evaluation.tsne",
        needs="embeddings",
        falling=("kl_divergence",),
        headline=("top1_2d",),
        metrics=("top1_2d", "trustworthiness", "kl_divergence"),
    ),
    "vip": Entry(
        "timewalk.evaluation.parts",
        needs="encoder",
        labels=VIDEOS,
        kinds=("vip",),
        headline=("mIoU",),
        described=("adapt_*",),
        metrics=(
            "mIoU",
            "mean_accuracy",
            "overall_accuracy",
            "weighted_IoU",
            "gain_mIoU",
            "plain_*",
            "adapt_seconds",
            "adapt_updates",
        ),
    ),
}


def get_evaluation(name: str) -> Entry:
    """Return an evaluation.

    Raises:
        UserError: the name is unknown (with the nearest one), or its entry contradicts itself.
    """
    # Here, because the configuration's models take long to import, and not all verbs need them.
    from timewalk.config import lookup

    entry: Entry = lookup("evaluation", name, _ENTRIES)
    _refuse_stray_patterns(name, entry)
    return entry


def _refuse_stray_patterns(name: str, entry: Entry) -> None:
    """Refuse patterns that fit no declared metric: a typo would rank nothing, or upside down."""
    for key in ("headline", "falling", "described"):
        for pattern in getattr(entry, key):
            if not any(patterns_meet(pattern, metric) for metric in entry.metrics):
                raise UserError(
                    f"{__file__}: the entry '{name}' has '{pattern}' as {key}, which fits none of "
                    f"its metrics ({', '.join(entry.metrics) or 'it has none'}); correct one of "
                    "them."
                )


def entry_of(kind: str) -> Entry:
    """Return the evaluation of a result; one that does not exist any more says nothing of it."""
    return _ENTRIES.get(kind, Entry("", needs="encoder"))


def evaluation_names() -> list[str]:
    """Return the names of all evaluations."""
    return sorted(_ENTRIES)


def evaluation_summaries() -> dict[str, str]:
    """Return what each evaluation is, in a sentence; imports none."""
    return {name: summary(_ENTRIES[name].module) for name in evaluation_names()}
