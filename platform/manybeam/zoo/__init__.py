"""The versioned zoo: members, the ensembles made of them, and their scores, kept in MLflow.

`records` says what is kept, `matrix` holds members x conditions, `registry` is the only module
that imports mlflow (slow: import it inside the function that needs it), `select` says which
members suit a frame.
"""

from manybeam.zoo.matrix import CLASSICAL, ENSEMBLE, Matrix, Score, member_label

__all__ = ["CLASSICAL", "ENSEMBLE", "Matrix", "Score", "member_label"]
