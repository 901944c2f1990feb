"""What a facility writes in YAML: conditions, policies, recipes, jobs, as frozen pydantic models.

`imaging` holds Condition and Policy (one type: numbers, or ranges of them), `recipe` the network
and how to train it, `job` what to do with them, `files` reads all four and tells every fault.
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
