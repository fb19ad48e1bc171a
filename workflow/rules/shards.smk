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
    conda:
        "../../envs/video.yaml"
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=12 * 60,
    params:
        storage=storage,
    shell:
        "timewalk --log {log} shards {input:q} {output:q} --storage {params.storage}"
