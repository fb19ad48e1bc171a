SEVERAL_FINETUNINGS = {
    name for name, about in SUITE.finetunings.items() if about["nodes"] > 1
}


# A run's encoder fine-tuned on a labelled set, for the evaluations that test the network. Goes on
# from its checkpoints after a failure, as a training does: --set-resources finetune:gpu=4.
rule finetune:
    input:
        encoder=f"{RESULTS}/{{run}}/encoder.safetensors",
        about=f"{RESULTS}/{{run}}/encoder.json",
        dataset=finetuning_dataset,
    output:
        network=f"{RESULTS}/{{run}}/finetuned/{{finetuning}}/network.safetensors",
        about=f"{RESULTS}/{{run}}/finetuned/{{finetuning}}/network.json",
        metrics=f"{RESULTS}/{{run}}/finetuned/{{finetuning}}/metrics.jsonl",
    log:
        logs("finetune", "{run}", "{finetuning}")[0],
    benchmark:
        logs("finetune", "{run}", "{finetuning}")[1]
    wildcard_constraints:
        finetuning=one_of(set(SUITE.finetunings) - SEVERAL_FINETUNINGS),
    conda:
        "../../envs/training.yaml"
    threads: 8
    resources:
        gpu=1,
        mem_mb=64000,
        runtime=7 * 24 * 60,
    params:
        run=encoder_folder,
        folder=output_folder,
        settings=finetuning_json,
        decisive=finetuning_decisive,
    shell:
        "timewalk --log {log} finetune {wildcards.finetuning} {params.run:q} {params.folder:q}"
        " --settings {params.settings:q} --dataset {input.dataset:q}"
        " --gpus {resources.gpu} --threads {threads}"


# A fine-tuning with `nodes` above 1, under Slurm: everything here is for each of its machines.
use rule finetune as finetune_nodes with:
    wildcard_constraints:
        finetuning=one_of(SEVERAL_FINETUNINGS),
    resources:
        gpu=0,
        gres="gpu:1",
        nodes=finetuning_nodes,
        # With `mpi` the plugin puts no srun around the job. One would kill the training at SIGTERM.
        mpi="srun",
        tasks=finetuning_nodes,
        tasks_per_gpu=0,
        mem_mb=64000,
        runtime=7 * 24 * 60,
