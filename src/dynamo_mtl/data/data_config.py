"""Settings of the data: where it is, how it is cut into windows, and how it is mixed."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

DATA_PATH = "_data_path"
View = Literal["cased", "punctuated", "spelled", "mistyped", "cut", "joined", "excerpt", "resized", "greeted"]
"""Ways to change a text that keep its task; ``router_views`` has them."""
VIEWS: tuple[View, ...] = get_args(View)


class DataConfig(BaseModel):
    """Where the data is, and how sources are cut and mixed.

    ``<task>_data_path`` is a folder with ``train`` and ``validation`` files, which may have several shards; a single
    file; a folder that ``save_to_disk`` wrote; a hub id (``owner/name``, or ``owner/name:configuration`` for a data set
    with several configurations); or ``sample``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    root: str | None = None
    """Folder that relative data paths start from."""
    paths: dict[str, str] = Field(default_factory=dict)
    """Task → data path, collected from the ``<task>_data_path`` keys."""
    cache_dir: str | None = None
    """Where prepared data is kept; the cache folder of ``datasets`` if not given."""
    revision: str | None = None
    """Branch, tag or commit of hub data sets. If not given, the newest commit, which checkpoints record."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What to do with rows that cannot be used: stop at the first one, or skip them and report how many and why."""
    max_source_length: int = Field(default=256, ge=16)
    """Tokens in a window of a source."""
    window_overlap: int = Field(default=64, ge=0)
    """Tokens that two neighbouring windows of a long source share."""
    max_windows: int = Field(default=4, ge=1)
    """Windows of one source; what does not fit into them is not read."""
    instruction_rate: float = Field(default=0.3, ge=0, le=1)
    """Share of training examples that get an instruction."""
    crossed_rate: float = Field(default=1.0, ge=0, le=1)
    """Share of the router's training examples that it also sees with the instruction of another task."""
    views: list[View] = list(VIEWS)
    """How a text is changed for the router, so that it learns the task and not how its data is written: other capitals,
    punctuation, tokenised or not, typing errors, a part, several joined, a sentence or two, a length that is drawn
    alike for all tasks, greetings around it. Each time one or two of them."""
    view_rate: float = Field(default=1.0, ge=0, le=1)
    """Share of the router's training texts that it also sees changed."""
    sampling_exponent: float = Field(default=0.5, ge=0, le=1)
    """Mixtures draw a task with a probability proportional to its size to this power."""
    num_workers: int = Field(default=0, ge=0)
    """Processes that prepare batches in advance, so that a GPU does not wait for them."""

    @model_validator(mode="before")
    @classmethod
    def _collect_paths(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or not isinstance(raw.get("paths", {}), dict):
            return raw
        named = {k.removesuffix(DATA_PATH): v for k, v in raw.items() if k.endswith(DATA_PATH)}
        rest = {k: v for k, v in raw.items() if not k.endswith(DATA_PATH)}
        return {**rest, "paths": {**rest.get("paths", {}), **named}} if named else rest
