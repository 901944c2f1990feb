"""The YAML files of a facility, as frozen pydantic models: conditions, policies, recipes, jobs.

`imaging` holds Condition (numbers) and Policy (ranges of numbers). `recipe` holds the network and
its training. `job` holds what to do with them. `files` reads all four and lists every mistake.
"""

from manybeam.spec.files import (
    Library,
    load_condition,
    load_job,
    load_policy,
    load_recipe,
)
from manybeam.spec.imaging import Condition, Imaging, Policy, Range
from manybeam.spec.job import Job
from manybeam.spec.recipe import MemberPlan, Recipe

__all__ = [
    "Condition",
    "Imaging",
    "Job",
    "Library",
    "MemberPlan",
    "Policy",
    "Range",
    "Recipe",
    "load_condition",
    "load_job",
    "load_policy",
    "load_recipe",
]
