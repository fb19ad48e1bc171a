# The checked configuration, and the named functions that the rules use.
import glob
import json
import os
import sys
from pathlib import Path, PurePosixPath

from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile

from timewalk.artefacts import read_json, sha256_file, sha256_json, version, write_text
from timewalk.config import PhaseFrames, PhaseRecords, ShotLabels
from timewalk.config.changes import (
    decisive,
    refuse_other_settings,
    refuse_other_videos,
)
from timewalk.errors import UserError
from timewalk.plan import load_plan
from timewalk.video.sources import resolve_video


def checked(call, *arguments):
    """Turn a user's mistake into one sentence of Snakemake's, without a traceback."""
    try:
        return call(*arguments)
    except UserError as error:
        raise WorkflowError(str(error)) from None


SUITE = checked(load_plan, config, Path(".snakemake/timewalk"))
DATA = PurePosixPath(SUITE.config.data_dir).as_posix()
RESULTS = PurePosixPath(SUITE.config.results_dir).as_posix()
LOGS = "logs"
TIMES = "logs/times"
SHARED_CACHE = "SNAKEMAKE_OUTPUT_CACHE" in os.environ
BLUR = SUITE.config.blur
STILLS = {name for name, x in SUITE.config.datasets.items() if x.images}
FOLDERS = {
    name: x.folders or x.list or f"{DATA}/datasets/{x.labelled}/manifest.json"
    for name, x in SUITE.config.datasets.items()
    if x.folders or x.list or x.labelled
}
CHECKS = {"max_height", "duration_tolerance_s", "max_blank_share"}
# A conda environment's script runs as a copy elsewhere, and has to find the project.
os.environ.update(TIMEWALK_PROJECT=str(Path(str(workflow.current_basedir)).parents[1]))
# How a transfer is retried changes no result: it goes to the jobs beside the rules' params, so
# that nothing is made again when it changes.
os.environ.update(
    TIMEWALK_DOWNLOAD=json.dumps(
        SUITE.config.download.model_dump(mode="json", exclude=CHECKS)
    )
)


def one_of(names):
    """Return the wildcard constraint for names that the configuration knows."""
    return "|".join(sorted(names)) or "no_such_name"


wildcard_constraints:
    video="[a-z0-9][a-z0-9_]*",
    dataset=one_of(SUITE.config.datasets),
    labelled=one_of(SUITE.config.labelled),
    run=one_of(SUITE.runs),
    evaluation=one_of(SUITE.evaluations),
    finetuning=one_of(SUITE.finetunings),
    split="train|test",


def check_targets(targets):
    """Name the nearest run, evaluation or fine-tuning when a target has a typo in it."""
    for target in targets:
        parts = PurePosixPath(target).parts
        base = PurePosixPath(RESULTS).parts
        if parts[: len(base)] != base or len(parts) < len(base) + 2:
            continue
        run, *folders, file = parts[len(base) :]
        if folders[:1] == ["finetuned"] and len(folders) == 2:
            SUITE.run(run)
            SUITE.finetuning(folders[1])
        if folders:
            continue
        SUITE.run(run)
        name, _, suffix = file.partition(".")
        if suffix == "json" and name not in ("encoder", "config"):
            SUITE.evaluation(name)


# Snakemake itself knows its targets only after this file is read.
checked(check_targets, sys.argv[1:])


def check_writable(jobs):
    """Name the folder that cannot be written before the first job starts."""
    folders = {os.path.dirname(path) for job in jobs for path in job.output}
    for folder in sorted(folders):
        while folder and not os.path.exists(folder):
            folder = os.path.dirname(folder)
        if not os.access(folder or ".", os.W_OK):
            raise UserError(
                f"{folder} is read-only: make it writable, or name another data_dir or results_dir, "
                "and run the same command again; what is finished is kept."
            )


def as_json(settings, **options):
    """Return settings, a model or what one held, as JSON text for the command line."""
    if not isinstance(settings, dict):
        settings = settings.model_dump(mode="json", **options)
    return json.dumps(settings, sort_keys=True)


def video_json(wildcards):
    """Return where a video comes from and what is expected of it."""
    return as_json(checked(resolve_video, wildcards.video, SUITE.config.videos))


def download_checks(wildcards):
    """Return what is asked of every video."""
    return as_json(SUITE.config.download, include=CHECKS)


def frames_source(wildcards):
    """Return the manifest of the video that frames are taken from."""
    blurred = BLUR.what == "faces" and BLUR.where == "video"
    return f"{DATA}/{'blurred' if blurred else 'videos'}/{wildcards.video}.json"


def frames_json(wildcards):
    """Return the frame settings of a data set."""
    return as_json(SUITE.dataset(wildcards.dataset).frames)


def frames_blur(wildcards):
    """Return the option that blurs frames on the way, or nothing."""
    blur_here = BLUR.what == "faces" and BLUR.where == "frames"
    return as_json(BLUR) if blur_here else "null"


def trim(wildcards):
    """Return the options that cut a video to its content."""
    video = checked(resolve_video, wildcards.video, SUITE.config.videos)
    end = f" --end {video.end_s}" if video.end_s is not None else ""
    return f"--start {video.start_s}{end}"


def storage(wildcards):
    """Return how a data set's frames are kept."""
    return SUITE.dataset(wildcards.dataset).storage


def shards_of(dataset):
    """Return the shard manifests of a data set."""
    if dataset in STILLS:
        return [f"{DATA}/shards/{dataset}/images.json"]
    if dataset in FOLDERS:
        return [f"{DATA}/shards/{dataset}/folders.json"]
    return [
        f"{DATA}/shards/{dataset}/{video}.json"
        for video in SUITE.dataset(dataset).videos
    ]


def shard_manifests():
    """Return the shard manifests of every data set."""
    return [path for dataset in SUITE.config.datasets for path in shards_of(dataset)]


def images_folder(wildcards):
    """Return the folder of a data set of still images."""
    return SUITE.dataset(wildcards.dataset).images


def folders_source(wildcards):
    """Return the root, the list or the labelled set of a data set of folders of images."""
    return FOLDERS[wildcards.dataset]


def folders_split(wildcards):
    """Return which part of a data set's folders is meant, or nothing."""
    split = SUITE.dataset(wildcards.dataset).split
    return as_json(split) if split else "null"


def folders_list(wildcards):
    """Return the list or the labelled set of a data set that has one: a file that may change."""
    found = SUITE.dataset(wildcards.dataset)
    return FOLDERS[wildcards.dataset] if found.list or found.labelled else []


def labelled_json(wildcards):
    """Return the settings of a labelled set."""
    return as_json(SUITE.config.labelled[wildcards.labelled])


def labelled_frames(wildcards):
    """Return the frames that a labelled set of shots or of phases is made of."""
    labelled = SUITE.config.labelled[wildcards.labelled]
    if not isinstance(labelled, ShotLabels | PhaseFrames):
        return []
    videos = SUITE.dataset(labelled.dataset).videos
    return [
        f"{DATA}/frames/{labelled.dataset}/{video}/manifest.json" for video in videos
    ]


def labelled_lists(wildcards):
    """Return the files of one's own that a labelled set is made of: they may change."""
    labelled = SUITE.config.labelled[wildcards.labelled]
    named = [
        getattr(labelled, key, None) for key in ("list_file", "classes", "label_file")
    ]
    if isinstance(labelled, PhaseRecords):
        for pattern in (labelled.train, labelled.test):
            found = glob.glob(pattern, root_dir=labelled.root, recursive=True)
            named += [os.path.join(labelled.root, file) for file in sorted(found)]
    # The job itself says in one sentence which one is missing, and under which key.
    return [path for path in named if isinstance(path, str) and os.path.isfile(path)]


def run_json(wildcards, output):
    """Return a run's configuration with its method's defaults.

    What comes of `output` is no reason for Snakemake to run a job again: see `run_decisive`.
    """
    return as_json(SUITE.run(wildcards.run))


def run_decisive(wildcards):
    """Return what of a run's configuration decides on its result: a change trains anew."""
    return as_json(decisive(SUITE.run(wildcards.run)))


def run_shards(wildcards):
    """Return the shard manifests that a run trains on."""
    dataset = SUITE.run(wildcards.run)["dataset"]
    return shards_of(dataset) if wildcards.run in SUITE.trained and dataset else []


def run_weights(wildcards):
    """Return the encoder of the run that a run begins with."""
    origin = SUITE.origins.get(wildcards.run)
    return [] if origin is None else f"{RESULTS}/{origin}/encoder.safetensors"


def run_validation(wildcards):
    """Return the evaluation between a run's epochs, or none."""
    validation = SUITE.run(wildcards.run).get("validation")
    return None if validation is None else validation["evaluation"]


def validation_datasets(wildcards):
    """Return the manifests of the labelled sets of that evaluation."""
    name = run_validation(wildcards)
    if name is None:
        return []
    found = SUITE.evaluation(name)
    sets = [found["dataset"], found.get("train_dataset")]
    return [f"{DATA}/datasets/{item}/manifest.json" for item in sets if item]


def without_runs(evaluation):
    """Return an evaluation's settings; which other runs it is for changes no result."""
    return {key: value for key, value in evaluation.items() if key != "runs"}


def validation_json(wildcards):
    """Return name, settings and labelled sets of that evaluation for the command line."""
    name = run_validation(wildcards)
    if name is None:
        return "null"
    settings = without_runs(SUITE.evaluation(name))
    sets = validation_datasets(wildcards)
    about = dict(zip(("dataset", "train_dataset"), sets))
    return json.dumps({"name": name, "settings": settings, **about}, sort_keys=True)


def run_threads(wildcards):
    """Return the cores of a training: more where it evaluates between epochs."""
    return 8 if run_validation(wildcards) is None else 16


def run_memory(wildcards):
    """Return the memory of a training in MB: as an evaluation's, where there is one in it."""
    return 32000 if run_validation(wildcards) is None else 64000


def run_gpus(wildcards):
    """Return the GPUs that a run asks for: none without training."""
    return int(wildcards.run in SUITE.trained)


def run_nodes(wildcards):
    """Return the machines that a run trains on."""
    return SUITE.run(wildcards.run).get("nodes", 1)


def finetuning_json(wildcards, output):
    """Return the settings of a fine-tuning; as `run_json` no reason to run again."""
    return as_json(SUITE.finetuning(wildcards.finetuning))


def finetuning_decisive(wildcards):
    """Return what of the settings of a fine-tuning decides on its result: a change trains anew."""
    return as_json(decisive(SUITE.finetuning(wildcards.finetuning)))


def finetuning_dataset(wildcards):
    """Return the manifest of the labelled set that a fine-tuning learns from."""
    dataset = SUITE.finetuning(wildcards.finetuning)["dataset"]
    return f"{DATA}/datasets/{dataset}/manifest.json"


def finetuning_nodes(wildcards):
    """Return the machines that a fine-tuning trains on."""
    return SUITE.finetuning(wildcards.finetuning)["nodes"]


def evaluation_json(wildcards):
    """Return the settings of an evaluation."""
    return as_json(without_runs(SUITE.evaluation(wildcards.evaluation)))


def evaluation_dataset(wildcards):
    """Return the manifest of the labelled set that an evaluation is done on."""
    dataset = SUITE.evaluation(wildcards.evaluation)["dataset"]
    return f"{DATA}/datasets/{dataset}/manifest.json"


def evaluation_train_dataset(wildcards):
    """Return the manifest of the labelled set that an evaluation's key `train_dataset` names."""
    dataset = SUITE.evaluation(wildcards.evaluation).get("train_dataset")
    return [] if dataset is None else f"{DATA}/datasets/{dataset}/manifest.json"


def evaluation_network(wildcards):
    """Return the fine-tuned network that an evaluation's key `network` names."""
    network = SUITE.evaluation(wildcards.evaluation).get("network")
    if network is None:
        return []
    return f"{RESULTS}/{wildcards.run}/finetuned/{network}/network.safetensors"


def evaluation_frames(wildcards):
    """Return the frames of the data set that an evaluation's key `frames` names."""
    dataset = SUITE.evaluation(wildcards.evaluation).get("frames")
    if dataset is None:
        return []
    videos = SUITE.dataset(dataset).videos
    return [f"{DATA}/frames/{dataset}/{video}/manifest.json" for video in videos]


def evaluation_needs(wildcards):
    """Return what an evaluation reads: `embeddings`, or the `encoder` itself."""
    return SUITE.needs[wildcards.evaluation]


def evaluation_embeddings(wildcards):
    """Return the features that an evaluation reads: training split, test split."""
    if evaluation_needs(wildcards) != "embeddings":
        return []
    dataset = SUITE.evaluation(wildcards.evaluation)["dataset"]
    stem = f"{RESULTS}/{wildcards.run}/embeddings/{dataset}"
    return [f"{stem}-train.safetensors", f"{stem}-test.safetensors"]


def evaluation_gpus(wildcards):
    """Return the GPUs that an evaluation asks for: none where features are at hand."""
    return int(evaluation_needs(wildcards) != "embeddings")


def evaluation_threads(wildcards):
    """Return the cores of an evaluation: more where images are read."""
    return 4 if evaluation_needs(wildcards) == "embeddings" else 16


def evaluation_memory(wildcards):
    """Return the memory of an evaluation in MB."""
    return 16000 if evaluation_needs(wildcards) == "embeddings" else 64000


def evaluation_minutes(wildcards):
    """Return the longest time of an evaluation in minutes."""
    return 12 * 60 if evaluation_needs(wildcards) == "embeddings" else 48 * 60


def evaluation_group(wildcards):
    """Return the group of an evaluation where the profile says how many of it make a job, or none:
    `features` is of those that read features, `images` of the others, which hold a GPU.
    """
    group = "images" if evaluation_gpus(wildcards) else "features"
    return group if group in workflow.group_settings.group_components else None


def all_results(wildcards=None):
    """Return every run under every evaluation."""
    return [
        f"{RESULTS}/{run}/{name}.json"
        for run in SUITE.runs
        for name in SUITE.evaluations_of(run)
    ]


def run_results(wildcards):
    """Return one run under each of its evaluations."""
    names = SUITE.evaluations_of(wildcards.run)
    return [f"{RESULTS}/{wildcards.run}/{name}.json" for name in names]


def all_cards(wildcards=None):
    """Return the model card of every run."""
    return [f"{RESULTS}/{run}/card.md" for run in SUITE.runs]


def planned_pairs():
    """Return the names of the evaluations that each run goes through."""
    return {run: SUITE.evaluations_of(run) for run in SUITE.runs}


def as_file(text, suffix):
    """Return a file that holds a text too long for a command line: a system has 128 KiB for a word.

    The name has the text's digest, so that a job runs again when it is another one.
    """
    name = f"{sha256_json(text)[:24]}.{suffix}"
    path = Path(".snakemake/timewalk/words", name)
    if not path.is_file():
        checked(write_text, path, text)
        # Of the year 1970: as an input it makes nothing old, however late it is written.
        os.utime(path, (1, 1))
    return str(path)


def too_long(paths):
    """Say whether a command cannot name these paths: beside settings there is room for so many."""
    return sum(len(os.fsencode(f"{path} ")) for path in paths) > 90_000


def or_list(paths_of):
    """Return an input function: the same paths, or a list of them where they are too long.

    Not for all, and without an option of its own: to Snakemake another command, or another input,
    is another result, and finished trainings would be made again.
    """

    def named(wildcards):
        paths = paths_of(wildcards)
        return as_file("\n".join(paths), "txt") if too_long(paths) else paths

    return named


def if_listed(paths_of):
    """Return an input function: the paths that `or_list` has put into a list."""

    def listed(wildcards):
        paths = paths_of(wildcards)
        return paths if too_long(paths) else []

    return listed


def input_list(wildcards, input):
    """Return a file that names the inputs of a rule."""
    return as_file("\n".join(input), "txt")


def write_page_of_what_there_is():
    """After a failure, write the page of what is done; what came before stays the error.

    To Snakemake the page is older than everything and of unknown origin, so that the rule makes it
    again, whatever the configuration is then. (Of known origin, and with inputs of known content,
    its age would not matter; and a time of 0 is none.)
    """
    if not os.path.isdir(RESULTS):
        return
    from timewalk.report.page_html import write_page

    try:
        page = write_page(Path(RESULTS), planned_pairs())
        os.utime(page, (1, 1))
        workflow.persistence.cleanup_metadata(IOFile(str(page)))
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        print(f"{RESULTS}/report.html was not written: {said}", file=sys.stderr)
    else:
        print(f"{page} shows what is done and what has failed.", file=sys.stderr)


def tracking_store():
    """Return a digest of where MLflow's store is: another server gets everything too. The address
    itself may hold a password."""
    return sha256_json(os.environ.get("MLFLOW_TRACKING_URI"))


def forget_lost_store():
    """Remove the record of what our own store holds when that is gone: it may be deleted, and the
    record would stand for it. (Only older, it would still do: its inputs are as they were.)
    """
    record = Path(RESULTS, "mlflow.json")
    if not workflow.is_main_process or Path(RESULTS, "mlflow.db").exists():
        return
    if (
        record.is_file()
        and read_json(record).get("own_store")
        and os.access(RESULTS, os.W_OK)
    ):
        record.unlink()


def output_folder(wildcards, output):
    """Return the folder of a rule's first output."""
    return str(PurePosixPath(output[0]).parent)


def output_video(wildcards, output):
    """Return the video that a manifest among the outputs describes."""
    return str(PurePosixPath(output[0]).with_suffix(".mp4"))


def input_video(wildcards, input):
    """Return the video that a manifest among the inputs describes."""
    return str(PurePosixPath(input[0]).with_suffix(".mp4"))


def encoder_folder(wildcards, input):
    """Return the folder of the run whose encoder is used."""
    return str(PurePosixPath(input.encoder).parent)


def embed_content(wildcards, input):
    """Return what the features of a split are computed from, for a cache that projects share: to
    Snakemake the project's own paths would do, whatever lies there."""
    if not SHARED_CACHE:
        return None
    about = Path(input.about)
    encoder = json.loads(about.read_text())
    del encoder["provenance"]
    files = [Path(input.dataset), *about.parent.glob("head.safetensors")]
    return as_json(
        {
            "encoder": encoder,
            "files": [sha256_file(file) for file in files],
            "split": wildcards.split,
            "timewalk": version(),
        }
    )


def logs(stage, *wildcards):
    """Return the log and the benchmark file of a stage; data and results keep theirs apart."""
    root = (
        RESULTS
        if stage in ("train", "finetune", "embed", "evaluate", "report", "mlflow")
        else DATA
    )
    name = "-".join((stage, *wildcards))
    return f"{LOGS}/{root}/{name}.log", f"{TIMES}/{root}/{name}.tsv"


def check_finished(jobs):
    """Refuse what would replace a finished training by one of other settings or videos: its outputs
    are deleted before the job starts."""
    for job in jobs:
        run = job.rule.name.startswith("train") and job.wildcards.run in SUITE.trained
        if run or job.rule.name.startswith("finetune"):
            about, settings = Path(job.output.about), json.loads(job.params.settings)
            refuse_other_settings(about, settings)
        if run:
            dataset = SUITE.run(job.wildcards.run)["dataset"]
            refuse_other_videos(about, dataset, shards_of(dataset))


RESUMED = ("train", "finetune", "blur", "download")
"""how the names of rules begin whose jobs go on from where they were"""


def limit_retries():
    """Have a job that goes on from where it was started again as often as a profile says, trainings
    twice if it says nothing. Any other job begins anew, and a mistake stays one: it is started
    again once at most, as its machine may have died. A number on the command line is for all.

    What a profile says is known only at the start. Its 0 looks like no number at all.
    """
    options = ("--retries", "--restart-times", "-T")
    if any(word.startswith(options) for word in sys.argv[1:]):
        return
    asked = workflow.execution_settings.retries
    for one in workflow.rules:
        if one.name.startswith(("train", "finetune")) and not asked:
            one.restart_times = 2
        elif not one.name.startswith(RESUMED):
            one.restart_times = min(1, asked)
