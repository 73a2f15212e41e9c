"""Where the shipped data is."""

from helpers.files import ROOT

TRAFFIC = ROOT / "data" / "traffic"
