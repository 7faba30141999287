"""Inputs that no task is sure enough of are marked, or refused where that is asked for."""

import numpy as np
import pytest
import torch
from tiny import save_system

from dynamo_mtl.errors import RejectedError
from dynamo_mtl.inference.answers import doubt_in_words
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import Route, TextInput
from dynamo_mtl.model.calibration import Calibration
from dynamo_mtl.system import load_system
from dynamo_mtl.training.phases.phase_2_router import calibrate

TEXTS = ["A fine film.", "The cat sat on the mat.", "Return the sum of two numbers."]


def _probabilities(predictor, inputs):
    return np.array([route.probabilities for route in predictor.route(inputs)])


def _know(system, shift):
    """What is known are TEXTS; ``shift`` is added to how far validation inputs lay."""
    features = Predictor(system).read([TextInput(text) for text in TEXTS * 4], lambda _, trunk: trunk.features)
    ood = system.model.ood
    ood.fit(features, torch.arange(12) % 3, torch.ones(12, dtype=torch.bool), seed=0)
    ood.calibrate(features)
    ood.distances += shift


def _save(system, folder, calibration):
    return DynamoInference(save_system(system, folder, calibration=calibration))


def test_a_checkpoint_keeps_its_calibration(system, tmp_path):
    calibration = Calibration(2.5, 0.75, 0.05, 0.9, 321)
    _save(system, tmp_path / "model", calibration)
    assert load_system(tmp_path / "model", torch.device("cpu"))[1].calibration == calibration


def test_probabilities_are_those_of_the_calibrated_temperature(system):
    inputs = [TextInput(text) for text in TEXTS]
    plain = _probabilities(Predictor(system), inputs)
    mended = _probabilities(Predictor(system, Calibration(temperature=4.0)), inputs)
    expected = plain**0.25 / (plain**0.25).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(mended, expected, atol=1e-5)
    answered = Predictor(system, Calibration(temperature=4.0)).predict(inputs)
    np.testing.assert_allclose([p.route.probabilities for p in answered], expected, atol=1e-5)


def test_only_what_lies_below_the_threshold_is_rejected(system):
    inputs = [TextInput(text) for text in TEXTS]
    best = sorted(route.confidence for route in Predictor(system).route(inputs))
    predictor = Predictor(system, Calibration(threshold=best[1]))
    assert sorted(p.rejected for p in predictor.predict(inputs)) == [False, False, True]
    hinted = predictor.predict(inputs, ["sentiment"] * 3)
    assert not any(p.rejected for p in hinted)  # whoever names a task has it answered


def test_a_rejected_input_is_marked(system, tmp_path):
    model = _save(system, tmp_path / "model", Calibration(threshold=1.1))
    routed = model.route(TEXTS[0])
    assert routed["task"] is None
    assert routed["predicted_task"] in model.task_names
    assert routed["thresholds"] == {"confidence": 1.1, "familiarity": 0.0}
    answer = model.predict(TEXTS[0], return_routing_info=True)
    assert answer["routing_info"]["rejected"]
    assert routed["predicted_task"] in answer
    accepted = _save(system, tmp_path / "other", Calibration())
    assert accepted.route(TEXTS[0])["task"] == routed["predicted_task"]


def test_doubt_has_a_reason_and_the_likeliest_tasks():
    """By hand: 0.5 and 0.3 are not yet 0.9, 0.15 more is; three at most."""
    route = Route([0.15, 0.5, 0.05, 0.3], familiarity=0.01)
    assert route.likeliest == [1, 3, 0]
    assert Route([0.2] * 5, 1.0).likeliest == [0, 1, 2]
    assert Route([0.95, 0.05], 1.0).likeliest == [0]
    assert route.doubt(Calibration(threshold=0.6)) == "unsure"
    assert route.doubt(Calibration(threshold=0.6, familiarity=0.02)) == "unfamiliar"
    assert route.doubt(Calibration(threshold=0.5, familiarity=0.01)) is None


def test_doubt_is_put_into_words(system, tmp_path):
    info = _save(system, tmp_path / "model", Calibration(threshold=1.1)).route(TEXTS[0])
    named = [f"{name} {info['probabilities'][name]:.2f}" for name in info["likeliest"]]
    assert len(named) == 3
    assert doubt_in_words(info) == f"The router is unsure; likeliest: {named[0]}, {named[1]} or {named[2]}."
    assert (
        doubt_in_words({**info, "likeliest": info["likeliest"][:1]}) == f"The router is unsure; likeliest: {named[0]}."
    )
    assert "unlike everything" in doubt_in_words({**info, "doubt": "unfamiliar"})
    assert doubt_in_words({**info, "doubt": None}) == ""


def test_a_rejected_input_can_be_refused(system, tmp_path):
    router = system.config.router.model_copy(update={"on_rejection": "error"})
    system.config = system.config.model_copy(update={"router": router})
    model = _save(system, tmp_path / "model", Calibration(threshold=1.1))
    with pytest.raises(RejectedError, match=r"the likeliest, \w+, has a confidence of 0\.\d+ where 1\.100"):
        model.predict(TEXTS[0])
    assert "sentiment" in model.predict(TEXTS[0], task_hint="sentiment")


def test_what_is_unlike_all_that_is_known_is_rejected(system, tmp_path):
    """Fails if the distance is not asked, or if a checkpoint forgets what is known."""
    _know(system, shift=0.1)
    sure = Calibration(familiarity=0.005)
    model = _save(system, tmp_path / "model", sure)
    known = model.route(TEXTS[0])
    assert known["familiarity"] == 1
    assert known["task"] == known["predicted_task"]
    unknown = model.route("Zq 9981 ## %% zzz kkk 1010 // \\ ;;; 0x77 ~~ @@ ^^ ")
    assert unknown["familiarity"] < 0.005
    assert unknown["task"] is None
    before = Predictor(system, sure).route([TextInput(TEXTS[1])])[0]
    assert model.route(TEXTS[1])["familiarity"] == pytest.approx(before.familiarity)


def test_a_rejected_input_can_be_answered_without_an_adapter(system):
    router = system.config.router.model_copy(update={"on_rejection": "base"})
    system.config = system.config.model_copy(update={"router": router})
    inputs = [TextInput(text) for text in TEXTS]
    guessed = Predictor(system, Calibration(threshold=1.1)).predict(inputs)
    assert all(p.rejected for p in guessed)
    bare = Predictor(system).predict(inputs, [p.task for p in guessed], torch.zeros(3, 5))
    assert [p.answer for p in guessed] == [p.answer for p in bare]
    assert [p.answer for p in guessed] != [p.answer for p in Predictor(system).predict(inputs)]


def test_training_fits_it_on_the_validation_inputs(system):
    """By hand: the share of the least sure inputs that may be rejected lies below the threshold."""
    torch.manual_seed(0)
    features = torch.randn(200, system.model.router.feature_size)
    routes = torch.randint(5, (200,))
    found = calibrate(system, {"bare": (features[:120], routes[:120]), "instructed": (features[120:], routes[120:])})
    assert (found.inputs, found.coverage) == (200, 0.99)
    with torch.no_grad():
        logits = system.model.router.eval()(features).logits / system.model.router.temperature
    confidence = found.probabilities(logits.double()).amax(dim=1)
    assert int((confidence < found.threshold).sum()) <= 1
    assert found.familiarity == pytest.approx(0.005)
