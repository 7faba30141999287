"""A system: a model together with its tasks, vocabularies and source encoding. What is trained, saved and used."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_validator
from tokenizers import Tokenizer

from dynamo_mtl.data.sources import DATA_PATH, DataConfig
from dynamo_mtl.errors import CheckpointError, ConfigError, did_you_mean
from dynamo_mtl.model.backbone import Backbone, SourceTokenizer, load_backbone
from dynamo_mtl.model.checkpoint import CONFIG, load_checkpoint, open_checkpoint, save_checkpoint
from dynamo_mtl.model.dynamo import DynamoModel, ModelConfig
from dynamo_mtl.model.hardware import compute_dtype
from dynamo_mtl.model.heads import LanguageModelHead
from dynamo_mtl.model.lora import LoraConfig
from dynamo_mtl.model.metadata import Metadata
from dynamo_mtl.model.router import RouterConfig
from dynamo_mtl.settings import dump_yaml, read_settings, validate
from dynamo_mtl.tasks.encoding import EncodedExample, PackedExamples, SourceEncoder, collate
from dynamo_mtl.tasks.generation_task import GenerationTask, GenerationTaskConfig
from dynamo_mtl.tasks.task import Example, Task, TaskConfig, task_type, task_types
from dynamo_mtl.tasks.vocabulary import backbone_vocabulary, mean_embeddings, own_vocabulary, train_vocabulary

BYTE_LEVEL = ("roberta",)
"""Model types whose vocabulary writes any English text exactly."""


class SystemConfig(BaseModel):
    """All that a trained model depends on. Tasks are those that have a data path or an entry under ``tasks``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())

    data: DataConfig = DataConfig()
    tasks: dict[str, SerializeAsAny[TaskConfig]] = Field(default_factory=dict)
    """Settings of each task, by its name; those of its type."""
    model: ModelConfig = ModelConfig()
    lora_configs: dict[str, LoraConfig] = Field(default_factory=dict)
    """Each task's adapter; what suits its type where nothing is said."""
    router: RouterConfig = RouterConfig()

    @model_validator(mode="before")
    @classmethod
    def _resolve_tasks(cls, raw: Any) -> Any:
        """Give every named task the settings class of its type, and its type's adapter where none is configured."""
        if not isinstance(raw, dict):
            return raw
        named = raw.get("tasks") or {}
        data = raw.get("data") or {}
        if not isinstance(named, dict) or not isinstance(data, dict) or not isinstance(data.get("paths", {}), dict):
            return raw
        paths = {
            **(data.get("paths") or {}),
            **{k.removesuffix(DATA_PATH): v for k, v in data.items() if k.endswith(DATA_PATH)},
        }
        tasks: dict[str, TaskConfig] = {}
        for name in named if paths.keys() <= named.keys() else dict.fromkeys([*paths, *named]):
            settings = named.get(name) or {}
            if not isinstance(settings, dict | TaskConfig):
                raise ConfigError(f"tasks.{name}: expected keys and values, found {settings!r:.80}")
            if isinstance(settings, TaskConfig):
                tasks[name] = settings
                continue
            kind = settings.get("type", name)
            if not isinstance(kind, str):
                raise ConfigError(f"tasks.{name}.type: expected the name of a task type, found {kind!r:.80}")
            if "type" not in settings and name not in task_types():
                known = {*task_types(), *named}
                raise ConfigError(f"data.{name}{DATA_PATH}: no task '{name}'; {did_you_mean(name, known)}")
            task = task_type(kind, f"tasks.{name}.type")
            tasks[name] = validate(task.Config, {**settings, "type": kind}, f"tasks.{name}")
        loras = raw.get("lora_configs") or {}
        for name, settings in loras.items() if isinstance(loras, dict) else [("", loras)]:
            if not isinstance(settings, dict | LoraConfig | None):
                raise ConfigError(f"lora_configs{name and '.'}{name}: expected keys and values, found {settings!r:.80}")
        unknown = [name for name in loras if name not in tasks]
        if unknown:
            raise ConfigError(f"lora_configs.{unknown[0]}: no such task; {did_you_mean(unknown[0], tasks)}")
        adapters = {n: {**task_types()[t.type].lora.model_dump(), **_plain(loras.get(n))} for n, t in tasks.items()}
        return {**raw, "tasks": tasks, "lora_configs": adapters}

    @model_validator(mode="after")
    def _consistent(self) -> SystemConfig:
        if not self.tasks:
            raise ConfigError("data: no task is configured; give at least one <task>_data_path, for example sample")
        for name in self.tasks:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
                raise ConfigError(f"tasks: the name {name!r} should have 1 to 64 letters, digits, _ or -")
        if self.router.top_k > len(self.tasks):
            raise ConfigError(f"router.top_k: found {self.router.top_k}, but there are only {len(self.tasks)} tasks")
        if len(self.router.branches) >= len(self.tasks):
            raise ConfigError(
                f"router.branches: found {len(self.router.branches)} for {len(self.tasks)} tasks; only those that were "
                "added later have one"
            )
        if self.data.window_overlap * 2 > self.data.max_source_length:
            raise ConfigError(
                f"data.window_overlap: found {self.data.window_overlap}, at most half of data.max_source_length "
                f"({self.data.max_source_length}) is possible"
            )
        return self

    def to_yaml(self) -> str:
        """The resolved settings as YAML that reads back as the same."""
        return dump_yaml(self.model_dump())


def _plain(settings: Any) -> Mapping[str, Any]:
    return settings.model_dump() if isinstance(settings, LoraConfig) else settings or {}


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

    def collate(self, examples: Sequence[EncodedExample]) -> PackedExamples:
        """Pack examples as this model's attention wants them, on the host."""
        return collate(examples, self.first_position, self.model.variable_length)

    def route_of(self, task: str) -> int:
        """The router output that belongs to a task."""
        return self.model.task_names.index(task)

    def encode(self, example: Example, task: str, instruction: str | None = None) -> EncodedExample:
        """Encode a labelled example of a task."""
        source = self.source.encode(example.text, example.context, instruction)
        return self.tasks[task].encode(example, source, self.route_of(task))

    def encode_for_router(self, text: str, context: str | None, instruction: str | None, task: str) -> EncodedExample:
        """Encode an input that only the router reads, expected to be sent to ``task``."""
        source = self.source.encode(text, context, instruction)
        return EncodedExample(self.route_of(task), [w.ids for w in source.windows])

    def save(self, folder: Path, metadata: Metadata, config: str, extra: Callable[[Path], None] | None = None) -> None:
        """Write a checkpoint; ``config`` is the resolved configuration as YAML, ``extra`` writes further files."""
        own = {
            name: task.vocabulary.to_json()
            for name, task in self.tasks.items()
            if isinstance(task, GenerationTask) and task.vocabulary.own
        }
        save_checkpoint(folder, self.model, metadata, config, own, self.backbone.folder, extra)


def make_tasks(config: SystemConfig) -> dict[str, Task]:
    """Instances of all configured tasks, in order."""
    return {name: task_types()[settings.type](name, settings) for name, settings in config.tasks.items()}


def choose_vocabulary(
    task: GenerationTask, tokenizer: SourceTokenizer, byte_level: bool, examples: Callable[[Task], Iterable[Example]]
) -> None:
    """Give a task the target vocabulary that it is configured for: the backbone's, or one trained on ``examples``.

    Raises:
        ConfigError: words are to be copied, and the backbone's vocabulary does not give back every text exactly.
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
    """A fresh system: backbone loaded, vocabularies trained on ``examples``, adapters and router initialised.

    Raises:
        ConfigError: lengths that do not fit the backbone's position table.
        BackboneError: no backbone.
    """
    backbone = load_backbone(config.model.base_model_name, config.model.revision)
    tasks = make_tasks(config)
    starts = {name: _fresh_vocabulary(task, backbone, examples) for name, task in tasks.items()}
    system = _assemble(config, tasks, backbone, device)
    for name, start in starts.items():
        _start_embeddings(system, name, start)
    return system


def _fresh_vocabulary(
    task: Task, backbone: Backbone, examples: Callable[[Task], Iterable[Example]]
) -> torch.Tensor | None:
    """Choose a task's target vocabulary. Returns what its embeddings start from, if it has some of its own."""
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
    """A trained system from a checkpoint folder.

    Args:
        folder: written by training.
        device: where the model will be.
        config: replaces the checkpoint's own if given.
        with_router: read the router too; without, the system has a fresh one of any shape.
        for_training: leave what may be trained in fp32, also a backbone.

    Raises:
        CheckpointError: not a checkpoint, damaged, or made for other tasks or another backbone.
    """
    metadata = open_checkpoint(folder)
    config = config or read_system_config(folder / CONFIG)
    if metadata.format < 3:
        config = _without_copying(config)
    backbone = load_backbone(config.model.base_model_name, config.model.revision, tokenizer_folder=folder)
    tasks = make_tasks(config)
    for task in tasks.values():
        _load_vocabulary(task, folder, backbone)
    system = _assemble(config, tasks, backbone, device)
    load_checkpoint(folder, metadata, system.model, backbone.weight_hash, with_router)
    if not for_training:
        system.model.encoder.to(system.model.dtype)
    return system, metadata


def load_extended(
    folder: Path, config: SystemConfig, examples: Callable[[Task], Iterable[Example]], device: torch.device
) -> tuple[System, Metadata]:
    """A trained system with a task more, of which everything is fresh: adapter, head, vocabulary, router branch.

    Args:
        folder: checkpoint of the tasks before.
        config: its configuration with the added task as its last one.
        examples: training examples of the added task.
        device: where the model will be.

    Raises:
        CheckpointError: as ``load_system`` does.
    """
    metadata = open_checkpoint(folder)
    backbone = load_backbone(config.model.base_model_name, config.model.revision, tokenizer_folder=folder)
    tasks = make_tasks(config)
    *before, added = tasks
    for name in before:
        _load_vocabulary(tasks[name], folder, backbone)
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
    """A fresh system over the backbone of another one.

    Args:
        system: whose backbone.
        config: of the fresh system.
        tasks: by their names in it, tasks with the same settings, whose vocabularies it takes over.
    """
    fresh = make_tasks(config)
    for name, task in fresh.items():
        before = tasks[name]
        if isinstance(task, GenerationTask) and isinstance(before, GenerationTask):
            task.vocabulary = before.vocabulary
    return _assemble(config, fresh, system.backbone, system.device)


def read_system_config(place: Path | Mapping[str, Any]) -> SystemConfig:
    """The part of a configuration, or of its file, that a trained model depends on; other sections are left out."""
    raw = read_settings(place) if isinstance(place, Path) else place
    where = str(place) if isinstance(place, Path) else CONFIG
    return validate(SystemConfig, {k: v for k, v in raw.items() if k in SystemConfig.model_fields}, where)


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
    source = SourceEncoder(
        backbone.tokenizer, config.data.max_source_length, config.data.window_overlap, config.data.max_windows
    )
    return System(config, tasks, model, source, backbone, device)


def _check_lengths(config: SystemConfig, tasks: dict[str, Task], backbone: Backbone) -> None:
    longest = backbone.encoder.config.longest_sequence
    source = config.data.max_source_length
    if source > longest:
        raise ConfigError(f"data.max_source_length: found {source}, but {backbone.name} has {longest} positions")
    for name, task in tasks.items():
        if isinstance(task, GenerationTask):
            target = max(task.config.max_target_length, task.config.generation.max_new_tokens) + 1
            if source + target > longest:
                raise ConfigError(
                    f"tasks.{name}: source and target need {source} + {target} positions, but {backbone.name} has "
                    f"{longest}; lower data.max_source_length, max_target_length or generation.max_new_tokens"
                )
