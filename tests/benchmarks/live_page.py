"""How long after it was sent is a frame on the live page, beside other traffic?

    python tests/benchmarks/live_page.py --service http://127.0.0.1:8100 --web http://127.0.0.1:8000

Both must run. A real browser shows the page of one instrument, which sends frames at a steady pace;
others send theirs as fast as they are answered. The name of a frame is the time at which it was
sent, so the page itself knows how old it is.
"""

import argparse
import threading
import time

import numpy as np

CHROMIUM = "/usr/bin/chromium"
# In the page: for each picture, the time since its frame was sent, and since it was answered.
WATCH = """() => {
  const canvas = document.getElementById("live-canvas");
  window.seen = [];
  new MutationObserver(() => {
    const name = canvas.getAttribute("aria-label").match(/t(\\d+)/);
    if (name) window.seen.push([Date.now() - Number(name[1]), Number(canvas.dataset.delayMs)]);
  }).observe(canvas, { attributes: true, attributeFilter: ["data-delay-ms"] });
}"""


def main() -> None:
    """Print median and 95th percentile of both times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--service", default="http://127.0.0.1:8100")
    parser.add_argument("--web", default="http://127.0.0.1:8000")
    parser.add_argument("--frames", type=int, default=100, help="of the watched instrument")
    parser.add_argument("--pace-s", type=float, default=0.5, help="between two of them")
    parser.add_argument("--others", type=int, default=1, help="instruments that send beside it")
    parser.add_argument("--side", type=int, default=256, help="rows and columns of a frame")
    words = parser.parse_args()
    frames_nyx = _frames(words.side)
    ended = threading.Event()
    others = [
        threading.Thread(target=_busy, args=(words.service, f"OTHER-{one}", frames_nyx, ended))
        for one in range(words.others)
    ]
    for one in others:
        one.start()
    try:
        seen = _watched(words, frames_nyx)
    finally:
        ended.set()
        for one in others:
            one.join()
    for title, values in zip(("sent", "answered"), np.array(seen).T, strict=True):
        median, most = np.quantile(values, [0.5, 0.95])
        print(f"since it was {title}: median {median:.0f} ms, 95 % within {most:.0f} ms")
    print(f"{len(seen)} pictures of {words.frames} frames")


def _frames(side: int) -> np.ndarray:
    from manybeam.data.simulation.simulate import simulate
    from manybeam.spec.facility import facility_library

    condition = facility_library().condition("graphene-60kv-nominal")
    return np.asarray(simulate(condition, 20, seed=5, shape=(side, side)).frames_nyx)


def _busy(url: str, instrument: str, frames_nyx: np.ndarray, ended: threading.Event) -> None:
    from manybeam_client import Session

    with Session(url, instrument=instrument, deadline_ms=10_000) as session:
        while not ended.is_set():
            for frame in frames_nyx:
                session.predict(frame, pixel_size_pm=16.0)
                if ended.is_set():
                    return


def _watched(words: argparse.Namespace, frames_nyx: np.ndarray) -> list[list[float]]:
    from playwright.sync_api import sync_playwright

    from manybeam_client import Session

    with sync_playwright() as play, Session(words.service, instrument="WATCHED") as session:
        session.predict(frames_nyx[0], pixel_size_pm=16.0)
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(f"{words.web}/live/WATCHED")
        page.evaluate(WATCH)
        for number in range(words.frames):
            due_s = time.monotonic() + words.pace_s
            name = f"t{time.time_ns() // 1_000_000}"
            frame = frames_nyx[number % len(frames_nyx)]
            session.predict(frame, pixel_size_pm=16.0, frame_id=name)
            page.wait_for_timeout(max(due_s - time.monotonic(), 0) * 1000)
        page.wait_for_timeout(2000)
        seen: list[list[float]] = page.evaluate("window.seen")
        browser.close()
    return seen[3:]  # the first pictures come before the service knows that somebody looks


if __name__ == "__main__":
    main()
