"""The options of deblurring: one place for defaults, ranges and help."""
import argparse
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from vdd_model.config import ConfigError
from vdd_model.inference.ensemble import ORIENTATIONS
from vdd_model.options import FIELDS, DeblurOptions, add_flags, from_flags


@pytest.mark.parametrize("change", [
    {"steps": 0}, {"steps": 1001}, {"steps": None}, {"steps": 3, "spacing": "vgen"}, {"fidelity": 1.5}, {"eta": -1}, {"window": 0},
    {"overlap": -1}, {"tile": -1}, {"spacing": "karras"}, {"color": "lab"}, {"guidance_rescale": 2.0}, {"guidance": float("nan")},
    {"ensemble": 2, "steps": 2}, {"ensemble": 0}, {"ensemble": 9}, {"prior": "best"},
    *({"temporal_fusion": "on"} | change for change in ({"steps": 2}, {"guidance": 2.0}, {"denoise_at_one_step": True})),
    *({"guidance_interval": interval} for interval in ((0.0,), (0.9, 0.1), (2.0, 3.0), (0.0, float("nan"))))])
def test_impossible_options_are_refused(change):
    pytest.raises(ConfigError, DeblurOptions, **change).match(f"^{next(iter(change))} must be .*, not ")


def test_every_option_has_a_flag_of_its_default_and_type():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert from_flags(parser.parse_args([])) == DeblurOptions()
    given = "--tile 64 --guidance-interval 0.2 0.8 --denoise-at-one-step --spacing vgen --steps 9 --eta 1 --color none".split()
    assert from_flags(parser.parse_args(given)) == DeblurOptions(tile=64, guidance_interval=(0.2, 0.8), denoise_at_one_step=True,
                                                                 spacing="vgen", steps=9, eta=1.0, color="none")
    assert from_flags(parser.parse_args(["--prior", "none"])).prior == "none"
    assert from_flags(parser.parse_args(["--prior", "a/b.safetensors"])).prior == "maxim"
    text = parser.format_help()
    assert all(" ".join(f.metadata["option"].help.split()[:4]) in " ".join(text.split()) for f in FIELDS.values())


def test_a_parser_may_offer_a_few_and_what_it_gives_is_frozen():
    parser = argparse.ArgumentParser()
    add_flags(parser, "seed", "window")
    options = from_flags(parser.parse_args(["--seed", "3"]))
    assert options == DeblurOptions(seed=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.seed = 2


def test_widgets_lie_within_the_range_and_choices_are_those_that_there_are():
    assert FIELDS["ensemble"].metadata["option"].high == len(ORIENTATIONS)
    for name, field in FIELDS.items():
        option, default = field.metadata["option"], field.default
        if isinstance(default, (int, float)) and not isinstance(default, bool) and name != "seed":
            assert option.widget[0] <= default <= option.widget[1], name
        assert option.low is None or not option.widget[1] > 1 or option.widget[0] >= option.low, name


def test_options_bring_nothing_heavy():
    code = "import sys, vdd_model; vdd_model.DeblurOptions; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parents[2]).returncode == 0
