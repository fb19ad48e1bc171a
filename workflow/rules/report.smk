# A page a run, tables and one page of all results, and their one mirror in MLflow.
localrules:
    card,
    report,
    page,
    mlflow,


forget_lost_store()


rule card:
    input:
        encoder=f"{RESULTS}/{{run}}/encoder.json",
        weights=f"{RESULTS}/{{run}}/encoder.safetensors",
        results=run_results,
    output:
        report(
            f"{RESULTS}/{{run}}/card.md",
            caption="../report/card.rst",
            category="Model cards",
            labels={"run": "{run}"},
        ),
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
        report(
            f"{RESULTS}/summary.csv",
            caption="../report/summary.rst",
            category="Results",
            labels={"what": "every metric, one a row"},
        ),
        report(
            f"{RESULTS}/summary.md",
            caption="../report/summary.rst",
            category="Results",
            labels={"what": "tables of every protocol"},
        ),
        f"{RESULTS}/summary.tex",
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
        inputs=input_list,
    shell:
        "timewalk --log {log} report {params.folder:q} @{params.inputs:q}"


rule page:
    input:
        all_results(),
        all_cards(),
    output:
        report(
            f"{RESULTS}/report.html",
            caption="../report/page.rst",
            category="Results",
            labels={"what": "the whole page: square, curves, pictures"},
        ),
    log:
        logs("report", "page")[0],
    benchmark:
        logs("report", "page")[1]
    conda:
        "../../envs/report.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=30,
    params:
        folder=output_folder,
        planned=as_file(json.dumps(planned_pairs()), "json"),
    shell:
        "timewalk --log {log} page {params.folder:q} --planned {params.planned:q}"


rule mlflow:
    input:
        results=all_results(),
        cards=all_cards(),
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
        mem_mb=4000,
        runtime=60,
    params:
        folder=output_folder,
        store=tracking_store(),
        inputs=input_list,
    shell:
        "timewalk --log {log} mlflow {params.folder:q} @{params.inputs:q} --stamp {output:q}"
