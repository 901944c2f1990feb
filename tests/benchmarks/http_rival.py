"""The same ensemble behind another server; `http_speed.py` starts it with the rival's own Python.

    python tests/benchmarks/http_rival.py litserve FOLDER PORT

Each rival reads the bytes of a `.npy` file in the way that is fastest with it, calls
`Ensemble.predict` and returns the atoms as JSON. It has one worker, as the service has one replica.
"""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

PIXEL_PM = 12.6
HERE = Path(__file__).parent
LITSERVE = """
import sys
from pathlib import Path

sys.path.insert(0, {here!r})
import litserve as ls
from http_rival import Answers


class Api(ls.LitAPI):
    def setup(self, device):
        self.answers = Answers(Path({folder!r}))

    def decode_request(self, request):
        return request["frame"].file.read()

    def predict(self, body):
        return self.answers(body)

    def encode_response(self, atoms):
        return dict(atoms=atoms)


if __name__ == "__main__":
    server = ls.LitServer(Api(), accelerator="cpu")
    server.run(port={port}, host="127.0.0.1", log_level="error", generate_client_file=False)
"""
BENTO = """
import sys
from pathlib import Path

sys.path.insert(0, {here!r})
import bentoml
from http_rival import Answers


@bentoml.service(workers=1, threads=2)
class Rival:
    def __init__(self) -> None:
        self.answers = Answers(Path({folder!r}))

    @bentoml.api
    def predict(self, frame: Path, /) -> dict:
        return dict(atoms=self.answers(frame.read_bytes()))
"""


class Answers:
    """The ensemble that `http_speed.py` has stored in a folder."""

    def __init__(self, folder: Path) -> None:
        from manybeam.learn.nets.ensemble import Ensemble
        from manybeam.learn.nets.inference.graphs import Graphs
        from manybeam.learn.nets.member import Member, load_weights
        from manybeam.spec.recipe import Recipe

        recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
        weights = [load_weights(path.read_bytes()) for path in sorted(folder.glob("member-*"))]
        members = [
            Member(index, index, "none", recipe, one, (), 0.0, "")
            for index, one in enumerate(weights)
        ]
        self._ensemble = Ensemble(members, graphs=Graphs(folder / "graphs"))

    def __call__(self, body: bytes) -> list[list[float]]:
        """Return the atoms of a frame."""
        frame_yx = np.load(io.BytesIO(body), allow_pickle=False)
        atoms: list[list[float]] = self._ensemble.predict(frame_yx, PIXEL_PM).atoms.tolist()
        return atoms


def fastapi(folder: Path, port: int) -> None:
    """Serve the work of the null ensemble, by the functions of the service, and nothing else."""
    import uvicorn
    from fastapi import FastAPI, Request, Response

    from manybeam.serve import wire

    app, map_yx = FastAPI(), np.zeros((256, 256), np.float16)

    @app.post("/predict/{ref}")
    async def predict(ref: str, request: Request, pixel_size_pm: float) -> Response:
        array = wire.read_body(await request.body(), dict(request.headers))
        frames = wire.read_frames(array, 64_000_000)
        meta = {"ensemble": ref, "pixel_size_pm": pixel_size_pm, "frames": len(frames.frames)}
        return Response(wire.write_npz({"mean": map_yx}, meta), media_type=wire.NPZ)

    uvicorn.run(app, port=port, log_level="critical")


def litserve(folder: Path, port: int) -> None:
    """Serve by LitServe; a file in a form."""
    script = folder / "lit.py"
    script.write_text(LITSERVE.format(here=str(HERE), folder=str(folder), port=port))
    os.execv(sys.executable, [sys.executable, str(script)])


def bentoml(folder: Path, port: int) -> None:
    """Serve by BentoML; the body is a file."""
    (folder / "bento.py").write_text(BENTO.format(here=str(HERE), folder=str(folder)))
    command = [sys.executable, "-m", "bentoml", "serve", "bento:Rival", "--port", str(port)]
    os.chdir(folder)
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    os.execv(sys.executable, [*command, "--host", "127.0.0.1"])


def mlflow(folder: Path, port: int) -> None:
    """Serve by `mlflow models serve`; it takes JSON only, so the bytes are in base64."""
    import mlflow.pyfunc

    class Model(mlflow.pyfunc.PythonModel):  # type: ignore[misc, name-defined]
        def load_context(self, context: Any) -> None:
            self._answers = Answers(folder)

        def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
            return [self._answers(base64.b64decode(one)) for one in model_input["frame"]]

    model = folder / "mlflow-model"
    if not model.exists():
        mlflow.pyfunc.save_model(str(model), python_model=Model(), code_paths=[__file__])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    subprocess.run([*command, "--env-manager", "local", "--workers", "1"], check=True)


def ray(folder: Path, port: int) -> None:
    """Serve by Ray Serve with its defaults."""
    import threading

    import ray as cluster
    from ray import serve
    from starlette.requests import Request

    @serve.deployment(num_replicas=1)
    class Rival:
        def __init__(self) -> None:
            self._answers = Answers(folder)

        async def __call__(self, request: Request) -> dict[str, Any]:
            return {"atoms": self._answers(await request.body())}

    cluster.init(address="local", include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(Rival.bind())
    threading.Event().wait()


if __name__ == "__main__":
    {one.__name__: one for one in (fastapi, litserve, bentoml, mlflow, ray)}[sys.argv[1]](
        Path(sys.argv[2]).resolve(), int(sys.argv[3])
    )
