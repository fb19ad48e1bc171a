# A video from its source to data/videos/, checked.
rule download:
    output:
        f"{DATA}/videos/{{video}}.json",
    log:
        logs("download", "{video}")[0],
    benchmark:
        logs("download", "{video}")[1]
    retries: 2
    conda:
        "../../envs/video.yaml"
    resources:
        gpu=0,
        mem_mb=2000,
        runtime=24 * 60,
    params:
        target=f"{DATA}/videos/{{video}}.mp4",
        video=video_json,
    shell:
        "timewalk --log {log} download {wildcards.video} {params.target:q}"
        " --video {params.video:q} --settings {TRANSFER:q}"
