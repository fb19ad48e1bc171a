SEVERAL = {name for name, about in SUITE.runs.items() if about.get("nodes", 1) > 1}


# A run. Checkpoints lie beside the outputs, undeclared, so a retry goes on from them.
# As many processes as GPUs: --set-resources train:gpu=4. Results do not depend on their number.
rule train:
    input:
        shards=or_list(run_shards),
        listed=if_listed(run_shards),
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
    wildcard_constraints:
        run=one_of(set(SUITE.runs) - SEVERAL),
    conda:
        "../../envs/training.yaml"
    threads: run_threads
    resources:
        gpu=run_gpus,
        mem_mb=run_memory,
        runtime=7 * 24 * 60,
    params:
        folder=output_folder,
        settings=run_json,
        decisive=run_decisive,
        validation=validation_json,
    shell:
        "timewalk --log {log} train {wildcards.run} {params.folder:q}"
        " --settings {params.settings:q} --gpus {resources.gpu} --threads {threads}"
        " --validation {params.validation:q} --shards {input.shards:q}"


# A run with `nodes` above 1, under Slurm: everything here is for each of its machines.
# The resource gpu is a job's total to Slurm and may be dealt out unevenly; gres is a machine's.
use rule train as train_nodes with:
    wildcard_constraints:
        run=one_of(SEVERAL),
    resources:
        gpu=0,
        gres="gpu:1",
        nodes=run_nodes,
        # With `mpi` the plugin puts no srun around the job. One would kill the training at SIGTERM.
        mpi="srun",
        tasks=run_nodes,
        tasks_per_gpu=0,
        mem_mb=run_memory,
        runtime=7 * 24 * 60,
