"""The files of `zoo/`: every one loads, says what it is, and is told apart from the others."""

from pathlib import Path

import pytest

from manybeam.spec import Condition, Library, Policy, Range

FOLDER = Path(__file__).parents[1] / "zoo"
LIBRARY = Library(FOLDER)
EVERYTHING: list[Condition | Policy] = [
    *LIBRARY.conditions.values(),
    *LIBRARY.policies.values(),
]


def test_there_are_graphene_conditions_from_nominal_to_extreme() -> None:
    graphene = [one for one in LIBRARY.conditions if one.startswith("graphene-")]
    assert len(graphene) >= 12
    assert {"graphene-60kv-nominal", "graphene-60kv-extreme"} <= set(graphene)


def test_there_are_policies_for_every_structure_of_the_zoo() -> None:
    structures = [one.sample.structure for one in LIBRARY.policies.values()]
    assert structures.count("graphene") >= 8
    assert structures.count("heavy_atoms") >= 3
    assert {"mos2", "lsmo", "grain_boundary"} <= set(structures)


@pytest.mark.parametrize("kind", ["conditions", "policies", "recipes"])
def test_a_file_is_named_after_its_id(kind: str) -> None:
    names = {path.stem for path in (FOLDER / kind).glob("*.yaml")}
    assert names == set(getattr(LIBRARY, kind))


@pytest.mark.parametrize("imaging", EVERYTHING, ids=lambda one: str(one.id))
def test_a_file_says_in_a_comment_why_its_numbers_are_so(imaging: Condition | Policy) -> None:
    kind = "conditions" if isinstance(imaging, Condition) else "policies"
    text = (FOLDER / kind / f"{imaging.id}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert imaging.title


def test_no_two_conditions_hold_the_same_numbers() -> None:
    digests = {condition.digest for condition in LIBRARY.conditions.values()}
    assert len(digests) == len(LIBRARY.conditions)


def test_a_policy_draws_from_ranges() -> None:
    for policy in LIBRARY.policies.values():
        assert any(isinstance(value, Range) for _, value in policy.quantities()), policy.id


def test_a_measured_condition_holds_only_what_is_known() -> None:
    measured = LIBRARY.condition("ptnc-hpai")
    known = {path for path, value in measured.quantities() if value is not None}
    assert measured.origin == "measured"
    assert known == {"sample.atomic_number", "scan.pixel_size_pm"}


def test_the_members_of_every_recipe_train_on_policies_that_exist() -> None:
    for recipe in LIBRARY.recipes.values():
        assert {member.policy for member in recipe.members} <= set(LIBRARY.policies), recipe.id


@pytest.mark.parametrize("kind", ["conditions", "policies"])
def test_the_readme_names_every_file(kind: str) -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    missing = [name for name in getattr(LIBRARY, kind) if f"`{name}`" not in text]
    assert not missing
