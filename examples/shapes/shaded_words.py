"""Makes README's image: words of two samples of the demo, shaded, over their images.

    python examples/shapes/shaded_words.py --demo demo --output docs/images/shaded-words.png

What stands in it is `show_words` of the annotated shards; a Chromium takes the image of the page.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from cal_pipeline.inspect import load_annotated, show_words

SAMPLES = {"shape-0-000385": "its own caption", "shape-0-001307": "another image's caption"}
WIDTH, HEIGHT, SCALE = 1060, 272, 2
PAGE = """<!doctype html><meta charset="utf-8"><style>
body {{ margin: 0; font: 16px/1.6 "DejaVu Sans", sans-serif; background: white; color: #111; }}
main {{ display: flex; }}
figure {{ flex: 1; margin: 12px 20px; }}
figcaption {{ font-size: 14px; color: #555; }}
.cal-words img {{ width: 150px; display: block; image-rendering: pixelated; }}
.cal-words .scale {{ font-size: 11.5px !important; color: #555; margin: 8px 0 0; }}
.cal-words h1, .cal-words .about, .cal-words .role, .cal-words .turn:not(.answer) {{ display: none !important; }}
</style><main>{figures}</main>"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("demo"))
    parser.add_argument("--output", type=Path, default=Path("shaded-words.png"))
    options = parser.parse_args()
    columns = ["sample_id", "images", "messages", "label_ids", "label_positions", "delta_logits", "status"]
    frame = load_annotated(options.demo / "annotated", columns=columns, filter=f"sample_id IN {tuple(SAMPLES)}")
    figures = ""
    for sample_id, what in SAMPLES.items():
        (index,) = frame.index[frame["sample_id"] == sample_id]
        words = show_words(frame.loc[index], options.demo / "reference")._repr_html_()
        before, role, answer = words.rpartition('<div class="turn">')
        figures += f'<figure><figcaption>{what}</figcaption>{before}<div class="turn answer">{answer}</figure>'
        assert role
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        page.write_text(PAGE.format(figures=figures), encoding="utf-8")
        subprocess.run(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}",
                f"--screenshot={options.output.resolve()}", page.as_uri(),
            ],
            check=True, capture_output=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
