# learning curves and what else studies ask to be measured -> points, frontiers, fits with intervals, answers


rule studies:
    output:
        f"{sweep.results}/studies.json",
    log:
        f"{sweep.logs}/studies.log",
    params:
        document=sweep.studies_json(),
    shell:
        "{SYMSCALE} cell --document {params.document:q} --out {output:q} 2> {log:q}"


rule group_average:
    input:
        curve=f"{sweep.results}/{{cell}}/curve.parquet",
        data=sweep.manifest,
    output:
        f"{sweep.results}/{{cell}}/averaging.parquet",
    log:
        f"{sweep.logs}/averaging/{{cell}}.log",
    threads: 1
    params:
        samples=sweep.samples,
        data=sweep.data_folder,
    shell:
        "{SYMSCALE} group-average --checkpoint {sweep.checkpoints:q}/{wildcards.cell:q} --data {params.data:q} "
        "--samples {params.samples} --threads {threads} --out {output:q} 2> >(tee {log:q} >&2)"


rule kappa:
    input:
        cells=sweep.counted,
        data=sweep.counted_data,
    output:
        f"{sweep.results}/kappa.parquet",
    log:
        f"{sweep.logs}/kappa.log",
    shell:
        "{SYMSCALE} kappa --cells {input.cells:q} --out {output:q} > {log:q} 2> >(tee -a {log:q} >&2)"


rule analyse:
    input:
        sweep.measurements,
        curves=sweep.curves,
        studies=f"{sweep.results}/studies.json",
    output:
        f"{sweep.results}/analysis/fits.json",
        f"{sweep.results}/analysis/fits.parquet",
        f"{sweep.results}/analysis/frontier.parquet",
        f"{sweep.results}/analysis/points.parquet",
        f"{sweep.results}/analysis/answers.json",
    log:
        f"{sweep.logs}/analyse.log",
    params:
        folder=f"{sweep.results}/analysis",
        options=sweep.analysis_options(),
        measured=sweep.measured(),
    shell:
        "{SYMSCALE} analyse {input.curves:q} --studies {input.studies:q} --options {params.options:q} "
        "{params.measured} --out {params.folder:q} 2> >(tee {log:q} >&2)"
