"""Summarization: one sentence for a document (XSum and its like)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.tasks.generation_task import GenerationTask
from dynamo_mtl.tasks.task import Answer, Example
from dynamo_mtl.tasks.wordings import expand


class Summarization(GenerationTask):
    """Abstractive summaries; the first window of a long document is read."""

    type = "summarization"
    answer_key = "summary_text"
    column_names = {"document": ("document", "article", "text"), "summary": ("summary", "highlights")}
    wordings = expand(
        "(Summarize|Summarise)(:| this:| the text:| this article:| this story:| the following:)",
        "(Write|Give me) a (short|one-sentence) (summary|abstract)(:| of this:)",
        "What is this (text|article|story) about?",
        "(Give|State|Tell me) the (main point|key message|main idea):",
        "(Summary|In short|In brief|Headline|Abstract|Key message|The gist|Overview|TLDR|tl;dr):",
        "(Shorten|Condense|Compress|Boil down) (this|the text|this article):",
        "Write a (headline|title) for (this|the article):",
        "What happened(?|, in one sentence?|, in short?)",
        "Give me the (gist|short version|essentials)(:| of it:)",
        "(The key message is|The story in one sentence|Make it brief):",
        "(Cut|Trim|Bring|Pare) (this|it|the article) down(:| to one sentence:)",
        "(Distil|Digest|Abridge|Outline|Simplify) (this|the text|the story)(:| for me:)",
        "(Nutshell|Digest|Summary in one sentence|Short version|Bottom line|Outline|Main point|Gist):",
        "(In a nutshell|In a few words|Long story short|To put it briefly)(:|, what is this?)",
        "(Brief me|Fill me in|Catch me up) on (this|the story)(:|)",
        "(Extract|Find|Pick) the (most important point|central idea|essence)(:| of this text:)",
        "What (should I remember|matters here|does it come down to)?",
        "(Turn|Rewrite) (this|the article) (into|as) (a headline|one sentence|a short abstract):",
        "(How would you|Can you|Please) (summarize|shorten|condense) (this|it)(?|:)",
    )
    evaluation_wordings = (
        "Sum this up in one line:",
        "TL;DR of the following:",
        "Please provide a synopsis:",
        "What's the takeaway here?",
        "Recap the news below in a sentence:",
        "Reduce this report to its core statement:",
    )
    main_metric = "rouge1"
    trivial_name = "first sentence"

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        return Example(self.text_column(row, "document", where), None, self.text_column(row, "summary", where))

    def trivial_answers(self, train: Sequence[Example], examples: Sequence[Example]) -> list[Answer]:
        sentences = [re.split(r"(?<=[.!?])\s+", example.text.strip(), maxsplit=1)[0] for example in examples]
        return [{self.answer_key: sentence, "score": 0.0} for sentence in sentences]
