"""Where the shipped data is, and its pictures."""

from helpers.files import ROOT, open_image

TRAFFIC = ROOT / "data" / "traffic"


def pictures_of(items):
    """The images of counted items, decoded."""
    return [open_image(item.path) for item in items]
