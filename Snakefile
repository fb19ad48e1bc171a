# timewalk: from raw video to a number.
#
#   snakemake --cores 8 --resources gpu=4                            every run, every evaluation
#   snakemake --cores 8 --resources gpu=4 results/dora/knn.json      one of them
#   snakemake --cores 2 --configfile workflow/demo.yaml              the demo
#   snakemake --cores 2 results/demo/crw/davis.json                  one result of the demo
#
# config.yaml is the suite unless --configfile names another, or a target lies in the demo's folder.
# The environment carries the choice to jobs that read this file again without the targets.
import os
import sys

if any(word.startswith("results/demo/") for word in sys.argv[1:]):
    os.environ.update(TIMEWALK_SUITE="workflow/demo.yaml")
if not workflow.config_settings.configfiles:

    configfile: os.getenv("TIMEWALK_SUITE", "config.yaml")


# The first page of `snakemake --report`.
report: "workflow/report/suite.rst"


# With --sdm apptainer each job runs in this image: envs/README.md.
container: os.getenv("TIMEWALK_IMAGE")


include: "workflow/rules/common.smk"
include: "workflow/rules/download.smk"
include: "workflow/rules/blur.smk"
include: "workflow/rules/frames.smk"
include: "workflow/rules/shards.smk"
include: "workflow/rules/prepare.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


# Snakemake keeps the last `onstart` alone.
onstart:
    checked(check_finished, workflow.dag.needrun_jobs())
    checked(check_writable, workflow.dag.needrun_jobs())
    limit_retries()


onerror:
    write_page_of_what_there_is()


localrules:
    all,
    data,


# Everything: each run under each evaluation, its model card, the tables, the page, the MLflow store.
rule all:
    default_target: True
    input:
        all_cards(),
        f"{RESULTS}/summary.csv",
        f"{RESULTS}/report.html",
        f"{RESULTS}/mlflow.json",


# The videos' frames, ready to train on, without any training.
rule data:
    input:
        shard_manifests(),
