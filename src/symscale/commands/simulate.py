"""symscale simulate: cell folders whose curves are drawn from a known law, for all that follows training."""

from __future__ import annotations

from pathlib import Path

from symscale.curves import read_curve
from symscale.errors import UserError


def add_arguments(parser) -> None:
    cells_help = (
        "resolved cells: a curve.parquet is written beside each; default: the paper's 48, or --configfile's"
    )
    parser.add_argument("cells", nargs="*", metavar="CELL.json", help=cells_help)
    parser.add_argument(
        "--out", default="results/simulated", help="folder for new cell folders (%(default)s)"
    )
    parser.add_argument("--configfile", help="simulate every cell of this config, into its results folder")
    parser.add_argument(
        "--arch", action="append", help="only these architectures, of the paper or of --laws; may be repeated"
    )
    parser.add_argument(
        "--seeds", type=int, default=1, help="replicate runs of each cell of the paper (%(default)s)"
    )
    parser.add_argument(
        "--laws",
        help="JSON file: architecture -> A, alpha, B, beta, E, kappa and ladder ([[width, N], ...]) in place of the "
        "paper's",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise (%(default)s)")
    names = ("RUN", "ALONG", "EVALUATION")
    noise_help = "standard deviations in log L (0.01 0.01 0.003)"
    parser.add_argument(
        "--noise", type=float, nargs=3, default=[0.01, 0.01, 0.003], metavar=names, help=noise_help
    )
    parser.add_argument("--atoms", type=float, default=9.2e8, help="D_max (%(default)s)")


def run(args) -> None:
    import json

    from tqdm import tqdm

    from symscale import cells
    from symscale import config as configs
    from symscale.analysis import paper
    from symscale.analysis import simulate_cells as sim
    from symscale.analysis.simulate import Noise

    if args.seeds < 1 or not args.atoms > 0 or min(args.noise) < 0:
        raise UserError("--seeds must be at least 1, --atoms above 0 and --noise at least 0")
    laws = {}
    if args.laws:
        try:
            laws = sim.check_laws(json.loads(Path(args.laws).read_text()))
        except (OSError, json.JSONDecodeError, AttributeError) as error:
            raise UserError(f"{args.laws}: not a JSON file of laws ({error})") from None
    own = {arch for arch, law in laws.items() if "ladder" in law}
    unknown = set(args.arch or []) - set(paper.LADDERS) - own
    if unknown:
        raise UserError(
            f"--arch {', '.join(sorted(unknown))}: the paper has {', '.join(paper.LADDERS)}; another needs a law "
            "with a ladder (--laws)"
        )
    if args.cells:
        work = [
            (cells.read_cell(path)[0], Path(path).with_name("curve.parquet"), None) for path in args.cells
        ]
    elif args.configfile:
        config = configs.load(args.configfile)
        folder = Path(config["results"])
        work = [
            (spec, folder / name / "curve.parquet", cells.data_folder(config, spec.dataset))
            for name, spec in cells.expand(config).items()
        ]
    else:
        specs = sim.paper_cells(args.arch or list(paper.LADDERS), args.seeds, laws=laws)
        work = [(spec, Path(args.out) / spec.name / "curve.parquet", "simulated") for spec in specs]
    for _, curve, _ in work:
        _refuse_trained(curve)
    noise = Noise(*args.noise)
    for spec, curve, data in tqdm(work, desc="simulate", unit="cell", disable=None):
        points = sim.simulate_cell(spec, seed=args.seed, noise=noise, laws=laws, d_max=args.atoms)
        if data is not None:
            sim.write_document(curve.with_name("cell.json"), spec, data)
        sim.write_cell(spec, points, curve)
    print(f"{len(work)} cells simulated")


def _refuse_trained(curve: Path) -> None:
    """UserError where a curve that was trained, or that is not ours, would be overwritten."""
    if curve.exists() and read_curve(curve)[1].get("device") != "simulated":
        raise UserError(f"{curve}: a trained curve; simulate into another folder, or remove it first")
