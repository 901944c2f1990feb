"""How ensembles and their answers look in a notebook."""

from collections import Counter

import numpy as np

from manybeam.data.markup import facts_html, picture_html, table_html
from manybeam.learn.nets.ensemble import Ensemble
from manybeam.learn.nets.prediction import Prediction
from manybeam.spec.elements import symbols_of

MOST_MEMBERS = 40


def ensemble_html(ensemble: Ensemble) -> str:
    """Return an ensemble as a table of its members, at most forty of them."""
    facts = [("members", ensemble.member_count), ("computes on", ensemble.device)]
    rows = [
        (f"{one.index:02d}", str(one.seed), one.policy, f"{one.recipe.id}@{one.recipe.version}")
        for one in ensemble.members[:MOST_MEMBERS]
    ]
    more = ensemble.member_count - len(rows)
    rows += [(f"{more} more", "", "", "")] if more else []
    table = table_html(("member", "seed", "policy", "recipe"), rows)
    return facts_html("Ensemble", facts, table)


def prediction_html(prediction: Prediction) -> str:
    """Return a prediction as HTML: number of atoms, their spread, and both maps."""
    atoms, size_pm = prediction.atoms, prediction.pixel_size_pm
    facts: list[tuple[str, object]] = [
        ("atoms", _counted(prediction)),
        ("members", ", ".join(f"{member:02d}" for member in prediction.members)),
        ("pixel size", f"{size_pm:g} pm" if size_pm else "unknown"),
        ("position spread, median", _spread(atoms, size_pm)),
    ]
    pictures = picture_html(prediction.mean_yx, "mean probability", "viridis")
    if len(prediction.members) > 1:
        pictures += picture_html(prediction.std_yx, "spread between members", "magma")
    return facts_html("Prediction", facts, pictures)


def _counted(prediction: Prediction) -> str:
    """Return the number of atoms, and of those of each element."""
    counts = Counter(symbols_of(prediction.atoms[:, 2], prediction.elements))
    kinds = ", ".join(f"{count} {name}" for name, count in counts.most_common() if name)
    return f"{len(prediction.atoms)}" + (f" ({kinds})" if kinds else "")


def _spread(atoms: np.ndarray, pixel_size_pm: float | None) -> str:
    """Return the median position spread of atoms, in pm if the pixel size is known."""
    spread_n = np.hypot(atoms[:, 4], atoms[:, 5])
    known_n = spread_n[np.isfinite(spread_n)]
    if not len(known_n):
        return "unknown: no atom was found by two members"
    median_px = float(np.median(known_n))
    return f"{median_px * pixel_size_pm:.1f} pm" if pixel_size_pm else f"{median_px:.2f} px"
