"""Scaling-law analysis: learning curves in, laws with honest intervals out. numpy, scipy, pandas; never torch.

Units: N parameters, D training atoms seen, C training compute in PFLOP (1e15 FLOP), H device-hours, L normalised.

    points       the table every fit reads         solver, laws   the search and the laws
    frontier     compute-optimal frontiers         intervals      run bootstrap, jackknife, the published kind
    closed       closed forms, kappa, allocation   diagnostics    residuals and identifiability, in words
    records      one law with interval and words   sweep          all of it for a sweep
    compare      tests between groups              sensitivity    burn-in, delta, smoothing, choice of rows
    components   energy and force, averaging       simulate       curves from a known law
    paper        the published numbers             tables         what `symscale analyse` writes

What `symscale analyse` writes (read it with `tables.read`):

points.parquet     the points table of points.py with `kept` (False: burn-in or not usable) and `in_sum_fit`
frontier.parquet   group, arch, x ('C' or 'H'), budget, loss, cell, run, N, D, x_reached, censored (bool), where
                   (words); N and D are of the row that holds the budget
fits.parquet       a row per fit and parameter: fit (its name, 'law:group:x:variant' without empty parts), law, group,
                   arch, x, variant, parameter, value, lo, hi (95 %), interval (kind), naive_lo, naive_hi ('as
                   published': per point), status, n_points, n_bootstrap, seed; a fit that was impossible has one row
                   with parameter '' and NaN
fits.json          {"fits": [...], "words": [...], "options": {...}}: one object per fit with name, law, group, arch,
                   x, variant, status, diagnostics (words, flags first), flags (those that make it 'flagged'), params
                   {name: {value, lo, hi, naive_lo, naive_hi}}, interval, jackknife {name: [lo, hi]}, numbers,
                   cells, n_points, n_bootstrap, rejected, seed
draws.parquet      fit, draw, then a column per parameter: the draws behind lo and hi
comparisons.json   list of {kind, what, first, second, estimate, lo, hi, p, verdict, numbers} (compare.py)
answers.json       one object a study: {study, kind, numbers {name: [value, lo, hi]}, sentences, words, table [rows]}
                   (studies.py; its kinds of question are asking, settings, repeats)
sensitivity.parquet  group, law, x, setting, value (of the setting), parameter, estimate

law          x     parameters                  variant
sum          ''    A, alpha, B, beta, E        '' (rows at r = 0.1 ... 1.0), 'energy', 'force'
closed_form  C, H  gamma, F, a, b, G           ''
frontier     C, H  gamma, F, E                 '' all budgets; 'uncensored' those whose optimum the ladder holds;
                                               'energy', 'force' (C only)
kappa        C     kappa, drift                ''
hours        H     xi, p: H = xi N^p D         ''
status is 'ok', 'flagged' (`flags` say why) or 'not fitted'.
"""
