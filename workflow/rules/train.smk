# cell name -> resolved spec -> learning curve. Checkpoints are no declared output: Snakemake deletes those.


rule cell:
    output:
        f"{sweep.results}/{{cell}}/cell.json",
    log:
        f"{sweep.logs}/cell/{{cell}}.log",
    params:
        document=sweep.cell_json,
    shell:
        "{SYMSCALE} cell --document {params.document:q} --out {output:q} 2> {log:q}"


rule train:
    input:
        cell=f"{sweep.results}/{{cell}}/cell.json",
        data=sweep.manifest,
    output:
        f"{sweep.results}/{{cell}}/curve.parquet",
    log:
        f"{sweep.logs}/train/{{cell}}.log",
    threads: 1
    shell:
        "{SYMSCALE} train --cell {input.cell:q} --checkpoint {sweep.checkpoints:q}/{wildcards.cell:q} --output {output:q} "
        "--threads {threads} --log {log:q}"
