"""What is doubtful about a condition is said, with its number."""

import re

import pytest

from manybeam.data.io.measured import dose_e_per_a2
from manybeam.data.simulation.physics import warnings_for, wavelength_pm
from manybeam.data.simulation.typical import filled, typical
from manybeam.errors import InvalidInput
from manybeam.settings import settings
from manybeam.spec import Condition, Library, Policy

GOOD = {
    "id": "good",
    "sample": {"structure": "graphene"},
    "optics": {"beam_kv": 60, "convergence_mrad": 30, "defocus_nm": 3, "beam_current_pa": 60},
    "detector": {"detector_inner_mrad": 70, "detector_outer_mrad": 200},
    "scan": {"pixel_size_pm": 16, "dwell_us": 16},
    "dose_e_per_a2": 2.34e5,
}


def told(**changes):
    """Return the warnings for the good condition with some groups changed."""
    groups = {
        name: GOOD.get(name, {}) | new if isinstance(new, dict) else new
        for name, new in changes.items()
    }
    return warnings_for(Condition.model_validate(GOOD | groups))


def test_a_usual_condition_and_one_that_says_nothing_are_not_doubted():
    assert told() == []
    assert warnings_for(Condition(id="empty")) == []


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        pytest.param(
            {"detector": {"detector_inner_mrad": 25}},
            "convergence_mrad 30 reaches beyond detector_inner_mrad 25",
            id="convergence beyond the detector",
        ),
        pytest.param(
            {"scan": {"pixel_size_pm": 50}, "dose_e_per_a2": 2.4e4},
            r"Nyquist limit of 40\.5 pm",
            id="pixel above Nyquist",
        ),
        pytest.param(
            {"dose_e_per_a2": 1e6}, r"1e\+06 contradicts .* which make 2\.34e\+05", id="dose"
        ),
        pytest.param({"optics": {"beam_kv": 120}}, "beam_kv 120 is above 86 kV", id="knock-on"),
        pytest.param({"optics": {"defocus_nm": -40}}, r"defocus_nm -40 is 7\.4 depths", id="focus"),
        pytest.param(
            {"sample": {"thickness_nm": 5}},
            "sample.thickness_nm 5 has no effect: graphene does not use it",
            id="a quantity of another structure",
        ),
        pytest.param(
            {"sample": {"zone_axis": [1, 1, 0]}}, r"zone_axis \(1, 1, 0\)", id="another direction"
        ),
        pytest.param({"optics": {"cs_um": 1200}}, "cs_um 1200 is 12.5 wavelengths", id="Cs"),
        pytest.param(
            {"optics": {"astigmatism_nm": -0.0}, "scan": {"drift_pm_per_row": -9}},
            "drift_pm_per_row -9 is 0.56 pixels of 16 pm a row",
            id="drift",
        ),
        pytest.param({"optics": {"coma_nm": 900}}, "coma_nm 900", id="coma"),
        pytest.param({"optics": {"astigmatism_nm": 30}}, "astigmatism_nm 30", id="astigmatism"),
        pytest.param(
            {"optics": {"convergence_mrad": 10}}, "a probe of 297 pm", id="a closed aperture"
        ),
        pytest.param(
            {"dose_e_per_a2": 20, "optics": {"beam_current_pa": None}},
            r"sends 0\.51 electrons",
            id="few electrons",
        ),
    ],
)
def test_a_doubtful_condition_is_told_with_its_number(changes, number):
    found = told(**changes)
    assert len(found) == 1
    assert re.search(number, found[0]), found[0]


@pytest.mark.parametrize(
    ("size", "is_doubted"), [(40.0, False), (41.0, True), ([10, 40], False), ([10, 41], True)]
)
def test_of_a_range_the_worse_end_counts(size, is_doubted):
    optics = {"beam_kv": 60, "convergence_mrad": 30}
    policy = Policy.model_validate({"id": "a", "optics": optics, "scan": {"pixel_size_pm": size}})
    assert bool(warnings_for(policy)) == is_doubted


def test_a_range_of_doses_that_holds_the_derived_one_is_not_doubted():
    assert warnings_for(Policy.model_validate(GOOD | {"dose_e_per_a2": [1e5, 1e6]})) == []


@pytest.mark.parametrize(("kv", "pm"), [(60, 4.866), (80, 4.176), (200, 2.508), (300, 1.969)])
def test_the_wavelength_is_that_of_the_tables(kv, pm):
    assert wavelength_pm(kv) == pytest.approx(pm, abs=1e-3)


def test_the_dose_is_current_times_time_over_charge_and_area():
    assert dose_e_per_a2(60, 16, 7.8) == pytest.approx(9.85e5, rel=1e-3)
    assert dose_e_per_a2(60, 16, 15.6) == pytest.approx(dose_e_per_a2(60, 16, 7.8) / 4)


def test_no_graphene_condition_of_the_zoo_is_doubted():
    library = Library(settings().zoo)
    names = [name for name in library.conditions if name.startswith("graphene")]
    assert names
    assert not [name for name in names if warnings_for(filled(library.condition(name)))]


def test_what_is_left_open_is_doubted_as_it_is_simulated():
    sample, scan = {"structure": "graphene"}, {"pixel_size_pm": 60}
    written = Condition.model_validate({"id": "a", "sample": sample, "scan": scan})
    assert warnings_for(written) == []
    assert "Nyquist limit of 40.5 pm" in warnings_for(filled(written))[0]


def test_what_is_stated_is_kept_and_a_measured_sample_has_nothing_typical():
    good = Condition.model_validate(GOOD)
    assert dict(filled(good).quantities()).items() >= {
        (path, value) for path, value in good.quantities() if value is not None
    }
    assert filled(Condition(id="empty")) == Condition(id="empty")


@pytest.mark.parametrize(
    "detector",
    [
        pytest.param({"detector_inner_mrad": 250}, id="the outer angle is typical"),
        pytest.param({"detector_outer_mrad": 60}, id="the inner angle is typical"),
        pytest.param({"detector_inner_mrad": [50, 400], "detector_outer_mrad": 200}, id="range"),
    ],
)
def test_a_detector_without_a_ring_is_not_simulated(detector):
    policy = Policy.model_validate(GOOD | {"detector": detector})
    with pytest.raises(InvalidInput, match="is not below detector_outer_mrad"):
        typical(policy)


def test_every_policy_and_condition_of_the_zoo_has_a_detector_ring():
    library = Library(settings().zoo)
    every = [*library.policies.values(), *library.conditions.values()]
    known = [one for one in every if one.sample.structure != "unknown"]
    assert len(known) > 40
    assert all(typical(one) for one in known)
