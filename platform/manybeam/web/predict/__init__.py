"""The page /predict: reads a frame, asks the service, keeps the answer, draws it."""
