"""What was understood of data that somebody brought, and what was not used: counted and named."""

from dataclasses import dataclass, field

SHOWN_PLACES = 3  # of each reason


@dataclass
class Leftovers:
    """Notes on how files were read, and reasons why parts of them were not used.

    One reason has many places: rows, files, images.
    """

    notes: list[str] = field(default_factory=list)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    # of these, reasons for which nothing has to be put right
    harmless: set[str] = field(default_factory=set)

    def say(self, note: str) -> None:
        """Note how something was read, once."""
        if note not in self.notes:
            self.notes.append(note)

    def add(self, reason: str, place: str, harmless: bool = False) -> None:
        """Count something that was not used: why, and where it stands or what it is.

        harmless: the rest is as good without it.
        """
        if harmless:
            self.harmless.add(reason)
        self.reasons.setdefault(reason, []).append(place)

    @property
    def errors(self) -> int:
        """How much was not used that somebody will miss."""
        missed = [places for reason, places in self.reasons.items() if reason not in self.harmless]
        return sum(map(len, missed))

    def __len__(self) -> int:
        return sum(map(len, self.reasons.values()))

    def lines(self) -> list[str]:
        """One line for each reason: how many, and the first of them by name."""
        lines = []
        for reason, places in self.reasons.items():
            shown = places[:SHOWN_PLACES]
            if len(places) > len(shown):
                shown.append(f"… and {len(places) - len(shown):,} more")
            lines.append(f"not used, {reason} ({len(places):,}): {'; '.join(shown)}")
        return lines
