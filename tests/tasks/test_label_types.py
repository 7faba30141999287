"""Several labels, scores, choices, tags, answers that may be missing: how rows are read, learned and answered."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import KINDS, kinds_examples, make_kinds_system
from torch.nn import functional as F

from dynamo_mtl.config.validation import validate
from dynamo_mtl.data.samples.multi_label import ASPECTS
from dynamo_mtl.errors import ConfigError, DataError, InputError
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.request_reader import RequestReader
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.calibration import AnswerCalibration
from dynamo_mtl.model.dynamo import DynamoModel
from dynamo_mtl.tasks import encoding
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.training.step import make_step_batch, task_backward


def _task(kind, **settings):
    of_kind = task_types()[kind]
    return of_kind("t", validate(of_kind.Config, {"type": kind, **settings}, "t"))


@pytest.fixture(scope="module")
def kinds_system(session_config):
    """One system with a task of every kind of label."""
    return make_kinds_system(session_config.model.model_dump())


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (["food", "room"], [0, 1]), ("room; food", [0, 1]), ("Room|FOOD", [0, 1]), ('["food"]', [1]), ("food", [1]),
        ("['food', 'room']", [0, 1]), ("", []), (None, []), ([], []), ("staff, price", [2, 3]),
    ],
)  # fmt: skip
def test_labels_come_in_lists_or_in_cells(given, labels):
    task = _task("multi_label", labels=list(ASPECTS))
    assert json.loads(task.read({"text": "a", "labels": given}, "row 1").target) == labels


def test_labels_come_in_columns_of_their_own():
    task = _task("multi_label", labels=list(ASPECTS))
    row = {"text": "a", "room": 1, "food": "0", "staff": True, "price": 0.0}
    assert json.loads(task.read(row, "row 1").target) == [0, 2]


@pytest.mark.parametrize(
    ("given", "number"),
    [(1, 1), ("1", 1), ("B", 1), ("b", 1), ("a ladder", 1), (1.0, 1), ("C", 2)],
)
def test_the_right_option_is_named_in_any_way(given, number):
    row = {"question": "which?", "choices": ["a lamp", "a ladder", "a rope"], "answer": given}
    example = _task("multiple_choice").read(row, "row 1")
    assert (json.loads(example.target), example.choices) == (number, row["choices"])


@pytest.mark.parametrize(("given", "choices"), [("1", ["1", "2", "3"]), ("a", ["b", "a"]), ("B", ["x", "y", "B"])])
def test_an_answer_that_can_mean_two_options_is_refused(given, choices):
    """A letter or a number that is also a text. A number as a number is clear."""
    task = _task("multiple_choice")
    with pytest.raises(DataError, match="can mean several of its"):
        task.read({"question": "q", "choices": choices, "answer": given}, "row 1")
    assert task.read({"question": "q", "choices": choices, "answer": 1}, "row 1").target == "1"


def test_options_come_in_other_forms():
    task = _task("multiple_choice")
    hub = {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}
    columns = {"premise": "q", "choice1": "x", "choice2": "y", "label": 1}
    cell = {"question": "q", "choices": '["x", "y"]', "answer": "y"}
    for row in (hub, columns, cell):
        example = task.read(row, "row 1")
        assert (example.choices, example.target) == (["x", "y"], "1")


@pytest.mark.parametrize(
    "given", [{"yes": 0.25, "no": 0.75}, [0.25, 0.75], "[0.25, 0.75]", '{"no": 0.75, "yes": 0.25}']
)
def test_soft_labels_are_read_by_name_or_in_order(given):
    task = _task("classification", labels=["yes", "no"], soft_labels=True)
    example = task.read({"text": "a", "probabilities": given}, "row 1")
    assert json.loads(example.target) == [0.25, 0.75]
    assert task.label(example) == "no"


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, [], None, ""])
def test_a_question_may_have_no_answer(answers):
    row = {"question": "who?", "context": "Ada sang.", "answers": answers}
    assert _task("qa", no_answer=True).read(row, "row 1").target == "[]"
    with pytest.raises(DataError, match=r"no answer for a question|needs a column|is empty|should hold"):
        _task("qa").read(row, "row 1")


@pytest.mark.parametrize(
    ("kind", "settings", "row", "sentence"),
    [
        ("classification", {"labels": ["a", "b"], "soft_labels": True}, {"text": "x", "probabilities": [0.5, 0.3]},
         "probabilities of task 't' sum to 0.8; they should sum to 1"),
        ("classification", {"labels": ["a", "b"], "soft_labels": True}, {"text": "x", "probabilities": {"c": 1.0}},
         "should be a number for each of a, b"),
        ("classification", {"labels": ["a", "b"], "soft_labels": True}, {"text": "x", "probabilities": [1.5, -0.5]},
         "should be a number for each of a, b"),
        ("multi_label", {"labels": ["a", "b"]}, {"text": "x", "labels": ["a", "c"]}, "'c' is no label of task 't'"),
        ("multi_label", {"labels": ["a", "b"]}, {"text": "x", "a": 1, "b": 2}, "'b' of task 't' should be 0 or 1"),
        ("multi_label", {"labels": ["a", "b"]}, {"text": "x"}, "needs a column 'labels'"),
        ("regression", {"score_range": [0, 5]}, {"text": "x", "score": 7}, "score 7 of task 't' is out of range"),
        ("regression", {"score_range": [0, 5]}, {"text": "x", "score": "high"}, "score 'high' of task 't' is not"),
        ("regression", {"score_range": [0, 5]}, {"text": "x", "score": True}, "score True of task 't' is not a"),
        ("regression", {"score_range": [1, 5], "ordinal": True}, {"text": "x", "score": 2.5}, "2.5 of task 't' is no"),
        ("multiple_choice", {}, {"question": "x", "choices": ["one"], "answer": 0}, "or more, found 1"),
        ("multiple_choice", {}, {"question": "x", "choices": "one", "answer": 0}, "should be a list of texts"),
        ("multiple_choice", {}, {"question": "x", "choices": ["a", "b"], "answer": 2}, "is none of its 2"),
        ("token_classification", {"tags": ["A", "B"]},
         {"tokens": ["x", "y"], "tags": ["A"]}, "a tag for every word, found other numbers of them: 2 and 1"),
        ("token_classification", {"tags": ["A", "B"]}, {"tokens": ["x"], "tags": ["C"]}, "none of A"),
        ("token_classification", {"tags": ["A", "B"]}, {"text": "x"}, "needs a column 'tokens'"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_sentence_with_its_place(kind, settings, row, sentence):
    with pytest.raises(DataError, match=sentence) as error:
        _task(kind, **settings).read(row, "train.jsonl, line 3")
    assert str(error.value).startswith("train.jsonl, line 3: ")


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        ("classification", {"labels": ["a", "b"], "class_weights": [1.0]}, "class_weights has 1 numbers for 2 labels"),
        ("multi_label", {"labels": ["a", "a"]}, "'a' is there twice"),
        ("multi_label", {"labels": ["a", "b"], "class_weights": [1.0, 0.0]}, "class_weights"),
        ("regression", {"score_range": [5, 0]}, "the lowest and the highest score, found 5 and 0"),
        ("regression", {"score_range": [0, 1], "ordinal": True}, "whole numbers with 3 to 100 levels"),
        ("regression", {}, "score_range"),
    ],
)
def test_bad_settings_are_one_sentence(kind, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        _task(kind, **settings)


# --- learning ---------------------------------------------------------------------------------------------------------


def test_one_mixed_batch_trains_all_kinds_of_head_as_separate_batches_do(kinds_system):
    """Losses and gradients of every head and adapter. Fails if a task reads places of another one.

    Options lie in the same stretch as text that is written (``sums``).
    """
    system = kinds_system
    system.model.eval()
    encoded = {name: [system.encode(example, name) for example in kinds_examples(name)[:3]] for name in KINDS}

    def gradients(examples):
        system.model.zero_grad()
        packed = system.collate(examples)
        output = system.model(packed.batch, system.model.oracle_weights(packed.routes))
        for view in packed.views:
            system.tasks[view.task].losses(system.model.head(view.task), output.hidden, view).sum().backward(
                retain_graph=True
            )
        return {n: p.grad.clone() for n, p in system.model.named_parameters() if p.grad is not None}

    mixed = gradients([one for position in range(3) for name in KINDS for one in [encoded[name][position]]])
    apart = {}
    for name in KINDS:
        for key, value in gradients(encoded[name]).items():
            apart[key] = apart.get(key, 0) + value
    assert mixed.keys() == apart.keys()
    for name in KINDS:
        number = system.route_of(name)
        assert any(key.startswith(f"heads.{number}.") and float(apart[key].abs().sum()) > 0 for key in apart)
    for key, value in mixed.items():
        assert float((value - apart[key]).norm()) < 1e-3 * float(apart[key].norm()) + 1e-5, key


def test_a_gradient_says_how_the_loss_of_every_kind_changes(kinds_system):
    """A small step along the gradient and one against it. Fails if the gradient of a repeated key is lost."""
    system = kinds_system
    system.model.eval()
    before = {key: value.clone() for key, value in system.model.bank.state_dict().items()}
    with torch.no_grad():
        for parameter in system.model.bank.parameters():
            parameter.mul_(0.1)  # a random encoder with large random adapters is anything but linear
    for name in KINDS:
        batch = make_step_batch([system.encode(one, name) for one in kinds_examples(name)], [], 4096, system.collate)
        system.model.zero_grad()
        task_backward(system, batch, system.route_of(name), lambda loss: loss)
        modules = (system.model.bank[name], system.model.head(name))
        own = [p for module in modules for p in module.parameters() if p.grad is not None]
        length = sum(float(p.grad.square().sum()) for p in own) ** 0.5
        losses = []
        with torch.no_grad():
            for step in (1e-3, -2e-3, 1e-3):
                for parameter in own:
                    parameter.add_(step / length * parameter.grad)
                losses.append(float(_mean_loss(system, batch, name)))
        assert (losses[0] - losses[1]) / 2e-3 == pytest.approx(length, rel=0.02), name
    system.model.bank.load_state_dict(before)


def _mean_loss(system, batch, name):
    (packed,) = batch.micro
    output = system.model(packed.batch, system.model.oracle_weights(packed.routes), [system.route_of(name)], 1)
    (view,) = packed.views
    return system.tasks[name].losses(system.model.head(name), output.hidden, view).mean()


def _logits_task(kind, logits, **settings):
    """A task whose outputs are given, with a head in training."""
    task = _task(kind, **settings)
    task.outputs = lambda head, hidden, view: logits
    return task, SimpleNamespace(training=True)


def test_weights_of_labels_scale_their_losses():
    logits = torch.randn(4, 2)
    labels = torch.tensor([0, 1, 0, 1])
    view = SimpleNamespace(labels={"label": labels})
    plain, head = _logits_task("classification", logits, labels=["a", "b"])
    weighted, _ = _logits_task("classification", logits, labels=["a", "b"], class_weights=[1.0, 3.0])
    expected = plain.losses(head, None, view) * torch.tensor([1.0, 3.0])[labels]
    torch.testing.assert_close(weighted.losses(head, None, view), expected)


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = ["0"] * 6 + ["1"] * 3 + ["2"]
    task = _task("classification", labels=["a", "b", "c"], class_weights="balanced")
    task.study(None, [Example("x", None, label) for label in labels])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[int(label) for label in labels])
    assert task._weights.tolist() == pytest.approx(expected)
    several = _task("multi_label", labels=["a", "b"], class_weights="balanced")
    several.study(None, [Example("x", None, target) for target in ("[0]", "[0]", "[0, 1]", "[]")])
    assert several._weights.tolist() == pytest.approx([1 / 3, 3.0])


def test_soft_labels_are_a_cross_entropy_with_all_labels():
    logits, shares = torch.randn(3, 2), torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    task, head = _logits_task("classification", logits, labels=["a", "b"], soft_labels=True)
    losses = task.losses(head, None, SimpleNamespace(labels={"label": shares}))
    torch.testing.assert_close(losses, -(shares * torch.log_softmax(logits, dim=1)).sum(dim=1))


def test_smoothing_moves_a_share_of_the_target_in_every_type():
    """By hand for several labels; for spans and options against PyTorch's own where nothing is masked."""
    logits, labels = torch.randn(3, 4), torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]])
    task, head = _logits_task("multi_label", logits, labels=list("abcd"), label_smoothing=0.2)
    losses = task.losses(head, None, SimpleNamespace(labels={"labels": labels}))
    expected = F.binary_cross_entropy_with_logits(logits, labels * 0.8 + 0.1, reduction="none").mean(dim=1)
    torch.testing.assert_close(losses, expected)
    quiz, answers = _task("multiple_choice", label_smoothing=0.2), torch.tensor([0, 3, 1])
    quiz._logits = lambda head, hidden, view: logits
    smooth = F.cross_entropy(logits, answers, reduction="none", label_smoothing=0.2)
    torch.testing.assert_close(quiz.losses(head, None, SimpleNamespace(labels={"answer": answers})), smooth)
    padded = torch.cat([logits, torch.full((3, 1), float("-inf"))], dim=1)
    quiz._logits = lambda head, hidden, view: padded
    torch.testing.assert_close(quiz.losses(head, None, SimpleNamespace(labels={"answer": answers})), smooth)
    faq, spans = _task("qa", label_smoothing=0.2), torch.randn(2, 5, 2)
    faq._logits = lambda head, hidden, view: spans
    view = SimpleNamespace(labels={"start": torch.tensor([0, 2]), "end": torch.tensor([1, 4])},
                           mask=torch.ones(2, 5, dtype=torch.bool))  # fmt: skip
    both = [F.cross_entropy(spans[:, :, n], view.labels[k], reduction="none", label_smoothing=0.2)
            for n, k in enumerate(("start", "end"))]  # fmt: skip
    torch.testing.assert_close(faq.losses(head, None, view), sum(both) / 2)


def test_scores_are_standardised_and_come_back_in_their_range(kinds_system):
    """Mean and spread of the training scores. Fails if an answer is left standardised, or leaves the range."""
    head = kinds_system.model.head("marks")
    scores = torch.tensor([json.loads(example.target) for example in kinds_examples("marks")])
    assert float(head.mean) == pytest.approx(float(scores.mean()))
    assert float(head.spread) == pytest.approx(float(scores.std(unbiased=False)))
    assert float(head.values(torch.tensor(-float(head.mean) / float(head.spread)))) == pytest.approx(0.0, abs=1e-5)
    kinds_system.tasks["marks"].study(head, [Example("x", None, "100.0")])  # a head that has learned keeps its scale
    assert float(head.mean) == pytest.approx(float(scores.mean()))
    answers = Predictor(kinds_system).predict([TextInput("fine")] * 2, ["marks"] * 2)
    assert all(0 <= one.answer["value"] <= 10 for one in answers)


def test_all_windows_of_a_long_text_count(kinds_system):
    """The mean of the windows' logits. Fails if only the first window is read."""
    system, text = kinds_system, " ".join(f"the bus stop number {n} is gone." for n in range(30))
    source = system.source.encode(text)
    assert len(source.windows) == 4
    task, head = system.tasks["topics"], system.model.head("topics")

    def logits(windows):
        parts = [replace(task.unanswered(replace(source, windows=[w]), system.route_of("topics"))) for w in windows]
        packed = system.collate(parts)
        output = system.model(packed.batch, system.model.oracle_weights(packed.routes))
        return task.outputs(head, output.hidden, packed.views[0])

    whole = system.collate([task.unanswered(source, system.route_of("topics"))])
    output = system.model(whole.batch, system.model.oracle_weights(whole.routes))
    together = task.outputs(head, output.hidden, whole.views[0])
    torch.testing.assert_close(together[0], logits(source.windows).mean(dim=0), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(together[0], logits(source.windows[:1])[0], atol=1e-3)


# --- choices ----------------------------------------------------------------------------------------------------------

QUESTION = "Who has a lamp?"
CHOICES = ["the baker", "the pilot of the plane", "nobody", "a nurse"]


def _shares(system, choices):
    (prediction,) = Predictor(system).predict([TextInput(QUESTION, choices=choices)], ["quiz"])
    return prediction.answer["probabilities"]


def _odds(shares):
    return torch.tensor(shares).log()


def test_an_option_does_not_depend_on_the_others(kinds_system):
    """Neither on their order, nor on how many there are. Fails if options see each other."""
    whole = _odds(_shares(kinds_system, CHOICES))
    turned = _odds(_shares(kinds_system, CHOICES[::-1])).flip(0)
    torch.testing.assert_close(whole, turned, rtol=1e-4, atol=1e-5)
    some = _odds(_shares(kinds_system, CHOICES[:2]))
    torch.testing.assert_close(some[0] - some[1], whole[0] - whole[1], rtol=1e-4, atol=1e-5)
    assert len({round(share, 6) for share in whole.tolist()}) == 4


def test_more_options_than_fit_give_the_same_answer(kinds_system, monkeypatch):
    whole = _shares(kinds_system, CHOICES * 3)
    monkeypatch.setattr(encoding, "CHOICE_TOKENS", 20)
    assert _shares(kinds_system, CHOICES * 3) == pytest.approx(whole, abs=1e-6)
    assert encoding.split_by_size([3, 3, 9, 1], 6) == [[0, 1], [2], [3]]


def test_options_are_read_alike_by_a_gpus_kernels_and_beside_others(kinds_system, monkeypatch):
    """With the plan for variable lengths, through its stand-in; twice the same question, with another task between.

    Fails if the trunk of a repeated question has no room for the padding of its batch.
    """
    inputs = [TextInput(QUESTION, choices=CHOICES), TextInput("a bus stop"), TextInput(QUESTION, choices=CHOICES[:2])]
    hints = ["quiz", "topics", "quiz"]
    padded = Predictor(kinds_system).predict(inputs, hints)
    assert padded[0].answer["probabilities"] == pytest.approx(_shares(kinds_system, CHOICES), abs=1e-6)
    monkeypatch.setattr(DynamoModel, "variable_length", True)
    for ours, theirs in zip(Predictor(kinds_system).predict(inputs, hints), padded, strict=True):
        if ours.task == "quiz":
            assert ours.answer["probabilities"] == pytest.approx(theirs.answer["probabilities"], abs=1e-5)


def test_options_are_the_sequence_that_they_stand_for(kinds_system):
    """Against one option alone, as a plain sequence in which the question does not see the option.

    The question's states are those without any option; fails if it sees one.
    """
    system = kinds_system
    route = system.route_of("quiz")

    def hidden(choices):
        source = system.source.encode(QUESTION, choices=choices)
        packed = system.collate([system.tasks["quiz"].unanswered(source, route)])
        output = system.model(packed.batch, system.model.oracle_weights(packed.routes))
        return output.hidden, packed.views[0]

    with_one, view = hidden(CHOICES[:2])
    with_more, other = hidden(CHOICES)
    torch.testing.assert_close(with_one[view.tokens[0]], with_more[other.tokens[0]], rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(with_one[view.markers], with_more[other.markers[:2]], rtol=1e-3, atol=2e-4)


def test_an_input_with_options_goes_where_options_are_taken(kinds_system):
    predictor = Predictor(kinds_system)
    routes = predictor.route([TextInput(QUESTION, choices=CHOICES), TextInput(QUESTION)])
    quiz = kinds_system.route_of("quiz")
    assert routes[0].probabilities[quiz] == 1.0
    assert routes[1].probabilities[quiz] == 0.0
    assert sum(routes[1].probabilities) == pytest.approx(1.0)
    made = predictor.predict([TextInput(QUESTION, choices=CHOICES), TextInput(QUESTION)])
    assert made[0].task == "quiz"
    assert made[1].task != "quiz"
    assert made[0].answer["choice"] in CHOICES
    reader = RequestReader(predictor)
    with pytest.raises(
        InputError, match="'quiz' chooses among options, and there are none; give two or more as choices"
    ):
        reader.question({"text": "a"}, "quiz", None, {})
    with pytest.raises(InputError, match="'topics' takes no choices; leave them out"):
        reader.question({"text": "a", "choices": ["b", "c"]}, "topics", None, {})
    for wrong in ("b", ["b"], ["b", 1]):
        with pytest.raises(ConfigError, match=r"input: choices should be (a list of texts|two texts or more, found 1)"):
            reader.question({"text": "a", "choices": wrong}, None, None, {})


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(kinds_system):
    """Sets a calibration for the time of a test."""
    before = {name: task.calibration for name, task in kinds_system.tasks.items()}

    def put(name, **values):
        kinds_system.tasks[name].calibration = AnswerCalibration(**values)
        return kinds_system

    yield put
    for name, task in kinds_system.tasks.items():
        task.calibration = before[name]


def _answer(system, name, text="the bed was fine", **more):
    return Predictor(system).predict([TextInput(text, **more)], [name])[0].answer


def test_a_temperature_divides_the_logits(calibrated, kinds_system):
    plain = torch.tensor(list(_answer(kinds_system, "topics")["probabilities"].values()))
    cooled = torch.tensor(list(_answer(calibrated("topics", temperature=2.0), "topics")["probabilities"].values()))
    torch.testing.assert_close(cooled, torch.softmax(plain.log() / 2, dim=0), rtol=1e-4, atol=1e-6)


def test_each_label_of_several_has_its_threshold(calibrated, kinds_system):
    shares = _answer(kinds_system, "aspects")["probabilities"]
    just = [share + (0.01 if number % 2 else -0.01) for number, share in enumerate(shares.values())]
    given = _answer(calibrated("aspects", thresholds=just), "aspects")["labels"]
    assert given == list(ASPECTS)[::2]


def test_a_missing_answer_is_told_by_its_threshold(calibrated):
    context = "Ada sang in Rome and Ben in Oslo."
    never, always = ({"thresholds": [limit]} for limit in (1.1, 0.0))
    silent = _answer(calibrated("faq", **never), "faq", "who sang?", context=context)
    assert (silent["answer"], silent["start"], silent["end"]) == ("", 0, 0)
    spoken = _answer(calibrated("faq", **always), "faq", "who sang?", context=context)
    assert spoken["answer"] == silent["best_guess"] == context[spoken["start"] : spoken["end"]]
    assert 0 <= spoken["answerable"] == silent["answerable"] <= 1


def test_the_threshold_of_missing_answers_is_the_one_of_the_best_f1():
    """Worked by hand: 0.9 right, 0.7 without an answer, 0.6 half right, 0.2 without: best between 0.7 and 0.9."""
    task = _task("qa", no_answer=True)
    answers = [{"answerable": p, "best_guess": "Ada Abel"} for p in (0.9, 0.7, 0.6, 0.2)]
    targets = [[["Ada Abel", 0]], [], [["Ada", 0]], []]
    examples = [Example("q", "Ada Abel", json.dumps(target)) for target in targets]
    assert task.tune(answers, examples).thresholds == [pytest.approx(0.8)]


def test_an_unsure_label_is_withheld_with_the_best_guess_beside_it():
    task = _task("classification", labels=["a", "b"], precision=0.9)
    task.calibration = AnswerCalibration(abstain_below=0.7)
    unsure, sure = task._answer([0.6, 0.4]), task._answer([0.2, 0.8])
    assert (unsure["label"], unsure["best_guess"], unsure["score"]) == (None, "a", 0.6)
    assert (sure["label"], sure["best_guess"]) == ("b", "b")
    scores = task.score([unsure, sure], [Example("x", None, "1"), Example("x", None, "1")])
    assert (scores["accuracy"], scores["coverage"], scores["kept_accuracy"]) == (0.5, 0.5, 1.0)


def test_of_many_labels_the_likeliest_are_shown():
    task = _task("classification", labels=[f"l{n}" for n in range(30)], top_labels=3)
    shares = [(n + 1) / 465 for n in range(30)]
    assert list(task.shown(task._answer(shares))["probabilities"]) == ["l29", "l28", "l27"]


def test_tags_of_words_come_from_their_first_token(kinds_system, tiny_roberta):
    task = _task("token_classification", tags=["D", "N", "V"])
    example = task.read({"tokens": ["the", "cat", "sat"], "tags": ["D", "N", "V"]}, "row 1")
    assert json.loads(example.target) == [[0, 3, "D"], [4, 7, "N"], [8, 11, "V"]]
    found = [{"tag": tag, "start": s, "end": e, "score": 1.0, "word": ""} for s, e, tag in json.loads(example.target)]
    wrong = [{**one, "tag": "V"} for one in found]
    assert task.score([{"tags": found}, {"tags": wrong}, None], [example] * 3)["accuracy"] == pytest.approx(4 / 9)
    (trivial,) = task.trivial_answers([example], [Example("the dog sat", None, "[]")])
    assert [one["tag"] for one in trivial["tags"]] == ["D", "D", "V"]


def test_numbers_of_the_classes_stand_for_tags():
    task = _task("token_classification", tags=["D", "N"])
    assert json.loads(task.read({"tokens": ["the", "cat"], "tags": [0, 1]}, "row 1").target)[1] == [4, 7, "N"]
