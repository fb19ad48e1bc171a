# Frames packed for training: a TFRecord with an index, or the indexed folder itself.
rule shards:
    input:
        f"{DATA}/frames/{{dataset}}/{{video}}/manifest.json",
    output:
        f"{DATA}/shards/{{dataset}}/{{video}}.json",
    log:
        logs("shards", "{dataset}", "{video}")[0],
    benchmark:
        logs("shards", "{dataset}", "{video}")[1]
    wildcard_constraints:
        dataset=one_of(set(SUITE.config.datasets) - STILLS - set(FOLDERS)),
    conda:
        "../../envs/video.yaml"
    resources:
        in_turn=1,
        gpu=0,
        mem_mb=4000,
        runtime=12 * 60,
    params:
        storage=storage,
    shell:
        "timewalk --log {log} shards {input:q} {output:q} --storage {params.storage}"


# A folder of still images, checked and indexed in place. When its images change, delete the output.
rule images:
    output:
        f"{DATA}/shards/{{dataset}}/images.json",
    log:
        logs("images", "{dataset}")[0],
    benchmark:
        logs("images", "{dataset}")[1]
    wildcard_constraints:
        dataset=one_of(STILLS),
    conda:
        "../../envs/training.yaml"
    threads: 8
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=12 * 60,
    params:
        folder=images_folder,
    shell:
        "timewalk --log {log} images {params.folder:q} {output:q} --workers {threads}"


# Folders of images, each the frames of a video, checked and indexed in place. When images change,
# delete the output; a changed list is noticed.
rule folders:
    input:
        folders_list,
    output:
        f"{DATA}/shards/{{dataset}}/folders.json",
    log:
        logs("folders", "{dataset}")[0],
    benchmark:
        logs("folders", "{dataset}")[1]
    wildcard_constraints:
        dataset=one_of(FOLDERS),
    conda:
        "../../envs/training.yaml"
    threads: 8
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=24 * 60,
    params:
        source=folders_source,
        split=folders_split,
    shell:
        "timewalk --log {log} folders {params.source:q} {output:q} --workers {threads}"
        " --split {params.split:q}"
