"""Recipes: the bundled ones are valid, wrong keys and values are explained, and what is resolved reads back."""

from __future__ import annotations

import re

import pytest

from unetpp.errors import ConfigError
from unetpp.model import UNet
from unetpp_workflows.prepare.dataset import load_dataset
from unetpp_workflows.recipe import Recipe, load_recipe, network, recipe_names


def test_bundled_recipes_are_valid() -> None:
    assert recipe_names() == [
        "buildings",
        "em",
        "landcover",
        "nuclei",
        "nuclei-second",
        "nuclei-third",
        "scenes",
        "smoke",
    ]
    for name in recipe_names():
        # Further rounds make the next versions of the first one's model.
        assert load_recipe(name).name == name.partition("-")[0]


def test_further_rounds_go_on_from_the_one_before_with_the_same_data() -> None:
    first, second, third = map(load_recipe, ("nuclei", "nuclei-second", "nuclei-third"))
    for later in (second, third):
        assert (later.data, later.classes, later.name) == (first.data, first.classes, first.name)
    assert (second.network.start, third.network.start) == ("runs/nuclei/full", "runs/nuclei-second/full")


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"train\.stepz.*train\.steps"):
        load_recipe("nuclei", ["train.stepz=3"])
    with pytest.raises(ConfigError, match="landcover, nuclei, nuclei-second, nuclei-third, scenes"):
        load_recipe("nucleii")


def test_what_should_be_a_section_and_is_none_is_explained() -> None:
    """... also where the section may be left out, or is one of a list."""
    for setting, message in (
        ("train.steps.more=4", "'train.steps.more': 'steps' is a value, not a section; set train.steps itself"),
        ("drawn=4", "'drawn' is a section; set a key of it, like drawn.slides"),
        ("drawn.slide=4", "unknown key 'drawn.slide'; did you mean 'drawn.slides'"),
        ("classes=['background', 'nucleus']", "'classes.0' is a section; set a key of it, like classes.0.value"),
        ("classes=[{name='a', color=[0, 0, 0]}, 2]", "'classes.1' is a section; set a key of it, like classes.1.value"),
        ("classes=[{name='a', color=[0, 0, 0]}, {name='b', colour=[0, 0, 0]}]", "classes.1.color is missing"),
        ("classes=[{name='a', color=[0, 0, 0], colour=1}]", "key 'classes.0.colour'; did you mean 'classes.0.color'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_recipe("smoke", [setting])


def test_overrides_win() -> None:
    recipe = load_recipe("nuclei", ["train.steps=7", "network.conv='dw_pw'"])
    assert (recipe.train.steps, recipe.network.conv) == (7, "dw_pw")


def test_sections_of_the_library_refuse_unknown_keys_and_bad_values() -> None:
    with pytest.raises(ConfigError, match=r"train\.augment\.gama.*train\.augment\.gamma"):
        load_recipe("nuclei", ["train.augment.gama=0.1"])
    with pytest.raises(ConfigError, match="loss term 'dise' is unknown"):
        load_recipe("nuclei", ["train.loss.terms=[['dise', 1.0]]"])
    with pytest.raises(ConfigError, match="precision = 'fp64'"):
        load_recipe("nuclei", ["train.precision='fp64'"])
    with pytest.raises(ConfigError, match=r"train.rate = nan: Input should be a finite number"):
        load_recipe("nuclei", ["train.rate=nan"])
    with pytest.raises(ConfigError, match="name"):
        load_recipe("nuclei", ["name='no spaces'"])
    # In few words: not with all that the section holds.
    with pytest.raises(ConfigError, match=r"^nuclei.toml: train: batch = 0: give at least 1$"):
        load_recipe("nuclei", ["train.batch=0"])
    with pytest.raises(ConfigError, match=r"^nuclei.toml: classes.0.color.2 is missing in \[34, 200\]$"):
        load_recipe("nuclei", ["classes=[{name='a', color=[34, 200]}, {name='b', color=[0, 0, 0]}]"])
    with pytest.raises(ConfigError, match=r"^nuclei.toml: classes.0.color is missing$"):
        load_recipe("nuclei", ["classes=[{name='a'}, {name='b', color=[0, 0, 0]}]"])


def test_a_loss_for_other_classes_is_refused_before_data_is_prepared() -> None:
    with pytest.raises(ConfigError, match=r"class_weights has 3 numbers: give 2, one for each class"):
        load_recipe("nuclei", ["train.loss.class_weights=[1, 2, 3]"])
    with pytest.raises(ConfigError, match=r"cldice_classes = \[2\]: give indices of classes, 0 to 1"):
        load_recipe("nuclei", ["train.loss.cldice_classes=[2]", "train.loss.terms=[['cldice', 1.0]]"])
    # Weights that no term takes would change nothing.
    for weights in ("class_weights=[1, 2]", "touching=4.0"):
        assert load_recipe("nuclei", [f"train.loss.{weights}", "train.loss.terms=[['dice', 1.0], ['focal', 1.0]]"])
        with pytest.raises(ConfigError, match="weigh pixels in ce and focal; add one of these terms"):
            load_recipe("nuclei", [f"train.loss.{weights}", "train.loss.terms=[['dice', 1.0]]"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("focal_gamma=1.0", "focal_gamma = 1.0: it is of the term focal; add that, or leave it out"),
        ("tversky=[0.5, 0.5]", "tversky = .*: it is of the term tversky; add that"),
        ("cldice_steps=3", "cldice_steps = 3: it is of the term cldice; add that"),
        ("cldice_classes=[1]", "cldice_classes = .*: it is of the term cldice; add that"),
        ("touching_radius=3", "touching_radius = 3: touching = 0 makes no use of it; give touching a weight"),
    ],
)
def test_options_of_a_term_that_is_not_there_are_refused(option: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"train\.loss\.{message}"):
        load_recipe("nuclei", [f"train.loss.{option}"])
    terms = "train.loss.terms=[['focal', 1.0], ['tversky', 1.0], ['cldice', 1.0]]"
    assert load_recipe("nuclei", [f"train.loss.{option}", "train.loss.touching=2.0", terms])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["network.filters=[32]"], "filters=(32,): give at least two positive widths"),
        (["network.filters=[32, 0]"], "filters=(32, 0): give at least two positive widths"),
        (["network.level=7"], "level=7: a grid of depth 4 has heads 1..4"),
        (["network.level=2", "network.kind='unet'"], "network.level = 2: a U-Net has one head, at level 4"),
        (["result.level=5"], "result.level = 5: this network has heads 1 to 4"),
        (["train.batch=1", "train.patch=16"], "patch = 16 is one pixel at the lowest level"),
        (["data.guard=127"], "data.guard = 127: the network sees 128 px around a pixel"),
        (
            ["data.shares={train=0.8, test=0.2}"],
            "data.shares has no val: training chooses the best weights by images of it",
        ),
        (["network.start=''"], "network.start = '': String should have at least 1 character"),
        (["data.instances=false", "train.loss.touching=1.0"], "touching = 1.0 needs labels that tell objects apart"),
    ],
)
def test_what_could_not_be_trained_is_refused_before_data_is_prepared(settings: list[str], message: str) -> None:
    """... by `unetpp prepare`, too, which reads the same recipe."""
    for load in (load_recipe, load_dataset):
        with pytest.raises(ConfigError, match=rf"^nuclei\.toml: .*{re.escape(message)}"):
            load("nuclei", settings)


def test_what_another_models_switches_allow_is_not_known_before_they_are() -> None:
    assert load_recipe("nuclei", ["network.start='models:/deep@champion'", "result.level=5"]).result.level == 5


def test_a_resolved_recipe_reads_back_as_itself() -> None:
    for name in recipe_names():
        recipe = load_recipe(
            name, ["train.loss.focal_gamma=3.0", "train.loss.terms=[['focal', 1.0]]", "train.augment.scale=[0.5, 1.5]"]
        )
        again = Recipe.model_validate_json(recipe.model_dump_json())
        assert again == recipe and again.train == recipe.train and again.train.loss.focal_gamma == 3.0


def test_the_network_has_the_recipes_switches() -> None:
    built = network(load_recipe("landcover", ["network.kind='unet'", "network.conv='standard'"]), bands=4)
    assert isinstance(built, UNet) and built.config.bands == 4 and built.config.classes == 5
    assert built.config.conv == "standard"
