# A labelled set, checked and indexed in place.
rule prepare:
    input:
        frames=or_list(labelled_frames),
        listed=if_listed(labelled_frames),
        lists=labelled_lists,
    output:
        f"{DATA}/datasets/{{labelled}}/manifest.json",
    log:
        logs("prepare", "{labelled}")[0],
    benchmark:
        logs("prepare", "{labelled}")[1]
    conda:
        "../../envs/training.yaml"
    resources:
        gpu=0,
        mem_mb=4000,
        runtime=120,
    params:
        settings=labelled_json,
    shell:
        "timewalk --log {log} prepare {wildcards.labelled} {output:q}"
        " --settings {params.settings:q} --frames {input.frames:q}"
