# Faces of a whole video (blur.where: video). Misses happen: look at the contact sheet.
rule blur:
    input:
        f"{DATA}/videos/{{video}}.json",
    output:
        f"{DATA}/blurred/{{video}}.json",
    log:
        logs("blur", "{video}")[0],
    benchmark:
        logs("blur", "{video}")[1]
    conda:
        "../../envs/video.yaml"
    threads: 16
    resources:
        gpu=0,
        mem_mb=8000,
        runtime=48 * 60,
    params:
        video=input_video,
        target=output_video,
        settings=as_json(BLUR),
    shell:
        "timewalk --log {log} blur {params.video:q} {params.target:q}"
        " --settings {params.settings:q} --workers {threads}"
