"""What all widgets share: rows and places, pictures, escaped texts, uploads, keys, errors shown.

Layout rules: widths in `px` or `auto` with a `max_width` of 100 %, rows that wrap, and a height of
its own for everything whose text changes, so that nothing jumps. A colour of our own comes with its
own background (the theme may be dark), with a contrast of at least 4.5 : 1.
"""

import contextlib
import html
import io
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import ipywidgets as w
from IPython.display import display
from PIL import Image, ImageOps

from helpers.files import UsageError, open_image

ERROR_COLOR = "#b42318"
CELL_STYLE = "padding:2px 8px;text-align:left"

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
    const typed = "input, textarea, select, [contenteditable=true]";
    if (event.target.closest && event.target.closest(typed)) return;
    const key = /^[1-6]$/.test(event.key)
      ? "abcdef"[event.key - 1]
      : event.key.replace("=", "equal").toLowerCase();
    const button = /^([a-z]|equal)$/.test(key) && root.querySelector(`button.key-${key}`);
    if (!button) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    if (!event.repeat) button.click();
  }, true);
})()"""


def listen_to_keys(box: w.DOMWidget) -> None:
    """Let keys press the buttons of `box` that have one, where scripts run (see `button`)."""
    name = f"keys-{uuid.uuid4().hex[:8]}"
    box.add_class(name)
    display({"application/javascript": _KEYS.replace("NAME", name), "text/plain": ""}, raw=True)


def show(box: w.DOMWidget, fallback_html: str = "") -> None:
    """Display a widget; pages without scripts show `fallback_html` in its place."""
    bundle = {
        "application/vnd.jupyter.widget-view+json": {
            "model_id": box.model_id,
            "version_major": 2,
            "version_minor": 0,
        },
        "text/plain": "a widget: run the cell to use it",
    }
    if fallback_html:
        bundle["text/html"] = fallback_html
    display(bundle, raw=True)


# --- Controls, and where they stand ---


def button(text: str, on_click: Callable[[], None], key: str = "") -> w.Button:
    """A button that calls `on_click`; with a key, which is shown on it, see `listen_to_keys`."""
    made = w.Button(
        description=f"{text} ({key})" if key else text,
        tooltip=f"key: {key}" if key else text,
        layout=w.Layout(width="auto"),
    )
    if key:
        made.add_class(f"key-{key}")
    made.on_click(lambda _: on_click())
    return made


def labelled(kind: type[w.Widget], label: str, **options) -> w.Widget:
    """A control of this kind with a label on its left."""
    return kind(
        description=label,
        style={"description_width": "110px"},
        **{"layout": w.Layout(width="auto", max_width="900px"), **options},
    )


def slider(kind: type[w.Widget], label: str, value, low, high, **options) -> w.Widget:
    """A labelled slider from `low` to `high` that tells its value once it is let go."""
    return labelled(
        kind,
        label,
        value=value,
        min=low,
        max=high,
        continuous_update=False,
        **options,
    )


class Panel:
    """A widget that hears what its reader changes, and not what it changes itself."""

    _is_silent = False

    def on_change(self, update: Callable[[], None], *controls: w.Widget) -> None:
        """Call `update` whenever the value of one of the controls changes."""

        def hear(_change):
            if not self._is_silent:
                update()

        for control in controls:
            control.observe(hear, "value")

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Hear nothing within it."""
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False


def in_row(*children: w.Widget) -> w.HBox:
    """Widgets side by side; those that find no room go to the next line."""
    return w.HBox(children, layout=w.Layout(flex_flow="row wrap", width="99%"))


def in_column(*children: w.Widget) -> w.VBox:
    """A whole widget: its parts below each other."""
    return w.VBox(children, layout=w.Layout(padding="6px"))


def html_place(height: str) -> w.HTML:
    """A place for HTML with a height of its own; what is longer scrolls."""
    return w.HTML(layout=w.Layout(height=height, overflow="auto"))


# --- Pictures ---


def picture_place(kind: str, max_height: str | None = None, max_width: str = "100%") -> w.Image:
    """A place for a picture of this kind ("jpeg", "png"), no larger than its limits."""
    size = {"max_width": max_width, "max_height": max_height}
    return w.Image(format=kind, layout=w.Layout(width="auto", height="auto", **size))


def show_picture(image: w.Image, content: bytes) -> None:
    """Put a picture on the screen; without content its place stays empty."""
    image.value = content
    image.layout.visibility = "visible" if content else "hidden"


def centred(image: w.Image, height: str, flex: str) -> w.HBox:
    """A picture in the middle of a place that is as high with every picture."""
    return w.HBox(
        [image],
        layout=w.Layout(height=height, flex=flex, justify_content="center"),
    )


def jpeg_strip(images: Sequence[Image.Image]) -> bytes:
    """Images side by side as one JPEG, each as large as 960 × 600 pixels allow.

    That is twice what is shown, to zoom in.
    """
    # small ones are enlarged, too
    fitted = [ImageOps.contain(image, (960, 600)) for image in images]
    size = (sum(image.width for image in fitted), max(image.height for image in fitted))
    strip = Image.new("RGB", size, "white")
    left = 0
    for image in fitted:
        strip.paste(image, (left, 0))
        left += image.width
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def open_strip(paths: Sequence[Path], where: str) -> bytes:
    """`jpeg_strip` of files; an error names `where` they belong."""
    return jpeg_strip([open_image(path, where) for path in paths])


def uploaded_bytes(upload: w.FileUpload) -> bytes | None:
    """Content of the newest file of a FileUpload: a dictionary in ipywidgets 7, a tuple in 8."""
    files = upload.value
    if isinstance(files, dict):
        files = files.values()
    return bytes([*files][-1]["content"]) if files else None


# --- Texts and errors ---


def escape_text(text: str) -> str:
    """A text that a model or a person wrote, as HTML that shows it and nothing else."""
    style = "white-space:pre-wrap;overflow-wrap:anywhere;line-height:20px"
    return f"<div style='{style}'>{html.escape(text)}</div>"


def padded_table(rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; rows[0] is the head.

    The style that a notebook gives to tables does not reach into widgets.
    """
    tag = "th"
    lines = ""
    for row in rows:
        cells = "".join(f"<{tag} style='{CELL_STYLE}'>{cell}</{tag}>" for cell in row)
        lines += f"<tr>{cells}</tr>"
        tag = "td"
    return f"<table style='line-height:20px'>{lines}</table>"


def note(text: str, error: bool = False) -> str:
    """A line of the widget's own, as HTML."""
    # without an error the colours are those of the theme, which may be dark
    colors = f"color:{ERROR_COLOR};background:#fff;" if error else ""
    return f"<div role='status' style='{colors}line-height:20px'>{html.escape(text)}</div>"


@contextlib.contextmanager
def show_errors(report: Callable[[str], None]) -> Iterator[None]:
    """Show errors of a callback in the widget, because nobody would see them elsewhere."""
    try:
        yield
    except (UsageError, ValueError, RuntimeError, OSError) as error:
        report(f"Error: {error}")


def errors_in(target: w.HTML) -> contextlib.AbstractContextManager:
    """`show_errors` as a note in a place of the widget."""
    return show_errors(lambda text: setattr(target, "value", note(text, error=True)))
