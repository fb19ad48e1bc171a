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
    retries: 2
    conda:
        "../../envs/training.yaml"
    threads: 8
    resources:
        gpu=1,
        nodes=finetuning_nodes,
        mem_mb=64000,
        runtime=7 * 24 * 60,
    params:
        run=encoder_folder,
        folder=output_folder,
        settings=finetuning_json,
    shell:
        "timewalk --log {log} finetune {wildcards.finetuning} {params.run:q} {params.folder:q}"
        " --settings {params.settings:q} --dataset {input.dataset:q}"
        " --gpus {resources.gpu} --threads {threads}"
