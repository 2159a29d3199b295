"""The nouns, colours and actions of the stage world, and how sentences are made of them."""

from __future__ import annotations

from dataclasses import dataclass

#: Noun → the DejaVu Sans glyph that plays it. None of them looks the same after a small turn.
NOUNS: dict[str, str] = {
    "star": "★",
    "heart": "♥",
    "club": "♣",
    "diamond": "♦",
    "cloud": "☁",
    "umbrella": "☂",
    "phone": "☎",
    "plane": "✈",
    "envelope": "✉",
    "note": "♫",
    "anchor": "⚓",
    "flag": "⚑",
    "knight": "♞",
    "crown": "♛",
    "flower": "✿",
    "house": "⌂",
    "hand": "☛",
    "smiley": "☺",
}

#: Colour → RGB in 0..1.
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.93, 0.11, 0.14),
    "orange": (1.0, 0.55, 0.05),
    "yellow": (0.98, 0.93, 0.10),
    "green": (0.10, 0.78, 0.20),
    "cyan": (0.10, 0.88, 0.92),
    "blue": (0.16, 0.33, 0.98),
    "pink": (1.0, 0.45, 0.80),
    "white": (0.98, 0.98, 0.98),
}


@dataclass(frozen=True)
class Action:
    """One thing that an actor can do: the verb as in "it spins" and as in "does it spin?"."""

    name: str
    third: str
    plain: str


ACTIONS: tuple[Action, ...] = (
    Action("appear", "appears", "appear"),
    Action("leave", "leaves", "leave"),
    Action("cross", "crosses", "cross"),
    Action("spin", "spins", "spin"),
    Action("blink", "blinks", "blink"),
    Action("grow", "grows", "grow"),
    Action("recolour", "changes colour", "change colour"),
    Action("jump", "jumps", "jump"),
    Action("meet", "meets", "meet"),
)
ACTION_INDEX: dict[str, int] = {a.name: i for i, a in enumerate(ACTIONS)}
NOUN_NAMES: tuple[str, ...] = tuple(NOUNS)
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
ORDINALS: tuple[str, ...] = ("first", "second", "third", "fourth", "fifth")

#: Actions that an actor may do several times in a clip.
REPEATABLE: tuple[str, ...] = ("spin", "blink", "grow", "recolour", "jump")


def held_out(noun: int, colour: int, action: str) -> bool:
    """True for the noun–colour–action combinations that only the `test-unseen` split shows.

    About one in eleven; a fixed rule, so that every version of the benchmark holds out the same.
    """
    return (31 * noun + 17 * colour + 13 * ACTION_INDEX[action]) % 11 == 0


def noun_phrase(noun: int, colour: int | None) -> str:
    """ "the red star", or "the star" where the colour is left out."""
    name = NOUN_NAMES[noun]
    return f"the {name}" if colour is None else f"the {COLOUR_NAMES[colour]} {name}"
