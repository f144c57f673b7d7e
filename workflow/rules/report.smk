# analysis -> figures -> one self-contained page


rule figures:
    input:
        rules.analyse.output,
        studies=f"{sweep.results}/studies.json",
    output:
        directory(f"{sweep.results}/figures"),
    log:
        f"{sweep.logs}/figures.log",
    params:
        analysis=f"{sweep.results}/analysis",
    shell:
        "{SYMSCALE} figures --analysis {params.analysis:q} --studies {input.studies:q} --out {output:q} "
        "2> >(tee {log:q} >&2)"


rule report:
    input:
        rules.analyse.output,
        figures=f"{sweep.results}/figures",
        studies=f"{sweep.results}/studies.json",
        curves=sweep.curves,
    output:
        f"{sweep.results}/report.html",
    log:
        f"{sweep.logs}/report.log",
    params:
        results=sweep.results,
    shell:
        "{SYMSCALE} report --results {params.results:q} --out {output:q} 2> >(tee {log:q} >&2)"
