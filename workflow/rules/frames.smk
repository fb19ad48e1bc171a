# Frames of a video, blurred on the way with blur.where: frames.
rule frames:
    input:
        frames_source,
    output:
        f"{DATA}/frames/{{dataset}}/{{video}}/manifest.json",
    log:
        logs("frames", "{dataset}", "{video}")[0],
    benchmark:
        logs("frames", "{dataset}", "{video}")[1]
    conda:
        "../../envs/video.yaml"
    threads: 8
    resources:
        in_turn=1,
        gpu=0,
        mem_mb=8000,
        runtime=24 * 60,
    params:
        video=input_video,
        folder=output_folder,
        settings=frames_json,
        blur=frames_blur,
        trim=trim,
    shell:
        "timewalk --log {log} frames {params.video:q} {params.folder:q}"
        " --settings {params.settings:q} --blur {params.blur:q} {params.trim}"
        " --workers {threads}"
