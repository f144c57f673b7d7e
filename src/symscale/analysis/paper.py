"""The paper's published numbers that results are compared with, and the ladders that a simulation uses.

Source: Ngo & Ravanbakhsh, Scaling Laws and Symmetry, Evidence from Neural Force Fields: Tables 1, 3-7 and text.
Architectures go by the names that cells have.
"""

D_MAX = 9.2e8  # training atoms of the OMol25 neutral subset
MOLECULES = 34_000_000

TITLES = {"mpnn": "MPNN", "egnn": "EGNN", "gemnet": "GemNet-OC", "esen": "eSEN"}
AXES = {"mpnn": "w", "egnn": "w", "gemnet": "w", "esen": "c"}
BATCH_SIZE = {"mpnn": 64, "egnn": 128, "gemnet": 64, "esen": 64}

# Tables 3, 4, 6, 5: (width, parameters); eSEN's width is its number of channels
LADDERS = {
    "mpnn": (
        (128, 222404),
        (256, 838020),
        (320, 1293284),
        (375, 1763133),
        (441, 2422704),
        (517, 3311714),
        (607, 4543769),
        (712, 6226800),
        (835, 8535023),
        (1150, 16101729),
        (1349, 22109506),
        (1583, 30389712),
        (1857, 41755644),
        (2179, 57415632),
        (2557, 78974296),
    ),
    "egnn": (
        (32, 156358),
        (48, 306199),
        (56, 403992),
        (64, 516553),
        (81, 786925),
        (102, 1195553),
        (120, 1590131),
        (160, 2745453),
        (200, 4231015),
        (300, 9214218),
        (500, 24959524),
        (600, 35673024),
        (721, 51092972),
        (800, 63035228),
    ),
    "gemnet": (
        (32, 312992),
        (48, 575472),
        (64, 937280),
        (80, 1398416),
        (96, 1958880),
        (112, 2618672),
        (128, 3377792),
        (144, 4236240),
        (160, 5194016),
        (176, 6251120),
        (192, 7407552),
        (204, 8340060),
    ),
    "esen": (
        (4, 441778),
        (8, 878434),
        (10, 1100746),
        (12, 1325714),
        (16, 1783618),
        (20, 2252146),
        (32, 3721474),
    ),
}

# Table 7: parameter -> (value, low, high), 95 % per-point bootstrap
TABLE7 = {
    "mpnn": {
        "log10A": (1.356, 1.307, 1.371),
        "log10B": (2.194, 2.147, 2.608),
        "alpha": (0.276, 0.266, 0.278),
        "beta": (0.311, 0.301, 0.368),
    },
    "egnn": {
        "log10A": (1.582, 1.494, 1.692),
        "log10B": (2.75, 2.66, 2.863),
        "alpha": (0.387, 0.37, 0.408),
        "beta": (0.394, 0.382, 0.401),
    },
    "gemnet": {
        "log10A": (2.109, 1.901, 2.422),
        "log10B": (3.261, 2.842, 3.607),
        "alpha": (0.524, 0.484, 0.584),
        "beta": (0.499, 0.444, 0.544),
    },
    "esen": {
        "log10A": (3.76, 3.119, 4.333),
        "log10B": (5.129, 4.348, 6.224),
        "alpha": (0.817, 0.706, 0.918),
        "beta": (0.753, 0.662, 0.888),
    },
}

# Table 1: F_c (C in PFLOP) and gamma_c by the frontier (eq. 4) and by the sum-power-law (eq. 7)
TABLE1 = {
    "mpnn": {
        "frontier": {
            "F": (0.928, 0.925, 0.93),
            "gamma": (0.142, 0.141, 0.143),
        },
        "sum": {
            "F": (0.934, 0.863, 0.952),
            "gamma": (0.146, 0.142, 0.159),
        },
    },
    "egnn": {
        "frontier": {
            "F": (0.775, 0.761, 0.792),
            "gamma": (0.173, 0.169, 0.178),
        },
        "sum": {
            "F": (0.811, 0.784, 0.832),
            "gamma": (0.195, 0.188, 0.204),
        },
    },
    "gemnet": {
        "frontier": {
            "F": (0.488, 0.485, 0.491),
            "gamma": (0.255, 0.252, 0.257),
        },
        "sum": {
            "F": (0.479, 0.424, 0.542),
            "gamma": (0.256, 0.232, 0.282),
        },
    },
    "esen": {
        "frontier": {
            "F": (0.703, 0.696, 0.712),
            "gamma": (0.403, 0.401, 0.406),
        },
        "sum": {
            "F": (0.669, 0.575, 0.729),
            "gamma": (0.392, 0.342, 0.451),
        },
    },
}

# Forward FLOPs per parameter per atom. The paper prints only MPNN's (about 2); these are what Table 1's F_c and
# Table 7 imply together through eq. (7).
KAPPA = {"mpnn": 1.99, "egnn": 28.0, "gemnet": 34.3, "esen": 78.8}


def table7_law(arch: str) -> dict[str, float]:
    """Table 7's point estimates as natural parameters A, alpha, B, beta, E."""
    row = {name: value[0] for name, value in TABLE7[arch].items()}
    return {
        "A": 10 ** row["log10A"],
        "alpha": row["alpha"],
        "B": 10 ** row["log10B"],
        "beta": row["beta"],
        "E": 0.0,
    }
