"""``Dynamo``: tasks from Python, trained, scored and used in the manner of scikit-learn.

It writes the configuration that ``dynamo init`` would write, and trains as ``dynamo train`` does. So a model trained by
either is the same, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamo_mtl.config.load import DynamoConfig, load_config
from dynamo_mtl.config.overrides import with_settings
from dynamo_mtl.config.validation import validate
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.evaluation.benchmark import evaluate_checkpoint
from dynamo_mtl.evaluation.result import Result
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.messages import did_you_mean, show_progress
from dynamo_mtl.setup.guess import UnknownColumnError, guess_task
from dynamo_mtl.setup.init import starter_config
from dynamo_mtl.storage import at_home
from dynamo_mtl.strict_yaml import dump_yaml, parse_yaml
from dynamo_mtl.task_data import Data, TaskData, stored
from dynamo_mtl.tasks.recognition import Guess
from dynamo_mtl.tasks.registry import task_type
from dynamo_mtl.training.run import train
from dynamo_mtl.training.stages import FOLDERS

SCORED = ("dynamo", "oracle", "trivial")
FEW_ROWS = 500
"""Number of rows that is assumed of data whose columns were not looked at, to hold out a share of it."""


class Dynamo:
    """Several tasks over one encoder.

    >>> model = Dynamo({"stars": Classification(reviews, text="review", label="stars")}).fit()  # doctest: +SKIP
    >>> model.predict(["Never again."])[0]["label"]  # doctest: +SKIP
    '1'
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskData | Data],
        *,
        backbone: str = "minilm",
        output_dir: str | Path = "runs/own",
        **settings: Any,
    ) -> None:
        """Read the data, and write ``config.yaml`` into ``output_dir``.

        Args:
            tasks: name → examples with what they are (``Classification(…)`` and so on), or examples alone, whose task
                is then found out.
            backbone: hub id, folder, or ``minilm``.
            output_dir: folder for the configuration, data from memory, logs and checkpoints.
            settings: sections of the configuration to change, such as ``training={"seed": 1}``.

        Raises:
            ConfigError: a setting does not exist, or only the user can say what the columns are.
            DataError: data of another form, or rows that cannot be read.
        """
        self.output_dir = at_home(output_dir).absolute()
        self.config_path = self.output_dir / "config.yaml"
        guesses: list[Guess] = []
        own: dict[str, Any] = {}
        if not tasks:
            raise ConfigError("tasks: there are none; give a name and examples for each")
        for name, given in tasks.items():
            if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
                raise ConfigError(f"tasks: '{name:.50}' is no name for a task; use letters, digits, _ and -")
            guess, more = self._guess(name, given if isinstance(given, TaskData) else TaskData(given))
            guesses.append(guess)
            own[name] = more
        raw = parse_yaml(starter_config(guesses, backbone), "the starter configuration")
        for section, value in {**settings, "tasks": own}.items():
            _merge(raw, section, value)
        for folder in {"checkpoint_dir", "log_dir"} - settings.keys():
            raw[folder] = str(self.output_dir / folder.removesuffix("_dir"))
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(dump_yaml(raw), encoding="utf-8")
        self.config: DynamoConfig = load_config(self.config_path)
        self._model: DynamoInference | None = None

    @classmethod
    def from_pretrained(cls, name: str | Path, **more: Any) -> DynamoInference:
        """A trained model from a folder or the hub, to be used; see ``DynamoInference.from_pretrained``."""
        return DynamoInference.from_pretrained(name, **more)

    @property
    def checkpoint(self) -> Path:
        """Folder of the trained model."""
        return Path(self.config.checkpoint_dir) / FOLDERS[3]

    @property
    def model(self) -> DynamoInference:
        """The trained model. Raises ``CheckpointError`` if there is none yet."""
        if self._model is None:
            if not self.checkpoint.is_dir():
                raise CheckpointError(f"{self.checkpoint}: not trained yet; call fit() first")
            self._model = DynamoInference(self.checkpoint)
        return self._model

    def fit(self, resume: str | None = None) -> Dynamo:
        """Train all phases, as ``dynamo train`` with ``config.yaml`` does. Progress is logged.

        Args:
            resume: ``latest`` to go on with a run that did not end.

        Raises:
            DynamoError: bad configuration, data or backbone.
        """
        show_progress()
        train(self.config, (1, 2, 3), resume)
        self._model = None
        return self

    def evaluate(self, data: Mapping[str, Data] | None = None) -> Result:
        """Score the trained model, routed and with known tasks, beside a trivial system.

        Args:
            data: examples to score for some tasks, in the form of the training data; the validation examples if None.
        """
        show_progress()
        config = self.config
        for name, rows in (data or {}).items():
            if name not in config.tasks:
                raise ConfigError(f"data: no task '{name}'; {did_you_mean(name, config.tasks)}")
            place = stored(rows, self.output_dir / "data" / name / "scored.jsonl")
            config = with_settings(config, {f"tasks.{name}.validation_file": str(place),
                                            f"tasks.{name}.validation_share": None})  # fmt: skip
        return evaluate_checkpoint(self.model.checkpoint, config, "validation", SCORED)

    def predict(self, inputs: Any, **how: Any) -> Any:
        """Answer one input or many, of any mix of tasks; see ``DynamoInference.__call__``."""
        return self.model(inputs, **how)

    def predict_table(self, data: Any, **how: Any) -> Any:
        """Answer every row of a data frame or of an iterable; see ``DynamoInference.predict_table``."""
        return self.model.predict_table(data, **how)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Copy the trained model into a folder."""
        return self.model.save_pretrained(folder)

    def push_to_hub(self, name: str, **how: Any) -> str:
        """Put the trained model on the hub; see ``DynamoInference.push_to_hub``."""
        return self.model.push_to_hub(name, **how)

    def _guess(self, name: str, given: TaskData) -> tuple[Guess, dict[str, Any]]:
        """The task of some examples, and the settings that the user gave it."""
        place = self.output_dir / "data" / name
        train_path = stored(given.data, place / "train.jsonl")
        kind = None if given.type is None else task_type(given.type, f"tasks.{name}.type")
        more = dict(given.settings)
        try:
            guess = guess_task(train_path, given.columns, name=name, kind=kind)
        except UnknownColumnError:
            raise
        except ConfigError:
            # The columns alone do not say it, but the settings may: soft labels, levels, a column for each label.
            if kind is None or not more:
                raise
            validate(kind.Config, {"type": kind.type, **more}, f"tasks.{name}")
            columns = {"columns": given.columns} if given.columns else {}
            guess = Guess(name, kind.type, str(train_path), FEW_ROWS, "it was said to be", columns)
        if given.validation is not None:
            more["validation_file"] = str(stored(given.validation, place / "validation.jsonl"))
            guess.held_out = False
        return guess, more


def _merge(place: dict[str, Any], key: str, value: Any) -> None:
    """Set a section, key by key where both are mappings."""
    if isinstance(value, Mapping) and isinstance(place.get(key), dict):
        for inner, own in value.items():
            _merge(place[key], inner, own)
    else:
        place[key] = value
