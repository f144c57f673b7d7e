# learning curves -> points, frontiers, fits with intervals


rule studies:
    output:
        f"{sweep.results}/studies.json",
    log:
        f"{sweep.logs}/studies.log",
    params:
        document=sweep.studies_json(),
    shell:
        "{SYMSCALE} cell --document {params.document:q} --out {output:q} 2> {log:q}"


rule analyse:
    input:
        curves=sweep.curves,
        studies=f"{sweep.results}/studies.json",
    output:
        f"{sweep.results}/analysis/fits.json",
        f"{sweep.results}/analysis/fits.parquet",
        f"{sweep.results}/analysis/frontier.parquet",
        f"{sweep.results}/analysis/points.parquet",
    log:
        f"{sweep.logs}/analyse.log",
    params:
        folder=f"{sweep.results}/analysis",
        options=sweep.analysis_options(),
    shell:
        "{SYMSCALE} analyse {input.curves:q} --studies {input.studies:q} --options {params.options:q} "
        "--out {params.folder:q} 2> >(tee {log:q} >&2)"
