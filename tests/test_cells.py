"""Cell names and specs: one name a spec, one spec a name."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from symscale import cells
from symscale import config as configs
from symscale.cells import CellSpec
from symscale.errors import UserError

ROOT = Path(__file__).parents[1]
PAPER = configs.load(ROOT / "config/paper.yaml")
DEFAULT = configs.load(ROOT / "config.yaml")


def varied(arch):
    """Strategy of the fields that a name of this architecture may carry."""
    fields = {
        "width": st.integers(1, 5000),
        "depth": st.integers(1, 40),
        "data_fraction": st.integers(1, 1000).map(lambda n: n / 1000),
        "epochs": st.integers(1, 300),
        "batch_size": st.integers(1, 1024),
        "lr": st.sampled_from([1e-4, 5e-4, 1e-3, 2e-3, 3.3e-5]),
        "symmetry_samples": st.integers(0, 9),
        "augment": st.booleans(),
        "equivariant_by": st.sampled_from(cells.MODES["equivariant_by"]),
        "conservative": st.booleans(),
        "seed": st.integers(0, 99),
    }
    if arch == "esen":
        fields |= {
            "lmax": st.integers(2, 6),
            "mmax": st.integers(0, 2),
            "hidden_channels": st.integers(1, 64),
        }
    if arch == "mpnn":
        fields["absolute"] = st.booleans()
    return st.fixed_dictionaries(fields)


@given(st.data(), st.sampled_from(["mpnn", "esen", "egnn", "gemnet"]))
@settings(max_examples=300, deadline=None)
def test_name_and_spec_determine_each_other(data, arch):
    """Two specs never share a name, and a name gives back its spec."""
    spec = dataclasses.replace(cells.defaults(PAPER, arch), **data.draw(varied(arch)))
    named = dataclasses.replace(spec, name=cells.cell_name(PAPER, spec))
    assert cells.parse_name(PAPER, named.name) == named


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("esen_c16", "lmax", 4),
        ("esen_c16_l2", "lmax", 2),
        ("mpnn_w128_sym", "symmetry_samples", 5),
        ("mpnn_w128_d1_e100_aug", "data_fraction", 0.01),
        ("mpnn_w128_d1_e100_aug", "augment", True),
        ("esen_c16_d10", "data_fraction", 0.1),
        ("esen_c16_s1", "seed", 1),
        ("egnn_w32", "batch_size", 128),
        ("gemnet_w64", "cutoff", 10.0),
        ("esen_c17", "width", 17),
        ("esen_c16_cons", "conservative", True),
        ("mpnn_w128_by-frames", "equivariant_by", "frames"),
        ("mpnn_w128_by-canonical_cons_aug_s1", "equivariant_by", "canonical"),
    ],
)
def test_names_mean_what_the_grammar_says(name, field, value):
    """Suffixes set their field; everything else is the architecture's default."""
    assert getattr(cells.parse_name(PAPER, name), field) == value


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("painn_w64", "mpnn, egnn, gemnet, esen"),
        ("mpnn_c64", "mpnn_w<width>"),
        ("mpnn_w0", "at least 1"),
        ("mpnn_w064", "not a cell name"),
        ("mpnn", "not a cell name"),
        ("mpnn_w64_l2", "says nothing about mpnn"),
        ("mpnn_w64_depth5", "written 'mpnn_w64'"),
        ("mpnn_w64_s1_aug", "written 'mpnn_w64_aug_s1'"),
        ("mpnn_w64_s1_s2", "says nothing"),
        ("mpnn_w64_d0", "data_fraction"),
        ("mpnn_w64_d101", "data_fraction"),
        ("esen_c4_l1", "mmax"),
        ("esen_c16_l7", "lmax"),
        ("mpnn_w64_lr0", "lr"),
        ("mpnn_w64_lr1e999", "lr"),
        ("mpnn_w64_on-nowhere", "omol25"),
        ("mpnn_w64_by-chance", "equivariant_by = chance, but it must be one of none, frames, canonical"),
        ("mpnn_w64_by-none", "written 'mpnn_w64'"),
        ("mpnn_w64_cons_by-frames", "written 'mpnn_w64_by-frames_cons'"),
        ("../etc", "not a cell name"),
    ],
)
def test_wrong_names_say_in_one_line_what_is_allowed(name, says):
    """A malformed or impossible name is refused with what would be right."""
    with pytest.raises(UserError) as refused:
        cells.parse_name(PAPER, name)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_paper_config_expands_to_the_published_ladders():
    """48 cells: 15 MPNN, 14 EGNN, 12 GemNet-OC, 7 eSEN (Tables 3-6)."""
    names = list(cells.study_cells(PAPER, "main"))
    counts = {arch: sum(n.startswith(arch + "_") for n in names) for arch in PAPER["architectures"]}
    assert counts == {"mpnn": 15, "egnn": 14, "gemnet": 12, "esen": 7, "transformer": 0}


@pytest.mark.parametrize("name", ["paper", "studies"])
def test_shipped_studies_train_equal_specs_once(name):
    """Studies share plain cells: the union is smaller than what they ask for, and no two of its specs are equal."""
    config = configs.load(ROOT / f"config/{name}.yaml")
    asked = [n for study in config["studies"] for n in cells.study_cells(config, study)]
    union = cells.expand(config)
    assert set(asked) == set(union) and len(asked) > len(union) + 50
    bodies = {dataclasses.replace(spec, name="") for spec in union.values()}
    assert len(bodies) == len(union)
    for shared in ("mpnn_w64", "egnn_w32") if name == "studies" else ("mpnn_w256", "esen_c8"):
        assert asked.count(shared) > 2


def test_equal_specs_of_two_studies_are_one_cell():
    """The union of the studies trains a spec once, whoever asks for it."""
    config = DEFAULT | {
        "studies": {
            "main": {"arch": ["esen"], "widths": [4, 8]},
            "order": {"arch": ["esen"], "widths": [4], "sweep": {"lmax": [2, 3]}},
            "named": {"cells": ["esen_c8", "esen_c4_l3"]},
        }
    }
    assert list(cells.expand(config)) == ["esen_c4", "esen_c8", "esen_c4_l3"]


def test_a_field_without_a_token_cannot_vary_between_cells():
    """Otherwise two specs would share a name."""
    config = DEFAULT | {"studies": {"x": {"arch": ["mpnn"], "set": {"weight_decay": 0.1}}}}
    with pytest.raises(UserError, match="'weight_decay' cannot vary"):
        cells.study_cells(config, "x")


def test_spec_survives_json_and_its_hash_sees_every_field():
    """cell.json gives back the spec; any changed field changes the hash."""
    spec = cells.parse_name(PAPER, "esen_c16_l2")
    assert cells.spec_from_dict(cells.spec_dict(spec)) == spec
    changed = {"weight_decay": 0.5, "cutoff": 5.0, "compile": True, "options": (("a", 1),)}
    hashes = {cells.spec_hash(dataclasses.replace(spec, **{k: v})) for k, v in changed.items()}
    assert len(hashes | {cells.spec_hash(spec)}) == len(changed) + 1


def test_two_sweeps_never_share_a_folder():
    """Results, checkpoints and packs of config.yaml and config/paper.yaml are apart."""
    assert DEFAULT["results"] != PAPER["results"]
    assert cells.checkpoint_folder(DEFAULT, "x") != cells.checkpoint_folder(PAPER, "x")
    other = DEFAULT | {"datasets": {"xtb": DEFAULT["datasets"]["xtb"] | {"molecules": 7}}}
    assert cells.data_folder(DEFAULT, "xtb") != cells.data_folder(other, "xtb")


def test_read_cell_names_the_file_and_the_fix(tmp_path):
    """A missing or damaged cell.json is reported by path."""
    with pytest.raises(UserError, match=r"cell\.json: no such file"):
        cells.read_cell(tmp_path / "cell.json")
    (tmp_path / "cell.json").write_text('{"spec": {')
    with pytest.raises(UserError, match=r"cell\.json: not a cell description"):
        cells.read_cell(tmp_path / "cell.json")


def test_a_field_at_its_default_changes_no_hash():
    """Cells trained before a field existed keep their hash: this one is pinned, whatever is added."""
    spec = CellSpec("mpnn_w8", "mpnn", 8, 2, 8, "xtb", lr=2e-3)
    assert set(cells.spec_essence(spec)) == {"name", "arch", "width", "depth", "base_width", "dataset", "lr"}
    assert cells.spec_hash(spec) == "83dfa05c41e8654c"
    off = dataclasses.replace(spec, equivariant_by="none", conservative=False)
    assert cells.spec_hash(off) == cells.spec_hash(spec)
    assert cells.spec_from_dict(cells.spec_essence(spec)) == spec


def test_what_stands_around_a_model_is_a_study_of_two_lines():
    """A sweep and a setting, of any architecture; what is not one of the ways is refused by its path."""
    study = {"arch": ["mpnn"], "widths": [32], "sweep": {"equivariant_by": ["none", "frames", "canonical"]}}
    config = configs.check(
        DEFAULT | {"studies": {"x": study, "y": {"arch": ["esen"], "set": {"conservative": True}}}}
    )
    names = list(cells.expand(config))
    assert names[:3] == ["mpnn_w32", "mpnn_w32_by-frames", "mpnn_w32_by-canonical"]
    assert all(name.endswith("_cons") for name in names[3:]) and len(names) == 6
    study["sweep"] = {"equivariant_by": ["chance"]}
    with pytest.raises(UserError, match=r"studies\.x\.sweep\.equivariant_by\.0: 'chance' is not one of"):
        configs.check(config | {"studies": {"x": study}})


def test_conservative_forces_cannot_be_compiled():
    """torch.compile has no second derivatives: refused before any job exists."""
    config = DEFAULT | {"training": DEFAULT["training"] | {"compile": True}}
    assert cells.parse_name(config, "mpnn_w32").compile
    with pytest.raises(UserError, match="compile = True, but it must be false with conservative forces"):
        cells.parse_name(config, "mpnn_w32_cons")


def test_whole_numbers_written_as_floats_are_one_cell():
    """YAML's 32.0 is 32, in the name and in the hash."""
    config = DEFAULT | {"studies": {"x": {"arch": ["mpnn"], "widths": [32.0]}, "y": {"cells": ["mpnn_w32"]}}}
    assert list(cells.expand(config)) == ["mpnn_w32"]


@pytest.mark.parametrize(
    ("results", "folder"),
    [
        ("results", "checkpoints/x"),
        ("results/paper", "checkpoints/paper/x"),
        ("other", "other/checkpoints/x"),
        ("/scratch/me/results", "/scratch/me/results/checkpoints/x"),
        ("../o", "../o/checkpoints/x"),
    ],
)
def test_checkpoints_of_a_sweep_meet_no_other(results, folder):
    """Only results/ is taken off; anything else keeps its checkpoints inside."""
    assert cells.checkpoint_folder({"results": results}, "x") == folder
