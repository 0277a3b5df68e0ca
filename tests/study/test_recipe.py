"""A recipe is checked as a whole before anything runs, and says in one line what is wrong."""

from pathlib import Path

import pytest

from quietstar.cli.train import train_parser
from quietstar.errors import SettingsError
from quietstar.study.arms import BASE, CANDIDATE, NO_CONTENT, NOT_REINFORCED, OTHER, READY, SAME_COMPUTE
from quietstar.study.recipe import read_recipe
from tests.study.tiny_study import recipe_file, tiny_recipe

ROOT = Path(__file__).parents[2]


def test_the_base_is_always_the_first_arm(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    assert list(recipe.arms) == [BASE, "base-sharpened", "finetune-compute", "filler", "quietstar"]
    assert recipe.candidates == ["quietstar"]


def test_an_arm_may_be_like_another(tmp_path: Path) -> None:
    mine = {"like": "quietstar", "about": "more thoughts", "n_passes": 4}
    recipe = tiny_recipe(tmp_path, arms={"quietstar": None, "mine": mine, "none": {"like": "filler", "n_passes": 1}})
    assert recipe.candidates == ["quietstar", "mine"]
    assert recipe.arms["mine"].about == "more thoughts"
    assert recipe.train_options(recipe.arms["mine"])["n_passes"] == 4
    assert recipe.train_options(recipe.arms["none"])["thought_source"] == "filler"


def test_options_of_thinking_are_not_those_of_plain_arms(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path)
    assert "n_ahead" in recipe.train_options(recipe.arms["filler"])
    assert "n_ahead" not in recipe.train_options(recipe.arms["finetune-compute"])


def test_command_lines_override_the_file(tmp_path: Path) -> None:
    found = read_recipe(str(recipe_file(tmp_path)), train_parser(), {"test": "other.txt", "model": None})
    assert (found.test, found.model) == ("other.txt", str(tmp_path / "base"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sedes": [1]}, "unknown key 'sedes'; did you mean seeds"),
        ({"model": None}, "has model None; give a text"),
        ({"test": 3}, "has test 3; give a text"),
        ({"test_rows": 1}, "test_rows is 1; give a whole number of at least 2"),
        ({"evaluations": 0}, "evaluations is 0; give a whole number of at least 1"),
        ({"batch_size": True}, "batch_size is True"),
        ({"seeds": []}, r"seeds \[\]; give a list of whole numbers"),
        ({"seeds": [1, 1]}, "a seed twice"),
        ({"seeds": ["a"]}, "give a list of whole numbers"),
        ({"seeds": 3}, "give a list of whole numbers"),
        ({"options": [1]}, "give lines such as"),
        ({"options": {"learning_rat": 1}}, "unknown option 'learning_rat'; did you mean learning_rate"),
        ({"options": {"output_dir": "x"}}, "sets output_dir in options, which a study sets itself"),
        ({"thinking": {"seed": 3}}, "sets seed in thinking, which a study sets itself"),
        ({"thinking": {"trust_remote_code": True}}, "runs code from elsewhere"),
        ({"arms": []}, "has no arms; list some"),
        ({"arms": "quietstar"}, "has no arms; list some"),
        ({"arms": ["finetune"]}, "no arm that thinks"),
        ({"arms": ["quietstr"]}, "arm quietstr, which is none that comes ready.*one of base, base-sharpened"),
        ({"arms": {"mine": {"like": "nobody"}}}, "like 'nobody'; give like: one of base"),
        ({"arms": {"quietstar": 3}}, "arm quietstar 3; give lines"),
        ({"arms": {"quietstar": {"n_pases": 3}}}, "unknown option 'n_pases'; did you mean n_passes"),
        ({"arms": {"base-sharpened": {"n_ahead": 3}, "quietstar": None}}, "options, but it does not train"),
        ({"arms": {"../x": {"like": "quietstar"}}}, "name it with letters"),
        (
            {"arms": {"filler": {"like": "finetune"}, "quietstar": None}},
            "filler like 'finetune', but filler comes",
        ),
        ({"arms": {"base": {"like": "finetune"}, "quietstar": None}}, "base like 'finetune', but base comes ready"),
        ({"arms": {"mine": {"like": ["x"]}}}, r"like \['x'\]; give like: one of base"),
        (
            {"arms": {"quietstar": {"max_steps": 9}}},
            "sets max_steps in arm quietstar, and arms that differ",
        ),
        ({"thinking": {"max_length": 12}}, "sets max_length in thinking, and arms that differ in it do not compare"),
        ({"options": {"eval_delay": 5}}, "sets eval_delay in options, which a study sets itself"),
        ({"task_items": 1}, "task_items is 1; give a whole number of at least 2"),
        ({"tasks": {"nothing": None}}, "unknown task 'nothing'; choose from"),
        ({"tasks": {"gsm8k": "none.jsonl"}}, "task file none.jsonl, which does not exist"),
        ({"selection": "same", "test": "same"}, "give three texts that share nothing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changed: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=message) as refusal:
        tiny_recipe(tmp_path, **changed)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\0"])
def test_a_file_that_is_no_recipe_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=r"recipe .*recipe\.yaml"):
        read_recipe(str(file), train_parser())
    with pytest.raises(SettingsError, match="cannot be read: No such file"):
        read_recipe(str(tmp_path / "none.yaml"), train_parser())


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "study").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_recipes_of_this_repository_are_recipes(file: Path) -> None:
    recipe = read_recipe(str(file), train_parser())
    assert recipe.candidates
    assert f"quietstar study {file.relative_to(ROOT)}" in file.read_text(), "it says how it is run"


def test_arms_that_come_ready_are_what_they_say() -> None:
    roles = {name: arm.role(arm.options) for name, arm in READY.items()}
    assert roles == {
        "base": OTHER,
        "base-sharpened": OTHER,
        "finetune": OTHER,
        "finetune-compute": SAME_COMPUTE,
        "filler": NO_CONTENT,
        "random": NO_CONTENT,
        "no-policy": NOT_REINFORCED,
        "quietstar": CANDIDATE,
        "rlp": CANDIDATE,
    }


@pytest.mark.parametrize(
    ("thinking", "role"),
    [
        ({}, CANDIDATE),
        ({"thought_source": "copy"}, NO_CONTENT),
        ({"policy_weight": 0}, NOT_REINFORCED),
        ({"policy_weight": "balanced:0"}, NOT_REINFORCED),
        ({"policy_weight": "0.0"}, NOT_REINFORCED),
        ({"policy_weight": "balanced:0.1"}, CANDIDATE),
    ],
)
def test_an_arm_is_what_all_of_its_options_make_it(thinking: dict, role: str, tmp_path: Path) -> None:
    """Also those that all thinking arms have: dots by another name help nobody."""
    assert tiny_recipe(tmp_path, thinking=thinking).role("quietstar") == role
