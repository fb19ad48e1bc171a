# A video from its source to data/videos/, checked.
rule download:
    output:
        f"{DATA}/videos/{{video}}.json",
    log:
        logs("download", "{video}")[0],
    benchmark:
        logs("download", "{video}")[1]
    conda:
        "../../envs/video.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=24 * 60,
    params:
        target=output_video,
        video=video_json,
        checks=download_checks,
    shell:
        "timewalk --log {log} download {wildcards.video} {params.target:q}"
        " --video {params.video:q} --settings {params.checks:q}"
