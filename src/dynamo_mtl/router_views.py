"""Views of an input: changes that keep its task and take away what only happens to go with it.

Training data of a task has one spelling, one length and one genre, and these are the easiest to tell tasks by. A router
that also sees every text in other cases, lengths and surroundings has to look at what the text asks for.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from dynamo_mtl.tasks.instruction_templates import expand
from dynamo_mtl.tasks.task import Example

View = Callable[[Example, np.random.Generator, Callable[[], Example]], Example | None]
"""Changes an example. The last argument draws another example of the same task. None: the view changes nothing here."""

TYPING_ERRORS = 0.08
"""Share of the longer words that get a typing error."""
LENGTHS = (3, 160)
"""Shortest and longest text in words that ``resized`` draws, evenly on a logarithmic scale."""
OPENINGS = expand(
    "(Hi|Hello|Hey|Dear)( all| team| there| everyone| Sam| Ms Keller|)(,|!)",
    "Good (morning|evening)(,|!)",
    "(So|Well|OK)(,|:)",
    "(FYI|PS|Note|Edit|Update):",
    "Not sure if this is the right place, but",
    "(Long story short|For what it's worth),",
    "Sent from my (phone|tablet).",
)
CLOSINGS = expand(
    "(Thanks|Thank you|Cheers|Best|Best regards|Kind regards|Regards)(,|!|.)( Anna| Tom| J.| Maria|)",
    "(Have a nice day|See you|Bye|Take care)(.|!)",
    "Sent from my (phone|tablet).",
    "(That's all|Hope this helps|Thanks in advance)(.|!)",
)


def cased(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """Other capitals: none, all, or those at the start of sentences."""
    changes: Sequence[Callable[[str], str]] = (str.lower, str.upper, _sentence_case)
    change = changes[int(rng.choice(3, p=[0.4, 0.2, 0.4]))]
    return _everywhere(example, change)


def punctuated(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """Other punctuation: none, none at the end, or another mark there."""
    end = str(rng.choice(["", ".", "!", "!!", "...", " ."]))
    if rng.random() < 0.4:
        return _everywhere(example, lambda text: _blanks(text.translate(_NO_MARKS)))
    return _everywhere(example, lambda text: text.rstrip(" .!?…") + (end if not text.rstrip().endswith("?") else "?"))


def spelled(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """Tokenised text (``it 's good .``) as people write it, and other text tokenised."""
    return _everywhere(example, lambda text: joined_tokens(text) if _TOKENISED.search(text) else split_tokens(text))


def mistyped(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """Typing errors: letters that change places, are lost, doubled or replaced."""
    return _everywhere(example, lambda text: _with_errors(text, rng))


def cut(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """Without a part of the opening or of the ending, or of both."""
    words = _main(example).split()
    if len(words) < 5:
        return None
    kept = max(3, round(len(words) * float(rng.uniform(0.4, 0.9))))
    first = int(rng.choice([0, len(words) - kept, int(rng.integers(len(words) - kept + 1))]))
    return _with_main(example, " ".join(words[first : first + kept]))


def joined(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """Several texts of the task in a row."""
    parts = [_main(example), *(_main(another()) for _ in range(int(rng.integers(1, 5))))]
    return _with_main(example, _in_a_row(parts))


def excerpt(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """One or two sentences of a text of several."""
    sentences = _sentences(_main(example))
    if len(sentences) < 2:
        return None
    first, count = int(rng.integers(len(sentences))), int(rng.integers(1, 3))
    return _with_main(example, " ".join(sentences[first : first + count]))


def resized(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """A length that is drawn alike for all tasks, so that it says nothing: parts of long texts, several short ones."""
    low, high = LENGTHS
    wanted = round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))
    text = _main(example)
    if len(text.split()) > wanted:
        sentences = _sentences(text)
        words = " ".join(sentences[int(rng.integers(len(sentences))) :]).split()
        return _with_main(example, " ".join(words[:wanted]))
    parts = [text]
    while sum(len(part.split()) for part in parts) < wanted and len(parts) < _MOST_JOINED:
        parts.append(_main(another()))
    return _with_main(example, " ".join(_in_a_row(parts).split()[: max(wanted, len(text.split()))]))


def greeted(example: Example, rng: np.random.Generator, another: Callable[[], Example]) -> Example | None:
    """With a greeting before it, a signature after it, or both."""
    before, after = (str(rng.choice(known)) for known in (OPENINGS, CLOSINGS))
    which = int(rng.integers(3))
    return replace(
        example, text=" ".join(([before] if which < 2 else []) + [example.text] + ([after] if which > 0 else []))
    )


VIEWS: Mapping[str, View] = {
    "cased": cased,
    "punctuated": punctuated,
    "spelled": spelled,
    "mistyped": mistyped,
    "cut": cut,
    "joined": joined,
    "excerpt": excerpt,
    "resized": resized,
    "greeted": greeted,
}
"""All views, by the names that ``data.views`` gives them."""
_SIZES = ("cut", "joined", "excerpt", "resized")
"""Views that change the length, of which an input gets at most one."""
_MOST_JOINED = 60


def view_of(
    example: Example,
    names: Sequence[str],
    rng: np.random.Generator,
    another: Callable[[], Example],
    least_words: int = 1,
) -> Example | None:
    """Change an example by one or two random views of those with these names, first its length and then its surface.

    Args:
        example: to change.
        names: keys of ``VIEWS``.
        rng: random generator.
        another: draws another example of the same task.
        least_words: words that a text must still have to belong to the task.

    Returns:
        The changed example; None if the views that were drawn change nothing in it, or shorten it too much.
    """
    sizes, surfaces = [name for name in names if name in _SIZES], [name for name in names if name not in _SIZES]
    both = bool(sizes and surfaces)
    which = int(rng.integers(3)) if both else (0 if sizes else 1)
    chosen = [sizes[int(rng.integers(len(sizes)))]] if which in (0, 2) and sizes else []
    chosen += [surfaces[int(rng.integers(len(surfaces)))]] if which in (1, 2) and surfaces else []
    changed = example
    for name in chosen:
        changed = VIEWS[name](changed, rng, another) or changed
    is_same = (changed.text, changed.context) == (example.text, example.context)
    words = len(_main(changed).split())
    is_too_short = not changed.text.strip() or words < 1 or words < min(least_words, len(_main(example).split()))
    return None if is_same or is_too_short else changed


def split_tokens(text: str) -> str:
    """Blanks before punctuation and before contractions, as in older corpora: ``It's good.`` → ``It 's good .``"""
    text = re.sub(r"(\w)(n't|'(?:s|re|ve|ll|d|m))\b", r"\1 \2", text)
    return _blanks(re.sub(r"([.,!?;:()\"])(?=\s|$|[)\".,!?])|(?<=\s)([(\"])", r" \1\2 ", text))


def joined_tokens(text: str) -> str:
    """Undo ``split_tokens``."""
    text = text.replace("-lrb-", "(").replace("-rrb-", ")").replace("``", '"').replace("''", '"')
    text = re.sub(r"\s+(n't|'(?:s|re|ve|ll|d|m))\b", r"\1", text)
    text = re.sub(r"\(\s+", "(", re.sub(r"\s+([.,!?;:)%])", r"\1", text))
    return re.sub(r'"\s*([^"]*?)\s*"', r'"\1"', text).strip()


_TOKENISED = re.compile(r"\w\s+[.,!?;:](\s|$)|\w\s+(n't|'(s|re|ve|ll|d|m))\b|``")
_NO_MARKS = str.maketrans("", "", string.punctuation.replace("'", "").replace("_", "") + "…“”‘’")


def _main(example: Example) -> str:
    """The part that can be long: the context, or the text where there is none."""
    return example.text if example.context is None else example.context


def _with_main(example: Example, text: str) -> Example:
    return replace(example, text=text) if example.context is None else replace(example, context=text)


def _everywhere(example: Example, change: Callable[[str], str]) -> Example:
    context = None if example.context is None else change(example.context)
    return replace(example, text=change(example.text), context=context)


def _blanks(text: str) -> str:
    return " ".join(text.split())


def _sentences(text: str) -> list[str]:
    return [part for part in re.split(r"(?<=[.!?])\s+|\n+", text.strip()) if part]


def _in_a_row(parts: Sequence[str]) -> str:
    return " ".join(part if part.rstrip().endswith((".", "!", "?", ":")) else f"{part.rstrip()}." for part in parts)


def _sentence_case(text: str) -> str:
    """Capitals at the start of sentences and for "I"; others stay."""
    text = re.sub(r"(^|[.!?]\s+)([a-z])", lambda match: match[1] + match[2].upper(), text)
    return re.sub(r"\bi\b(?!\.)", "I", text)


def _with_errors(text: str, rng: np.random.Generator) -> str:
    words = text.split(" ")
    long = [number for number, word in enumerate(words) if len(word) >= 4 and word.isalpha()]
    if not long:
        return text
    count = max(1, round(TYPING_ERRORS * len(long)))
    for number in rng.choice(long, size=count, replace=False).tolist():
        words[number] = _mistyped_word(words[number], rng)
    return " ".join(words)


def _mistyped_word(word: str, rng: np.random.Generator) -> str:
    place = int(rng.integers(1, len(word) - 1))
    kinds = (
        word[:place] + word[place + 1] + word[place] + word[place + 2 :],
        word[:place] + word[place + 1 :],
        word[:place] + word[place] + word[place:],
        word[:place] + string.ascii_lowercase[int(rng.integers(26))] + word[place + 1 :],
    )
    return kinds[int(rng.integers(len(kinds)))]
