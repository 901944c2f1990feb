"""How the zoo is kept: MLflow, its errors, its files, and what need not be asked again."""
