# A run. Checkpoints lie beside the outputs, undeclared, so a retry goes on from them.
# As many processes as GPUs: --set-resources train:gpu=4. Results do not depend on their number.
rule train:
    input:
        shards=run_shards,
        weights=run_weights,
        validation=validation_datasets,
    output:
        encoder=f"{RESULTS}/{{run}}/encoder.safetensors",
        about=f"{RESULTS}/{{run}}/encoder.json",
        metrics=f"{RESULTS}/{{run}}/metrics.jsonl",
    log:
        logs("train", "{run}")[0],
    benchmark:
        logs("train", "{run}")[1]
    retries: 2
    conda:
        "../../envs/training.yaml"
    threads: run_threads
    resources:
        gpu=run_gpus,
        nodes=run_nodes,
        mem_mb=run_memory,
        runtime=7 * 24 * 60,
    params:
        folder=output_folder,
        settings=run_json,
        validation=validation_json,
    shell:
        "timewalk --log {log} train {wildcards.run} {params.folder:q}"
        " --settings {params.settings:q} --gpus {resources.gpu} --threads {threads}"
        " --validation {params.validation:q} --shards {input.shards:q}"
