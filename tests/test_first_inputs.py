"""What a new user types first is routed right by the model that `make quickstart` trains."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from dynamo_mtl.config import load_config
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.system import build_system
from dynamo_mtl.tasks.registry import make_tasks
from dynamo_mtl.tasks.tables import all_examples
from dynamo_mtl.training.examples import ExampleSource
from dynamo_mtl.training.loop import run_phase
from dynamo_mtl.training.metrics_log import MetricsLog
from dynamo_mtl.training.phases.phase_2_router import FeaturePhase, validation_features
from dynamo_mtl.training.run import load_tables

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
OPINIONS = [
    "I love this movie!", "I hate this movie.", "What a waste of money.", "Best phone I ever had!",
    "The food was great and the staff was friendly.", "Terrible service, I will never come back.",
    "The book was boring from start to end.", "My new headphones broke after two days.", "Not worth the price.",
    "A wonderful film with a great cast.",
]  # fmt: skip
OTHERS = [
    (TextInput("Who wrote the letter?", "The letter was written by Anna in the spring of 1912."), "qa"),
    (TextInput("write a function that adds two numbers"), "code_generation"),
    (TextInput("Where is the train station?"), "translation"),
]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """Its router after the warm-up on features, with a third of the updates; adapters play no part in routing."""
    folder = tmp_path_factory.mktemp("quickstart")
    config = load_config(QUICKSTART, ["training.router.feature_epochs=3", "training.eval_examples=20",
                                      f"data.cache_dir={folder}", f"log_dir={folder}"])  # fmt: skip
    torch.manual_seed(config.training.seed)
    tables = load_tables(config, make_tasks(config.tasks))
    system = build_system(config, lambda task: all_examples(tables[task.name].train), torch.device("cpu"))
    source = ExampleSource(system, tables).study()
    phase = FeaturePhase(source, config.training, validation_features(source, config.training))
    accelerator = Accelerator(cpu=True)
    log = MetricsLog(folder, accelerator)
    run_phase(phase, system, config.training, 0, accelerator, log)
    log.close()
    return Predictor(system)


def test_ten_opinions_are_taken_for_opinions(predictor):
    names = list(predictor.system.tasks)
    routes = predictor.route([TextInput(text) for text in OPINIONS])
    sent = {text: names[route.likeliest[0]] for text, route in zip(OPINIONS, routes, strict=True)}
    assert sent == dict.fromkeys(OPINIONS, "sentiment")


def test_other_first_inputs_go_where_they_belong(predictor):
    names = list(predictor.system.tasks)
    routes = predictor.route([given for given, _ in OTHERS])
    assert [names[route.likeliest[0]] for route in routes] == [task for _, task in OTHERS]
