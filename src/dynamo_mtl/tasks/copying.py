"""Words of a source that a target may copy (after CopyNet, Gu et al. 2016, arXiv 1603.06393).

So a target can repeat names and quotations of its source exactly, with capitals, even if the backbone's tokenizer
drops them and no vocabulary has them. A copied word is one target token: its id is the size of the vocabulary plus the
number of the word in its source.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from dynamo_mtl.tasks.encoding import EncodedSource

_WORD = re.compile(r"\w+")
_QUOTATION = re.compile(r"'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"")
_UNIT = re.compile(f"{_QUOTATION.pattern}|{_WORD.pattern}")


@dataclass(frozen=True)
class SourceWords:
    """The distinct words of a source's first window, and where they begin."""

    numbers: dict[str, int]
    """Word → its number, in ascending order."""
    occurrences: list[tuple[int, int]]
    """First token of every occurrence of a word in the window, and the word's number."""
    pieces: list[int]
    """For each word, by number, the longest of its backbone tokens, which stands for it when it is fed."""


def units(text: str) -> Iterator[re.Match[str]]:
    """Yield all quotations of a text, each as a whole, then all words, also those inside quotations."""
    yield from _QUOTATION.finditer(text)
    yield from _WORD.finditer(text)


def source_words(source: EncodedSource) -> SourceWords:
    """Find the words and quotations that lie completely in the first window of a source."""
    window = source.windows[0]
    starts = [start for start, _ in window.offsets]
    end = window.offsets[-1][1] if window.offsets else 0
    found = SourceWords({}, [], [])
    for unit in units(source.body[: end + 1]):  # one more character tells whether a word goes on
        if unit.end() > end:
            continue
        first = bisect.bisect_right(starts, unit.start()) - 1
        last = bisect.bisect_left(starts, unit.end())
        if first < 0 or window.offsets[first][1] <= unit.start():
            continue  # characters that the tokenizer leaves out
        number = found.numbers.setdefault(unit[0], len(found.numbers))
        found.occurrences.append((window.body_start + first, number))
        if number == len(found.pieces):
            longest = max(range(first, last), key=lambda t: window.offsets[t][1] - window.offsets[t][0])
            found.pieces.append(window.ids[window.body_start + longest])
    return found


def split_copied(text: str, words: Mapping[str, int]) -> Iterator[str | int]:
    """Split a target into words of the source, as numbers, and the texts between them."""
    done = place = 0
    while match := _UNIT.search(text, place):
        number = words.get(match[0])
        if number is None:
            # A quotation that the source does not have may hold words that it does.
            place = match.start() + 1 if match[0][0] in "'\"" else match.end()
            continue
        if done < match.start():
            yield text[done : match.start()]
        yield number
        done = place = match.end()
    if done < len(text):
        yield text[done:]
