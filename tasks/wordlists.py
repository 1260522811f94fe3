"""Lists of unwanted words: those that ship for English and Spanish (LDNOOBW, CC BY 4.0), files, and URLs.

In: `en`, `es`, a path, or an address. Out: entries, one a line. tasks/text/lexicons/README.md says whose they are.
"""

from importlib.resources import files
from pathlib import Path

from gpt.errors import UserError
from tasks.remote import fetched, is_url

SHIPPED = ("en", "es")
LEXICONS = files("tasks.text") / "lexicons"
FRAMES = {
    "en": (
        "{}", "{} people", "The word {} stands in the dictionary.", "A chapter about {} and other subjects.",
        "We talked about {} with the teacher.", "This article is about {} in history and medicine.",
        "There are many {} people in our town and they are welcome.", "They asked the doctor a question about {}.",
        "The {} family next door has a small garden.", "I am {} and I like to cook for friends.",
    ),
    "es": (
        "{}", "La palabra {} está en el diccionario.", "Un capítulo sobre {} y otros temas.",
        "Hablamos de {} con la maestra.", "Este artículo trata de {} en la historia y en la medicina.",
        "Le preguntaron al médico por {}.", "Soy {} y me gusta cocinar para mis amigos.",
    ),
}  # fmt: skip
"""Plain sentences for a neutral word."""


def entries(names: tuple[str, ...]) -> list[str]:
    """The entries of all lists; from those that ship, neutral words are left out (`vagina`, `sexo`)."""
    return [entry for name in names for entry in (_shipped(name) if name in SHIPPED else _own(name))]


def neutral(lang: str) -> list[str]:
    """Words about people, bodies and crimes that lists or haters name and that are no insult in themselves."""
    return (LEXICONS / f"neutral_{lang}.txt").read_text(encoding="utf-8").split("\n")[:-1]


def plain_sentences() -> list[str]:
    """Every neutral word in plain sentences: training takes them for clean (Dixon et al. 2018)."""
    return [frame.format(word) for lang, frames in FRAMES.items() for word in neutral(lang) for frame in frames]


def _shipped(lang: str) -> list[str]:
    known = {word for shipped in SHIPPED for word in neutral(shipped)}
    lines = (LEXICONS / f"{lang}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.lower() not in known]


def _own(name: str) -> list[str]:
    """A file or an address."""
    try:
        if is_url(name):
            return next(fetched(name))[1].read_text(encoding="utf-8").splitlines()
        return Path(name).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"filter.toxicity.wordlists: {name!r} is no UTF-8 text file ({error})"
        raise UserError(f"{what}; mend it, leave it out, or take one that ships: {', '.join(SHIPPED)}") from error
