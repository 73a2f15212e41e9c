"""What all widgets share: images as bytes, escaped texts, uploads of either ipywidgets version, keys, errors shown.

Layout rules: widths in `px` or `auto` with a `max_width` of 100 %, rows that wrap, and a height of its own
for everything whose text changes, so that nothing jumps. A colour of our own
comes with its own background (the theme may be dark), with a contrast of at least 4.5 : 1.
"""

import contextlib
import html
import io
import uuid
from collections.abc import Callable, Iterator, Sequence

import ipywidgets as w
from IPython.display import display
from PIL import Image, ImageOps

from helpers.files import UsageError

ERROR_COLOR = "#b42318"

# A key presses the button of its class while the widget is what was last clicked or focused (blue
# frame). `window` hears a key before the notebook does, to which "a" and "x" are commands.
_KEYS = """(() => {
  let root = null;
  const decide = ({type, target}) => {
    if (root && type === "focusin" && target.contains(root)) return;
    if (root) root.style.boxShadow = "";
    root = target.closest ? target.closest(".NAME") : null;
    if (root) root.style.boxShadow = "inset 0 0 0 2px #1a73e8";
  };
  for (const type of ["pointerdown", "focusin"]) window.addEventListener(type, decide, true);
  window.addEventListener("keydown", event => {
    if (!root || !root.isConnected || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest && event.target.closest("input, textarea, select, [contenteditable=true]")) return;
    const key = /^[1-6]$/.test(event.key) ? "abcdef"[event.key - 1] : event.key.replace("=", "equal").toLowerCase();
    const button = /^([a-z]|equal)$/.test(key) && root.querySelector(`button.key-${key}`);
    if (!button) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!event.repeat) button.click();
  }, true);
})()"""


def listen_to_keys(box: w.DOMWidget) -> None:
    """Where scripts run, the buttons of `box` made by `button` with a key can be pressed by it, too."""
    name = f"keys-{uuid.uuid4().hex[:8]}"
    box.add_class(name)
    display({"application/javascript": _KEYS.replace("NAME", name), "text/plain": ""}, raw=True)


def show(box: w.DOMWidget, fallback_html: str = "") -> None:
    """Display a widget; pages without scripts show `fallback_html` in its place."""
    view = {"model_id": box.model_id, "version_major": 2, "version_minor": 0}
    bundle = {
        "application/vnd.jupyter.widget-view+json": view,
        "text/plain": "a widget: run the cell to use it",
    }
    display(bundle | ({"text/html": fallback_html} if fallback_html else {}), raw=True)


def button(text: str, on_click: Callable[[], None], key: str = "") -> w.Button:
    """A button that calls `on_click`; with a key, which is shown on it, see `listen_to_keys`."""
    shown = f"{text} ({key})" if key else text
    made = w.Button(
        description=shown, tooltip=f"key: {key}" if key else text, layout=w.Layout(width="auto")
    )
    if key:
        made.add_class(f"key-{key}")
    made.on_click(lambda _: on_click())
    return made


def escape_text(text: str) -> str:
    """A text that a model or a person wrote, as HTML that shows it and nothing else."""
    return f"<div style='white-space:pre-wrap;overflow-wrap:anywhere;line-height:20px'>{html.escape(text)}</div>"


def note(text: str, error: bool = False) -> str:
    """A line of the widget's own, as HTML."""
    colors = (
        f"color:{ERROR_COLOR};background:#fff;" if error else ""
    )  # else those of the theme, which may be dark
    return f"<div role='status' style='{colors}line-height:20px'>{html.escape(text)}</div>"


@contextlib.contextmanager
def show_errors(report: Callable[[str], None]) -> Iterator[None]:
    """Show errors of a callback in the widget, because nobody would see them elsewhere."""
    try:
        yield
    except (UsageError, ValueError, RuntimeError, OSError) as error:
        report(f"Error: {error}")


def jpeg_strip(images: Sequence[Image.Image]) -> bytes:
    """Images side by side as one JPEG, each as large as 960 × 600 pixels allow: twice what is shown, to zoom in."""
    fitted = [ImageOps.contain(image, (960, 600)) for image in images]
    strip = Image.new(
        "RGB",
        (sum(image.width for image in fitted), max(image.height for image in fitted)),
        "white",
    )
    for number, image in enumerate(fitted):
        strip.paste(image, (sum(before.width for before in fitted[:number]), 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def uploaded_bytes(upload: w.FileUpload) -> bytes | None:
    """Content of the newest file in a FileUpload: ipywidgets 7 has a dictionary there, 8 a tuple."""
    files = list(upload.value.values()) if isinstance(upload.value, dict) else list(upload.value)
    return bytes(files[-1]["content"]) if files else None
