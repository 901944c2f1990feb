"""Kernel ridge regression, with the error of each example when it is left out of the fit.

Axis letters: n example, s number of its summary, q quantity, m new example, r ridge.

Source: T. Hastie, R. Tibshirani and J. Friedman, The Elements of Statistical Learning, 2nd ed.
(2009), sections 5.8 (kernels) and 7.10 (left-out errors in closed form).
"""

from dataclasses import dataclass

import numpy as np
from scipy import linalg

WIDTHS = (1.0, 2.0, 4.0)  # of the kernel, in scatters of one summary
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
CLIP = 4.0  # scatters; larger values are set to this


@dataclass(frozen=True)
class Regression:
    """A fit of several quantities, each with a width and a ridge.

    Attributes:
        known_ns: standardised summaries of the examples.
        middle_q: mean of each quantity.
        weight_nq: weight of each example.
        width_q: of each quantity's kernel.
        error_nq: quantity minus its prediction by the fit without this example.
        fitted_nq: prediction by the fit without this example.
        explained_q: share of each quantity's variance that the left-out fit explains, 0 to 1.
    """

    known_ns: np.ndarray
    middle_q: np.ndarray
    weight_nq: np.ndarray
    width_q: np.ndarray
    error_nq: np.ndarray
    fitted_nq: np.ndarray
    explained_q: np.ndarray

    def predict(self, new_ms: np.ndarray) -> np.ndarray:
        """Return the quantities of new examples, (m, q)."""
        square_mn = square_distances(new_ms, self.known_ns)
        columns = [
            np.exp(-square_mn / (2 * width**2)) @ self.weight_nq[:, q]
            for q, width in enumerate(self.width_q)
        ]
        return np.asarray(self.middle_q + np.stack(columns, axis=1))


class Kernels:
    """Examples with their decomposed kernels, which serve fits of any number of quantities.

    Args:
        known_ns: standardised summaries of the examples.
    """

    def __init__(self, known_ns: np.ndarray) -> None:
        self.known_ns = known_ns
        square_nn = square_distances(known_ns, known_ns)
        self._turned = [
            linalg.eigh(np.exp(-square_nn / (2 * width**2)), driver="evd") for width in WIDTHS
        ]

    def fit(self, value_nq: np.ndarray) -> Regression:
        """Return the fit with the least left-out error, chosen separately for each quantity.

        Args:
            value_nq: quantities of the examples.
        """
        middle_q = value_nq.mean(axis=0)
        centred_nq = value_nq - middle_q
        best_q = np.full(len(middle_q), np.inf)
        weight_nq, error_nq = np.zeros_like(centred_nq), centred_nq.copy()
        width_q = np.ones_like(middle_q)
        for width, (value_n, vector_nn) in zip(WIDTHS, self._turned, strict=True):
            turned_nq = vector_nn.T @ centred_nq
            inverse_rn = 1 / (value_n.clip(0) + np.array(RIDGES)[:, None])
            diagonal_rn = inverse_rn @ (vector_nn**2).T
            for inverse_n, diagonal_n in zip(inverse_rn, diagonal_rn, strict=True):
                solved_nq = vector_nn @ (inverse_n[:, None] * turned_nq)
                left_out_nq = solved_nq / diagonal_n[:, None]
                mean_q = np.mean(left_out_nq**2, axis=0)
                better_q = mean_q < best_q
                best_q[better_q], width_q[better_q] = mean_q[better_q], width
                weight_nq[:, better_q] = solved_nq[:, better_q]
                error_nq[:, better_q] = left_out_nq[:, better_q]
        explained_q = np.clip(1 - best_q / np.maximum(centred_nq.var(axis=0), 1e-12), 0, 1)
        fitted_nq = value_nq - error_nq
        return Regression(
            self.known_ns, middle_q, weight_nq, width_q, error_nq, fitted_nq, explained_q
        )


def fit(known_ns: np.ndarray, value_nq: np.ndarray) -> Regression:
    """Return the best fit of quantities to examples; see `Kernels.fit`."""
    return Kernels(known_ns).fit(value_nq)


class Scatter:
    """Units for rows: the scatter of the known examples about their median.

    Args:
        known_ns: summaries of the examples; a summary that no example has is left out.
    """

    def __init__(self, known_ns: np.ndarray) -> None:
        self._known_s = np.isfinite(known_ns).any(axis=0)
        good_ns = known_ns[:, self._known_s]
        self._middle_s = np.nanmedian(good_ns, axis=0)
        scatter_s = 1.4826 * np.nanmedian(np.abs(good_ns - self._middle_s), axis=0)
        self._scatter_s = np.where(scatter_s > 1e-6, scatter_s, 1.0)

    def measured(self, row_ms: np.ndarray) -> np.ndarray:
        """Return rows in these units, between -4 and 4; NaN becomes 0."""
        away_ms = (row_ms[:, self._known_s] - self._middle_s) / self._scatter_s
        return np.asarray(np.nan_to_num(np.clip(away_ms, -CLIP, CLIP)))


def standardised(seen_ms: np.ndarray, known_ns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in units of the scatter of the known examples about their median; NaN as 0."""
    scatter = Scatter(known_ns)
    return scatter.measured(seen_ms), scatter.measured(known_ns)


def square_distances(one_ms: np.ndarray, two_ns: np.ndarray) -> np.ndarray:
    """Return the mean squared difference over the summaries of each pair, (m, n)."""
    cross_mn = one_ms @ two_ns.T
    lengths = (one_ms**2).sum(axis=1)[:, None] + (two_ns**2).sum(axis=1)
    return np.asarray((lengths - 2 * cross_mn).clip(0) / one_ms.shape[1])
