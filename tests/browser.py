"""Pages as headless Chromium shows them, where there is one."""

import html
import json
import shutil
import subprocess

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
BINARY = next(filter(None, map(shutil.which, _NAMES)), None)
needed = pytest.mark.skipif(BINARY is None, reason="no Chromium is installed")
WIDTHS = {"desk": 1280, "phone": 400}

# Frames of one page, so that one start of the browser does for all.
_HARNESS = """<!DOCTYPE html><meta charset=utf-8>%s<script>
const seen = (frame) => {
  const page = frame.contentDocument;
  return {
    text: page.body.innerText,
    broken: Array.from(page.images).filter((i) => !i.naturalWidth).length,
    over: page.documentElement.scrollWidth - frame.width,
  };
};
onload = () => {
  const frames = document.querySelectorAll("iframe");
  document.body.textContent = JSON.stringify(Array.from(frames, seen));
};
</script>"""


def texts(folder, *pages):
    """The text that a reader sees of each page, the same on a desk's screen
    and on a phone's, after checking that nothing is wrong there: a message on
    the console, an image that cannot be drawn, or what is wider than the
    screen.

    Args:
      folder: for the browser's own files.
      *pages: their paths.
    """
    frames = [
        f'<iframe width={width} height=800 src="{html.escape(page.as_uri())}">'
        "</iframe>"
        for page in pages
        for width in WIDTHS.values()
    ]
    harness = folder / "harness.html"
    harness.write_text(_HARNESS % "".join(frames))
    done = subprocess.run(
        [
            BINARY,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            # The harness may look into its frames.
            "--allow-file-access-from-files",
            f"--user-data-dir={folder / 'browser'}",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
            harness.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    # Chromium logs every level and uncaught exceptions as one.
    wrong = [line for line in done.stderr.splitlines() if ":CONSOLE:" in line]
    body = done.stdout.partition("<body>")[2].rpartition("</body>")[0]
    found = json.loads(html.unescape(body))
    assert len(found) == len(frames), done.stderr
    for frame, seen in zip(frames, found):
        if seen["broken"]:
            wrong.append(f"{seen['broken']} broken images: {frame}")
        if seen["over"] > 0:
            wrong.append(f"{seen['over']} px too wide: {frame}")
    assert not wrong, "\n".join(wrong)
    desk, phone = (
        [seen["text"] for seen in found[i :: len(WIDTHS)]]
        for i in range(len(WIDTHS))
    )
    for one, other in zip(desk, phone):
        assert one.split() == other.split()
    return desk
