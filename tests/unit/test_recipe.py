"""The recipe: what it understands, what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tuner.errors import UserError
from tuner.home import package_recipes
from tuner.recipe import Recipe, dump, load, parse

PLAIN = {"family": "flux1", "source": "somewhere", "data": [{"path": "pictures"}]}


def written(folder: Path, name: str = "recipe.yaml", **settings) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump(settings))
    return path


def test_what_is_dumped_loads_as_the_same(tmp_path: Path) -> None:
    recipe = parse({**PLAIN, "validate": {"prompts": ["ü"]}, "train": {"timesteps": {"kind": "beta"}}})
    assert parse(yaml.safe_load(dump(recipe))) == recipe


def test_overrides_are_yaml_in_dotted_places(tmp_path: Path) -> None:
    path = written(tmp_path, **PLAIN)
    recipe = load(path, ["train.steps=50", "train.lr=1e-4", "adapter.rank=8", "data.0.caption=a cat", "data.1.path=x",
                         "validate.prompts=[a, b]", "extensions.0.kind=ema", "extensions.0.decay=0.9"])  # fmt: skip
    assert (recipe.train.steps, recipe.train.lr, recipe.adapter.rank) == (50, 1e-4, 8)
    assert [d.caption for d in recipe.data] == ["a cat", None]
    assert recipe.validation is not None and recipe.validation.prompts == ["a", "b"]
    assert recipe.extensions[0].settings() == {"decay": 0.9}


def test_paths_of_a_file_are_relative_to_it_and_those_of_overrides_to_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deep").mkdir()
    path = written(
        tmp_path / "deep", **{**PLAIN, "source": "./base", "data": [{"path": "pictures", "mask": "../masks"}]}
    )
    monkeypatch.chdir(tmp_path)
    recipe = load(path)
    assert recipe.source == str(tmp_path / "deep" / "base")
    assert (recipe.data[0].path, recipe.data[0].mask) == (str(tmp_path / "deep" / "pictures"), str(tmp_path / "masks"))
    assert load(path, ["data.0.path=mine"]).data[0].path == str(tmp_path / "mine")
    assert load(path, ["source=owner/name"]).source == "owner/name"


def test_extends_merges_groups_and_replaces_lists_and_kinds(tmp_path: Path) -> None:
    written(tmp_path, "base.yaml", **PLAIN, train={"steps": 7, "lr": 0.5}, adapter={"kind": "lora", "rank": 3})
    child = load(
        written(tmp_path, extends="base.yaml", train={"lr": 0.25}, data=[{"path": "other"}], adapter={"kind": "full"})
    )
    assert (child.train.steps, child.train.lr, child.adapter.kind) == (7, 0.25, "full")
    assert [Path(d.path).name for d in child.data] == ["other"]
    written(tmp_path, "grandchild.yaml", extends="recipe.yaml")
    with pytest.raises(UserError, match="may not itself use extends"):
        load(tmp_path / "grandchild.yaml")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"train": {"lrr": 1}}, "train.lrr is not a setting; did you mean train.lr?"),
        ({"data": [{"path": "a", "capton": "b"}]}, "data.0.capton is not a setting; did you mean data.0.caption?"),
        ({"train": {"steps": "many"}}, "train.steps is 'many', but it should be a valid integer"),
        ({"train": {"steps": 0}}, "train.steps is 0, but it should be greater than or equal to 1"),
        ({"adapter": {"rank": 0}}, "adapter.rank is 0"),
        ({"adapter": {"kind": "lora", "alpha": 0}}, "adapter.alpha is 0"),
        ({"adapter": {"kind": "dora"}}, "adapter.kind must be one of 'lora'"),
        ({"train": {"timesteps": {"kind": "gauss"}}}, "train.timesteps.kind must be one of 'logit_normal'"),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer is 'sgd', but it should be 'adamw', 'adamw8bit'"),
        ({"data": []}, "data is [], but"),
        ({"data": None}, "data is None, but"),
        ({"version": 2}, "version is 2, but it should be 1"),
        ({"name": "../up"}, "name is '../up', but it should have only letters"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_dotted_key(change: dict, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse({**PLAIN, **change}, "my.yaml")
    assert f"my.yaml: {sentence}" in str(caught.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(UserError) as caught:
        parse({"family": "flux1"}, "my.yaml")
    assert str(caught.value).splitlines() == [
        "my.yaml: source is missing; add it to the recipe.",
        "my.yaml: data is missing; add it to the recipe, or say data.0.path=FOLDER behind the command.",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [", "is not valid YAML in line"),
        ("just words", "must hold settings"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "r.yaml")
    with pytest.raises(UserError, match="does not exist; check the path"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.steps", "write it as key=value"),
        ("train.steps.x=1", "single value"),
        ("data.7.path=x", "not a place in that list"),
    ],
)
def test_overrides_that_make_no_sense(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(written(tmp_path, **PLAIN, train={"steps": 7}), [override])


@pytest.mark.parametrize("path", sorted(package_recipes().glob("*/*.yaml")), ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_shipped_recipe_resolves(path: Path) -> None:
    recipe = load(path, ["data.0.path=pictures"])
    assert isinstance(recipe, Recipe)
    if not path.name.startswith("_"):
        assert recipe.description, "a newcomer must read what it is for"


def test_every_setting_says_what_it_does() -> None:
    """A field without a description or a level would be an unlabelled box in the app."""
    schema = Recipe.model_json_schema(by_alias=True)
    groups = {"Recipe": schema, **schema["$defs"]}
    for name, group in groups.items():
        for key, field in group.get("properties", {}).items():
            if (
                key in ("kind", "version", "adapter", "media", "train", "memory", "save", "validate")
                or name == "ExtensionSpec"
            ):
                continue
            assert field.get("description"), f"{name}.{key}"
            assert field.get("level") in ("basic", "advanced", "expert"), f"{name}.{key}"
