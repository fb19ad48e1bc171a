# A page a run, tables of all results, and their one mirror in MLflow.
localrules:
    card,
    report,
    mlflow,


rule card:
    input:
        encoder=f"{RESULTS}/{{run}}/encoder.json",
        weights=f"{RESULTS}/{{run}}/encoder.safetensors",
        results=run_results,
    output:
        f"{RESULTS}/{{run}}/card.md",
    log:
        logs("report", "card", "{run}")[0],
    benchmark:
        logs("report", "card", "{run}")[1]
    conda:
        "../../envs/report.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        folder=output_folder,
    shell:
        "timewalk --log {log} card {params.folder:q} {input.results:q}"


rule report:
    input:
        all_results(),
    output:
        multiext(f"{RESULTS}/summary", ".csv", ".md", ".tex"),
    log:
        logs("report")[0],
    benchmark:
        logs("report")[1]
    conda:
        "../../envs/report.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        folder=output_folder,
    shell:
        "timewalk --log {log} report {params.folder:q} {input:q}"


rule mlflow:
    input:
        all_results(),
    output:
        f"{RESULTS}/mlflow.json",
    log:
        logs("mlflow")[0],
    benchmark:
        logs("mlflow")[1]
    conda:
        "../../envs/report.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=60,
    params:
        folder=output_folder,
    shell:
        "timewalk --log {log} mlflow {params.folder:q} {input:q} --stamp {output:q}"
