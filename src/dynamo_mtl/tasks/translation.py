"""Translation from English to any language; several languages are several named tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynamo_mtl.errors import DataError
from dynamo_mtl.metrics.generation import chrf
from dynamo_mtl.tasks.generation_task import GenerationTask, GenerationTaskConfig
from dynamo_mtl.tasks.instruction_templates import read_instruction_templates
from dynamo_mtl.tasks.recognition import Guess, Table
from dynamo_mtl.tasks.task import Answer, Example

LANGUAGES = {
    "de": "German", "fr": "French", "es": "Spanish", "it": "Italian", "nl": "Dutch", "pt": "Portuguese",
    "pl": "Polish", "cs": "Czech", "ru": "Russian", "uk": "Ukrainian", "ro": "Romanian", "sv": "Swedish",
    "da": "Danish", "fi": "Finnish", "tr": "Turkish", "zh": "Chinese", "ja": "Japanese", "ar": "Arabic",
}  # fmt: skip
"""Language codes, which are the usual names of the columns in translation data."""


class TranslationConfig(GenerationTaskConfig):
    """The language is part of the instructions: it is how an instruction names the task."""

    target_language: str = "German"
    """As instructions name it."""
    source_code: str = "en"
    """Column of the source, where rows hold languages: ``en`` beside ``de``, or ``translation: {en: …, de: …}``."""
    target_code: str = "de"
    """Column of the target, likewise."""


class Translation(GenerationTask):
    """Translation of a sentence."""

    type = "translation"
    Config = TranslationConfig
    answer_key = "translation_text"
    english_targets = False
    column_names = {"source": ("source", "text"), "target": ("target", "translation")}
    input_columns = {"source": "text"}
    instruction_templates = read_instruction_templates("translation")
    main_metric = "bleu"
    trivial_name = "target of the most similar training source"
    hub_task = "translation"
    recognition_rank = 9

    @classmethod
    def recognise(cls, table: Table, name: str) -> Guess | None:
        """Recognise columns named by the codes of English and another language, or two columns of texts by name."""
        codes = {c.strip().casefold(): c for c in table.columns if c.strip().casefold() in (*LANGUAGES, "en")}
        if len(codes) == 2 and "en" in codes:
            target = next(code for code in codes if code != "en")
            settings: dict[str, Any] = {"target_code": target, "target_language": LANGUAGES[target]}
            if codes != {"en": "en", target: target}:
                settings["columns"] = {"source": codes["en"], "target": codes[target]}
            return cls.guess(table, name, f"columns of English and {LANGUAGES[target]}", {}, **settings)
        return cls.guess_by_names(table, name)

    @property
    def settings(self) -> TranslationConfig:
        """The settings of this type."""
        assert isinstance(self.config, TranslationConfig)
        return self.config

    def wording(self, pattern: str) -> str:
        return pattern.replace("{language}", self.settings.target_language)

    def read(self, row: Mapping[str, Any], where: str) -> Example:
        pair = row.get("translation")
        if isinstance(pair, Mapping):
            codes = (self.settings.source_code, self.settings.target_code)
            if any(code not in pair for code in codes):
                raise DataError(
                    f"{where}: 'translation' of task '{self.name}' lacks one of the languages {codes}",
                    "a language is missing",
                )
            row = {"source": pair[codes[0]], "target": pair[codes[1]]}
        else:
            named = {"source": row.get(self.settings.source_code), "target": row.get(self.settings.target_code)}
            known = {k: v for k, v in named.items() if v is not None and k not in self.config.columns}
            row = {**known, **row}
        return Example(self.text_column(row, "source", where), None, self.text_column(row, "target", where))

    def input_value(self, row: Mapping[str, Any], column: str) -> Any:
        pair = row.get("translation")
        of_language = (pair if isinstance(pair, Mapping) else row).get(self.settings.source_code)
        return super().input_value(row, column) if of_language is None else of_language

    def score(self, answers: Sequence[Answer | None], examples: Sequence[Example]) -> dict[str, float]:
        return {**super().score(answers, examples), "chrf": chrf(self.texts(answers), [e.target for e in examples])}
