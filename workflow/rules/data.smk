# dataset entry -> packed, shuffled, memory-mapped store


rule pack:
    output:
        f"{sweep.data_dir}/{{pack}}/manifest.json",
    log:
        f"{sweep.logs}/pack/{{pack}}.log",
    threads: workflow.cores or 1
    params:
        entry=sweep.dataset_json,
        source=sweep.source_state,
        folder=f"{sweep.data_dir}/{{pack}}",
    shell:
        "{SYMSCALE} pack --entry {params.entry:q} --out {params.folder:q} --processes {threads} 2> >(tee {log:q} >&2)"
