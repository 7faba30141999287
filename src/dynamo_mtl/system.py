"""A system is what is trained, saved and used: a model with its tasks, vocabularies and source encoding."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tokenizers import Tokenizer

from dynamo_mtl.checkpoint.card import UNMEASURED, model_card
from dynamo_mtl.checkpoint.folder import CARD, CONFIG, load_checkpoint, open_checkpoint, save_checkpoint
from dynamo_mtl.checkpoint.metadata import Metadata
from dynamo_mtl.checkpoint.stored_config import read_system_config
from dynamo_mtl.config.system_config import SystemConfig
from dynamo_mtl.errors import CheckpointError, ConfigError
from dynamo_mtl.model.backbone import Backbone, SourceTokenizer, load_backbone
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.model.hardware import compute_dtype
from dynamo_mtl.model.heads import LanguageModelHead
from dynamo_mtl.tasks.encoding import EncodedExample, PackedExamples, SourceEncoder, collate
from dynamo_mtl.tasks.generation_task import GenerationTask, GenerationTaskConfig
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.task import Example, Task
from dynamo_mtl.tasks.vocabulary import backbone_vocabulary, mean_embeddings, own_vocabulary, train_vocabulary

FEWEST_CHOICE, MOST_CHOICE = 16, 64
"""Positions that must be left for the tokens of an option, and those that are used at most."""
BYTE_LEVEL = ("roberta",)
"""Model types whose vocabulary writes any English text exactly."""


@dataclass
class System:
    """A model with everything that turns text into its inputs and its outputs into answers."""

    config: SystemConfig
    tasks: dict[str, Task]
    model: DynamoModel
    source: SourceEncoder
    backbone: Backbone
    device: torch.device

    @property
    def first_position(self) -> int:
        """Position of a sequence's first token."""
        return self.model.encoder.config.first_position

    @property
    def collate(self) -> Callable[[Sequence[EncodedExample]], PackedExamples]:
        """A function that packs examples for this model, on the host. It can be pickled without the model."""
        return functools.partial(
            collate, first_position=self.first_position, variable_length=self.model.variable_length
        )

    def route_of(self, task: str) -> int:
        """The router output that belongs to a task."""
        return self.model.task_names.index(task)

    def encode(self, example: Example, task: str, instruction: str | None = None) -> EncodedExample:
        """Encode a labelled example of a task."""
        source = self.source.encode(example.text, example.context, instruction, example.choices)
        return self.tasks[task].encode(example, source, self.route_of(task))

    def encode_for_router(self, text: str, context: str | None, instruction: str | None, task: str) -> EncodedExample:
        """Encode an input that only the router reads, expected to be sent to ``task``."""
        source = self.source.encode(text, context, instruction)
        return EncodedExample(self.route_of(task), [w.ids for w in source.windows])

    def save(self, folder: Path, metadata: Metadata, config: str, state: Callable[[Path], None] | None = None) -> None:
        """Write a checkpoint with its model card, or the state of a run, which has no card.

        Args:
            folder: target folder; its contents are replaced.
            metadata: what the checkpoint says about itself; the calibration of answers is that of the tasks.
            config: the resolved configuration as YAML.
            state: writes the additional files of a state.
        """
        own = {
            name: task.vocabulary.to_json()
            for name, task in self.tasks.items()
            if isinstance(task, GenerationTask) and task.vocabulary.own
        }

        metadata = replace(metadata, answers={name: task.calibration for name, task in self.tasks.items()})

        def write_further(staging: Path) -> None:
            if state is not None:
                state(staging)
            else:
                card = model_card(metadata, self.config, folder.name, UNMEASURED)
                (staging / CARD).write_text(card, encoding="utf-8")

        save_checkpoint(folder, self.model, metadata, config, own, self.backbone.folder, write_further)


def choose_vocabulary(
    task: GenerationTask, tokenizer: SourceTokenizer, byte_level: bool, examples: Callable[[Task], Iterable[Example]]
) -> None:
    """Give a task the target vocabulary that it is configured for: the backbone's, or one trained on ``examples``.

    Raises:
        ConfigError: the task is set to copy words, but the backbone's vocabulary does not give back texts exactly.
    """
    size = task.vocabulary_size(byte_level)
    if size is not None:
        texts = task.vocabulary_texts(examples(task))
        task.vocabulary = train_vocabulary(texts, size, across_words=task.wants_copies)
        return
    task.vocabulary = backbone_vocabulary(tokenizer)
    if task.config.copy_words and not task.vocabulary.is_exact:
        raise ConfigError(
            f"tasks.{task.name}.copy_words: found true with the vocabulary of the backbone, which does not keep "
            "capitals and blanks; give a size as target_vocabulary"
        )


def build_system(config: SystemConfig, examples: Callable[[Task], Iterable[Example]], device: torch.device) -> System:
    """Build a fresh system: load the backbone, train vocabularies on ``examples``, initialise adapters and router.

    Raises:
        ConfigError: lengths that do not fit the backbone's position table.
        BackboneError: no backbone.
    """
    backbone = load_backbone(config.model.base_model_name, config.model.revision)
    tasks = make_tasks(config.tasks)
    starts = {name: _fresh_vocabulary(task, backbone, examples) for name, task in tasks.items()}
    system = _assemble(config, tasks, backbone, device)
    for name, start in starts.items():
        _start_embeddings(system, name, start)
    return system


def _fresh_vocabulary(
    task: Task, backbone: Backbone, examples: Callable[[Task], Iterable[Example]]
) -> torch.Tensor | None:
    """Choose a task's target vocabulary. Returns the initial embeddings of an own vocabulary, else None."""
    if not isinstance(task, GenerationTask):
        return None
    choose_vocabulary(task, backbone.tokenizer, backbone.encoder.config.model_type in BYTE_LEVEL, examples)
    if not task.vocabulary.own:
        return None
    return mean_embeddings(task.vocabulary, backbone.tokenizer, backbone.encoder.word_embeddings.weight)


def _start_embeddings(system: System, name: str, start: torch.Tensor | None) -> None:
    if start is not None:
        head = system.model.head(name)
        assert isinstance(head, LanguageModelHead)
        assert head.embeddings is not None
        with torch.no_grad():
            head.embeddings.copy_(start)


def load_system(
    folder: Path,
    device: torch.device,
    config: SystemConfig | None = None,
    with_router: bool = True,
    for_training: bool = False,
) -> tuple[System, Metadata]:
    """Load a trained system from a checkpoint folder.

    Args:
        folder: written by training.
        device: device of the model.
        config: replaces the checkpoint's own if given.
        with_router: whether to load the router; if not, it is a fresh one, which may have another shape.
        for_training: keep everything that may be trained in fp32, including the backbone.

    Raises:
        CheckpointError: not a checkpoint, damaged, or made for other tasks or another backbone.
    """
    metadata = open_checkpoint(folder)
    config = config or read_system_config(folder / CONFIG)
    if metadata.format < 3:
        config = _without_copying(config)
    backbone = load_backbone(config.model.base_model_name, config.model.revision, tokenizer_folder=folder)
    tasks = make_tasks(config.tasks)
    for name, task in tasks.items():
        _load_vocabulary(task, folder, backbone)
        task.calibration = metadata.answers.get(name, task.calibration)
    system = _assemble(config, tasks, backbone, device)
    load_checkpoint(folder, metadata, system.model, backbone.weight_hash, with_router)
    if not for_training:
        system.model.encoder.to(system.model.dtype)
    return system, metadata


def load_extended(
    folder: Path, config: SystemConfig, examples: Callable[[Task], Iterable[Example]], device: torch.device
) -> tuple[System, Metadata]:
    """Load a trained system and add a task with a fresh adapter, head, vocabulary and router branch.

    Args:
        folder: checkpoint of the tasks before.
        config: its configuration, with the added task as the last one.
        examples: training examples of the added task.
        device: device of the model.

    Raises:
        CheckpointError: as ``load_system`` does.
    """
    metadata = open_checkpoint(folder)
    backbone = load_backbone(config.model.base_model_name, config.model.revision, tokenizer_folder=folder)
    tasks = make_tasks(config.tasks)
    *before, added = tasks
    for name in before:
        _load_vocabulary(tasks[name], folder, backbone)
        tasks[name].calibration = metadata.answers.get(name, tasks[name].calibration)
    start = _fresh_vocabulary(tasks[added], backbone, examples)
    system = _assemble(config, tasks, backbone, device)
    _start_embeddings(system, added, start)
    load_checkpoint(folder, metadata, system.model, backbone.weight_hash, added=added)
    system.model.encoder.to(system.model.dtype)
    return system, metadata


def _load_vocabulary(task: Task, folder: Path, backbone: Backbone) -> None:
    if not isinstance(task, GenerationTask):
        return
    path = folder / "vocabularies" / f"{task.name}.json"
    if not path.exists():
        task.vocabulary = backbone_vocabulary(backbone.tokenizer)
        return
    try:
        task.vocabulary = own_vocabulary(Tokenizer.from_str(path.read_text(encoding="utf-8")))
    except Exception as error:  # the library raises bare exceptions
        raise CheckpointError(f"{path}: cannot be read as a vocabulary ({error})") from error


def reassemble(system: System, config: SystemConfig, tasks: Mapping[str, Task]) -> System:
    """Build a fresh system over the backbone of another one.

    Args:
        system: its backbone and device are used.
        config: configuration of the fresh system.
        tasks: for each task name of ``config``, a task with the same settings, whose vocabulary is reused.
    """
    fresh = make_tasks(config.tasks)
    for name, task in fresh.items():
        before = tasks[name]
        if isinstance(task, GenerationTask) and isinstance(before, GenerationTask):
            task.vocabulary = before.vocabulary
        task.calibration = before.calibration
    return _assemble(config, fresh, system.backbone, system.device)


def _without_copying(config: SystemConfig) -> SystemConfig:
    tasks = {
        name: task.model_copy(update={"copy_words": False}) if isinstance(task, GenerationTaskConfig) else task
        for name, task in config.tasks.items()
    }
    return config.model_copy(update={"tasks": tasks})


def _assemble(config: SystemConfig, tasks: dict[str, Task], backbone: Backbone, device: torch.device) -> System:
    _check_lengths(config, tasks, backbone)
    heads = {name: task.head_config() for name, task in tasks.items()}
    dtype = compute_dtype(config.model.precision, device)
    model = DynamoModel(backbone, config.model, config.lora_configs, heads, config.router, dtype).to(device)
    lengths = config.data
    source = SourceEncoder(
        backbone.tokenizer, lengths.max_source_length, lengths.window_overlap, lengths.max_windows,
        min(MOST_CHOICE, backbone.encoder.config.longest_sequence - lengths.max_source_length),
    )  # fmt: skip
    return System(config, tasks, model, source, backbone, device)


def _check_lengths(config: SystemConfig, tasks: dict[str, Task], backbone: Backbone) -> None:
    longest = backbone.encoder.config.longest_sequence
    source = config.data.max_source_length
    if source > longest:
        raise ConfigError(f"data.max_source_length: found {source}, but {backbone.name} has {longest} positions")
    for name, task in tasks.items():
        if task.takes_choices and longest - source < FEWEST_CHOICE:
            raise ConfigError(
                f"tasks.{name}: {backbone.name} has {longest} positions, which leaves {longest - source} for an "
                f"option; set data.max_source_length to {longest - FEWEST_CHOICE} or less"
            )
        if isinstance(task, GenerationTask):
            target = max(task.config.max_target_length, task.config.generation.max_new_tokens) + 1
            if source + target > longest:
                raise ConfigError(
                    f"tasks.{name}: source and target need {source} + {target} positions, but {backbone.name} has "
                    f"{longest}; lower data.max_source_length, max_target_length or generation.max_new_tokens"
                )
