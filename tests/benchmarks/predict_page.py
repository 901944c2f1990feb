"""How long after a frame is dropped on the page `/predict` are its atoms on the screen?

    python tests/benchmarks/predict_page.py --web http://127.0.0.1:8000 --side 1024

The pages and their prediction service must run. Each file holds another simulated frame. A real
browser drops it, and its own clock tells how long it takes until its first atoms are drawn, and
until they are those of the answer with frame analysis.
"""

import argparse
import base64
import io

import numpy as np

CHROMIUM = "/usr/bin/chromium"
# In the page: drop the file, which comes in base64.
DROP = """([name, text]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  sessionStorage.setItem("dropped", Date.now());
  document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
}"""
SHOWN = "#stage[data-atoms]"
ANALYSED = "body:not(:has(#analyse)) #stage[data-atoms]"


def main() -> None:
    """Print both times of each frame, and how many atoms were drawn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--web", default="http://127.0.0.1:8000")
    parser.add_argument("--side", type=int, default=1024, help="rows and columns of a frame")
    parser.add_argument("--frames", type=int, default=5)
    words = parser.parse_args()

    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for number, (sent, pixel_size_pm) in enumerate(_files(words.frames, words.side)):
            page.goto(f"{words.web}/predict")
            page.get_by_label("Pixel size (pm)").fill(f"{pixel_size_pm:g}")
            page.evaluate(DROP, [f"frame-{number}.npy", sent])
            times_ms = []
            for selector in (SHOWN, ANALYSED):
                page.wait_for_selector(selector, timeout=120_000)
                past = "Date.now() - Number(sessionStorage.getItem('dropped'))"
                times_ms.append(page.evaluate(past))
            count = page.locator("#shown-count").inner_text()
            print(f"first atoms {times_ms[0]} ms, analysed {times_ms[1]} ms, {count} atoms")
        browser.close()


def _files(count: int, side: int) -> list[tuple[str, float]]:
    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec.facility import facility_library

    condition = facility_library().condition("graphene-60kv-nominal")
    found = []
    for frame_yx in simulate(condition, count, seed=11, shape=(side, side)).frames_nyx:
        stream = io.BytesIO()
        np.save(stream, frame_yx)
        size_pm = condition.scan.pixel_size_pm
        found.append((base64.b64encode(stream.getvalue()).decode(), float(size_pm)))
    return found


if __name__ == "__main__":
    main()
