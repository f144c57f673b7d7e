# a config with `simulation` draws its curves from known laws instead of training (config/simulated-paper.yaml)


ruleorder: simulate > train


rule simulate:
    input:
        [f"{sweep.results}/{name}/cell.json" for name in sweep.cells],
    output:
        sweep.curves(),
    log:
        f"{sweep.logs}/simulate.log",
    params:
        seed=sweep.config["simulation"]["seed"],
    shell:
        "{SYMSCALE} simulate {input:q} --seed {params.seed} 2> {log:q}"
