"""What a person would see of a page: its text and tags, and what a real browser makes of it."""

import json
import shutil
import subprocess
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

VOID = {"meta", "img"}  # an SVG element is to be closed
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PROBE = """<script>addEventListener('load', async () => {
    const wait = video => new Promise(done => {
        video.onloadeddata = () => done(true); video.onerror = () => done(false);
        video.preload = 'auto'; video.load(); });
    const videos = await Promise.all([...document.querySelectorAll('video')].map(wait));
    document.title = JSON.stringify({
        over: Math.max(0, document.documentElement.scrollWidth - innerWidth), inner: innerWidth,
        drawn: [...document.querySelectorAll('svg :not(title)')].every(e => {
            const b = e.getBoundingClientRect(); return b.width + b.height > 0; }),
        images: [...document.images].every(i => i.naturalWidth > 0), videos,
        violations: (await axe.run()).violations.map(v => v.id + ': ' + v.nodes[0].html.slice(0, 200)),
    }); });</script>"""
AXE = (resources.files("axe_core_python") / "axe.min.js").read_text()


class Page(HTMLParser):
    """Tags with their attributes, text, and whether elements nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]

    def says(self) -> str:
        return " ".join("".join(self.text).split())


def drawn(html: str, folder: Path, width: int) -> dict[str, Any]:
    """Return what a headless browser finds in a window of `width` pixels.

    Returns:
        over: pixels by which the page is wider than the screen; inner: the screen's width; drawn: whether each element
        of each chart has a size; images: whether every picture decodes; videos: for each whether it can be played;
        violations: what axe-core finds wrong for people who cannot see or use a mouse.
    """
    probe = f"<script>{AXE}</script>{PROBE}"
    (folder / "probed.html").write_text(html.replace("</body>", f"{probe}</body>"))
    # An iframe has the width asked for, which a headless window, some 500 pixels at least, has not.
    outer = folder / "outer.html"
    outer.write_text(
        f'<iframe src="probed.html" width="{width}" height="900" style="border:0"></iframe>'
        "<script>setInterval(() => { document.title = frames[0].document.title; }, 50)</script>"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    # The browser's clock runs on while videos are decoded: on a busy machine too fast for them.
    for budget_ms in (20_000, 400_000):
        last = [f"--virtual-time-budget={budget_ms}", "--window-size=1300,900", "--dump-dom", outer.as_uri()]
        done = subprocess.run([str(CHROMIUM), *flags, *last], capture_output=True, text=True, timeout=120, check=True)
        title = done.stdout.split("<title>")[1].split("</title>")[0]
        if title.startswith("{"):
            return json.loads(title)
    raise AssertionError(f"the page was not measured in {budget_ms} ms of the browser's clock; its title is {title!r}")
