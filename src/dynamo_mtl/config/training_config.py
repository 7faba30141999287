"""Settings of training, under the names that users know from other trainers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from dynamo_mtl.config.system_config import SystemConfig


class RouterPhaseConfig(BaseModel):
    """Phase 2: warm-up on cached features, then the whole objective through the mixture."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    examples_per_task: int = Field(default=1000, ge=1)
    """Training texts of each task whose trunk features are computed once: plain, instructed, conflicting and viewed."""
    tokens_per_task: int = Field(default=1_000_000, ge=1)
    """Once the cached inputs of a task have this many tokens, no further text of the task is read: long texts are
    costly."""
    general_texts: int = Field(default=2000, ge=0)
    """English texts of everyday life, written by this project, that the router also learns for a task of one of the
    five first types if it is the only one of its type; at most half as many as training texts. 0 for other
    languages."""
    feature_epochs: int = Field(default=15, ge=1)
    """Passes over the cached features; they take seconds."""
    feature_batch_size: int = Field(default=64, ge=1)
    """Cached features in one update of the warm-up."""
    novelty_examples: int = Field(default=800, ge=1)
    """Training texts of each task that define the known inputs. Inputs unlike them are rejected."""
    memory_examples: int = Field(default=300, ge=1)
    """Inputs of each task whose features are stored in the checkpoint, so that a task can be added without the data."""
    mixture_steps: int = Field(default=50, ge=0)
    """Updates with the whole objective through the mixture of frozen adapters."""


class JointPhaseConfig(BaseModel):
    """Phase 3: router, adapters and heads together, easy examples first."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_steps: int = Field(default=0, ge=0)
    """Updates. With 0, the phase is skipped and the final model is that of phase 2: on real data the phase did not
    help."""
    examples_per_task: int = Field(default=2000, ge=1)
    """Training examples of each task that are ranked by their loss and drawn from."""
    lr_factor: float = Field(default=0.2, gt=0)
    """Learning rates of this phase, relative to those of the earlier phases."""
    initial_competence: float = Field(default=0.3, gt=0, le=1)
    """Share of the examples, the easiest ones, that the phase starts with."""
    curriculum_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the phase after which all examples are in use."""


class TrainingConfig(BaseModel):
    """How a model is trained. ``batch_size`` counts the examples of an update, however they are split."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, le=2**32 - 1)
    """Seed of everything random: initial parameters, order, dropout and samples."""
    num_epochs: float = Field(default=10, gt=0)
    """Passes over a task's training data in phase 1, unless ``max_steps`` ends it earlier."""
    max_steps: int | None = Field(default=None, ge=1)
    """Maximum number of updates of each task in phase 1. If not given, ``num_epochs`` alone decides."""
    step_share: float = Field(default=1.0, gt=0, le=1)
    """Share of phase 1's updates to make, with a learning-rate schedule of that length. A trial run has less than 1."""
    batch_size: int = Field(default=16, ge=1)
    """Examples of one update, over all processes and micro-batches."""
    token_budget: int = Field(default=8192, ge=1)
    """Maximum number of tokens in one forward pass. A larger batch is split into micro-batches and accumulated."""
    lora_lr: float = Field(default=5e-4, gt=0)
    """Peak learning rate of the adapters, reached after the warm-up; ``lr_schedule`` says how it falls from there."""
    head_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the heads and of the tasks' own target vocabularies."""
    router_lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate of the router."""
    backbone_lr: float = Field(default=1e-4, gt=0)
    """Peak learning rate of the backbone in full fine-tuning, that is if ``model.freeze_backbone`` is false."""
    loraplus_ratio: float = Field(default=1.0, gt=0)
    """Learning rate of B divided by that of A (LoRA+, Hayou et al. 2024, arXiv 2402.12354)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW for adapters, the router and the matrices of a trained backbone; heads have none."""
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How learning rates fall after the warm-up: along a cosine or a line to 0, or not at all."""
    warmup_ratio: float = Field(default=0.06, ge=0, lt=1)
    """Share of the updates over which the learning rate rises to its peak."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Maximum norm of the gradient; a larger gradient is scaled down to it."""
    num_threads: int | None = Field(default=None, ge=1)
    """Number of CPU threads. If neither this nor ``OMP_NUM_THREADS`` is given, it is the number of cores that nobody
    else uses when the run starts; a resumed run keeps its number."""
    compile: bool = False
    """Compile the encoder's layers with ``torch.compile``."""

    task_weight: float = Field(default=1.0, ge=0)
    """Weight of the task losses where adapters are mixed by the router's weights."""
    routing_weight: float = Field(default=1.0, ge=0)
    """Weight of the cross entropy between the routing and the known task."""
    smoothing_weight: float = Field(default=0.0, ge=0)
    """Weight of the cross entropy between the routing and the uniform distribution. Together with a ``routing_weight``
    of 1, a weight of 0.11 is a label smoothing of 0.1."""
    load_balance_weight: float = Field(default=0.0, ge=0)
    """Weight of the divergence between the task mix of a batch and its mean routing; no gain was measured."""
    efficiency_weight: float = Field(default=0.0, ge=0)
    """Weight of the effective number of adapters that an input uses; no gain was measured."""
    consistency_weight: float = Field(default=0.1, ge=0)
    """Weight of the divergence between the routing of two views of an input: two dropout masks, or two instructions."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Weight of the entropy of the routing weights."""
    temperature_weight: float = Field(default=0.1, ge=0)
    """Weight of the distance between a learned temperature and its schedule."""
    z_loss_weight: float = Field(default=0.0, ge=0)
    """Weight of the size of the router's logits; no gain was measured."""
    term_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Weights of terms that you register yourself, by name."""

    eval_every: int = Field(default=200, ge=1)
    """Maximum number of steps between two validations. Every task of phase 1 is validated at least ten times."""
    eval_examples: int = Field(default=256, ge=1)
    """Number of validation examples of each task that a validation uses."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do if a loss or gradient is not finite: stop the run before any parameter changes, or skip the step and
    count it."""
    load_best_model_at_end: bool = True
    """Whether phase 1 ends in its best validated state instead of its last one. The later phases always do."""
    save_every: int = Field(default=500, ge=1)
    """Steps between saved states of the run, from which it can resume after it was killed."""
    keep_states: int = Field(default=2, ge=1)
    """Number of newest states that are kept during a run. All are removed when it ends."""
    patience: int | None = Field(default=None, ge=1)
    """Stop a phase (in phase 1, a task) after this many validations in a row without a better score."""
    log_every: int = Field(default=20, ge=1)
    """Updates between two lines on the console and in ``metrics.jsonl``."""
    router: RouterPhaseConfig = RouterPhaseConfig()
    joint: JointPhaseConfig = JointPhaseConfig()


class PipelineConfig(SystemConfig):
    """A system and how it is trained."""

    training: TrainingConfig = TrainingConfig()
    log_dir: str = "./logs"
    """Folder for ``train.log``, ``metrics.jsonl`` and the files of trackers."""
    checkpoint_dir: str = "./checkpoints"
    """Folder for the checkpoint of each phase, and for the saved states of an unfinished run."""
    use_wandb: bool = False
    """Short for ``trackers: [wandb]``."""
    wandb_project: str = "dynamo"
    """Name of the project for every tracker."""
    wandb_tags: list[str] = Field(default_factory=list)
    """Tags of the run at W&B."""
    trackers: list[Literal["wandb", "tensorboard", "mlflow", "trackio"]] = Field(default_factory=list)
    """Trackers that also get the values, with routing heat maps and sample answers; ``use_wandb`` adds wandb."""

    @property
    def chosen_trackers(self) -> list[str]:
        """All configured trackers, each once."""
        return list(dict.fromkeys([*self.trackers, *(["wandb"] if self.use_wandb else [])]))
