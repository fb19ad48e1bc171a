# Features of a labelled set, computed once, and the evaluations. Of all rules this one's output may
# be shared by projects (docs/rerunning.md), to which a benchmark is forbidden.
rule embed:
    input:
        encoder=f"{RESULTS}/{{run}}/encoder.safetensors",
        about=f"{RESULTS}/{{run}}/encoder.json",
        dataset=f"{DATA}/datasets/{{labelled}}/manifest.json",
    output:
        f"{RESULTS}/{{run}}/embeddings/{{labelled}}-{{split}}.safetensors",
    log:
        logs("embed", "{run}", "{labelled}", "{split}")[0],
    cache: SHARED_CACHE
    conda:
        "../../envs/training.yaml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=16000,
        runtime=12 * 60,
    params:
        folder=encoder_folder,
        content=embed_content,
    shell:
        "timewalk --log {log} embed {params.folder:q} {input.dataset:q} {wildcards.split}"
        " {output:q} --gpus {resources.gpu} --threads {threads}"


rule evaluate:
    input:
        encoder=f"{RESULTS}/{{run}}/encoder.safetensors",
        about=f"{RESULTS}/{{run}}/encoder.json",
        dataset=evaluation_dataset,
        train_dataset=evaluation_train_dataset,
        network=evaluation_network,
        frames=or_list(evaluation_frames),
        listed=if_listed(evaluation_frames),
        embeddings=evaluation_embeddings,
    output:
        f"{RESULTS}/{{run}}/{{evaluation}}.json",
    log:
        logs("evaluate", "{run}", "{evaluation}")[0],
    benchmark:
        logs("evaluate", "{run}", "{evaluation}")[1]
    group:
        evaluation_group
    conda:
        "../../envs/training.yaml"
    threads: evaluation_threads
    # In a group of a cluster's profile Snakemake runs one job after the other; a limit of 1 for this
    # resource has it ask for no more than that needs.
    resources:
        in_turn=1,
        gpu=evaluation_gpus,
        mem_mb=evaluation_memory,
        runtime=evaluation_minutes,
    params:
        folder=encoder_folder,
        settings=evaluation_json,
    shell:
        "timewalk --log {log} evaluate {wildcards.evaluation} {params.folder:q} {output:q}"
        " --settings {params.settings:q} --dataset {input.dataset:q} --frames {input.frames:q}"
        " --train-dataset {input.train_dataset:q} --network {input.network:q} --embeddings {input.embeddings:q}"
        " --gpus {resources.gpu} --threads {threads}"
