"""Every task type: reading rows, encoding targets, answering, scoring."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo_mtl.errors import DataError
from dynamo_mtl.model.heads import TokenHead
from dynamo_mtl.tasks.encoding import SourceEncoder, collate
from dynamo_mtl.tasks.generation_task import nearest_examples
from dynamo_mtl.tasks.qa import QuestionAnswering, QuestionAnsweringConfig
from dynamo_mtl.tasks.registry import task_types
from dynamo_mtl.tasks.task import Example
from dynamo_mtl.tasks.translation import Translation, TranslationConfig
from dynamo_mtl.tasks.vocabulary import backbone_vocabulary, mean_embeddings, train_vocabulary


def _task(kind, **settings_):
    task = task_types()[kind]
    return task(kind, task.Config(type=kind, **settings_))


def test_types_are_discovered():
    assert set(task_types()) == {
        "sentiment", "classification", "multi_label", "regression", "qa", "token_classification", "summarization",
        "code_generation", "translation", "multiple_choice",
    }  # fmt: skip


def test_labels_may_be_numbers_or_names_but_not_out_of_range():
    task = _task("sentiment")
    assert task.read({"text": "a", "label": 1}, "f, line 1").target == "1"
    assert task.read({"sentence": "a", "label": "0"}, "f, line 1").target == "0"
    assert task.read({"text": "a", "label": "positive"}, "f, line 1").target == "1"
    for label, target in ((True, "1"), ("False", "0"), (1.0, "1"), ("0.0", "0"), (" Positive ", "1")):
        assert task.read({"text": "a", "label": label}, "f, line 1").target == target
    for label in (2, -1, "good", 0.5, "1.5", "9" * 5000):
        with pytest.raises(DataError, match=r"f, line 7: label .* out of range"):
            task.read({"text": "a", "label": label}, "f, line 7")


def test_a_missing_column_is_named_with_those_found():
    with pytest.raises(DataError, match=r"line 3: task 'qa' needs a column 'context', found question, text"):
        _task("qa").read({"question": "x", "text": "y"}, "f, line 3")


def test_columns_can_be_renamed():
    task = _task("sentiment", columns={"text": "body"})
    assert task.read({"body": "a", "label": 1}, "here").text == "a"


def test_an_answer_must_stand_in_its_context():
    row = {"context": "abc def", "question": "q", "answers": {"text": ["def"], "answer_start": [4]}}
    assert json.loads(_task("qa").read(row, "here").target) == [["def", 4]]
    row["answers"] = {"text": ["def"], "answer_start": [3]}
    with pytest.raises(DataError, match=r"here: the answer 'def' .* does not stand at character 3"):
        _task("qa").read(row, "here")


def test_qa_labels_and_answers_are_characters_of_the_original_text(tiny_roberta):
    """A head that scores exactly the labelled tokens must give back the annotated text, in whichever window it lies."""
    from dynamo_mtl.model.backbone import load_tokenizer

    task = QuestionAnswering("qa", QuestionAnsweringConfig(type="qa"))
    encoder = SourceEncoder(load_tokenizer(tiny_roberta), max_length=40, overlap=12, max_windows=8)
    context = (
        "Zuerst kam 😀 José mit 12 Äpfeln. " * 3 + "Then Frau Müller-Lüdenscheidt sang. " + "The rest is silence. " * 3
    )
    for answer in ("José", "Müller-Lüdenscheidt", "silence"):
        start = context.index(answer)
        example = Example("who?", context, json.dumps([[answer, start]]))
        source = encoder.encode(example.text, example.context)
        encoded = task.encode(example, source, 0)
        assert len(source.windows) > 1
        packed = collate([encoded], 2)
        view = packed.views[0]
        hidden = torch.zeros(int(packed.batch.top_lengths.sum()), 2)
        for window, (first, last) in enumerate(zip(encoded.labels["start"], encoded.labels["end"], strict=True)):
            # No answer in a window: its first token must win there.
            hidden[view.tokens[window, first], 0] = 9.0
            hidden[view.tokens[window, last], 1] = 9.0
        head = TokenHead(2, 2)
        with torch.no_grad():
            head.out.weight.copy_(torch.eye(2))
            head.out.bias.zero_()
            answers = task.answers(head, hidden, view, [source])
        assert answers[0]["answer"] == answer
        assert context[answers[0]["start"] : answers[0]["end"]] == answer


@given(st.text(max_size=200))
@settings(max_examples=60, deadline=None)
def test_an_own_vocabulary_gives_every_text_back(own, text):
    from dynamo_mtl.tasks.encoding import clean

    assert own.decode([own.start, *own.encode(text, 10_000), own.end]) == clean(text)


@pytest.fixture(scope="module")
def own():
    return train_vocabulary(["def f(x):\n    return x", "Grüße aus Köln"] * 5, 320)


def test_code_keeps_indentation_and_line_breaks(own, tiny_roberta):
    from dynamo_mtl.model.backbone import load_tokenizer

    code = "class A:\n\tdef f(self):\n\t\treturn  {1: '</s> <s>'}\n\n\nif x:\n        pass\r\n"
    for vocabulary in (own, backbone_vocabulary(load_tokenizer(tiny_roberta))):
        ids = vocabulary.encode(code, 10_000)
        assert vocabulary.end not in ids
        assert vocabulary.decode(ids) == code


def test_own_embeddings_start_from_the_mean_of_the_backbones(own, tiny_roberta):
    from dynamo_mtl.model.backbone import load_tokenizer

    tokenizer = load_tokenizer(tiny_roberta)
    table = torch.randn(tokenizer.backend.get_vocab_size(), 4)
    rows = mean_embeddings(own, tokenizer, table)
    index = own.backend.token_to_id("urn")
    ids = tokenizer.backend.encode("urn", add_special_tokens=False).ids
    torch.testing.assert_close(rows[index], table[ids].mean(dim=0))
    torch.testing.assert_close(rows[own.start], table.mean(dim=0))


def test_translation_reads_pairs_of_any_language_and_names_it_in_its_wordings():
    task = Translation(
        "translation_fr", TranslationConfig(type="translation", target_language="French", target_code="fr")
    )
    example = task.read({"translation": {"en": "cat", "fr": "chat"}}, "here")
    assert (example.text, example.target) == ("cat", "chat")
    assert all("French" in wording for wording in task.instructions + task.evaluation_instructions)
    with pytest.raises(DataError, match="lacks one of the languages"):
        task.read({"translation": {"en": "cat", "de": "Katze"}}, "here")


def test_nearest_example_has_the_highest_word_overlap():
    train = [Example(t, None, t) for t in ("a b c", "a b d e", "x y")]
    assert [e.text for e in nearest_examples(train, [Example("a b d", None, ""), Example("y z", None, "")])] == [
        "a b d e",
        "x y",
    ]


def test_an_answer_of_another_type_scores_zero():
    example = Example("q", "abc", json.dumps([["abc", 0]]))
    assert set(_task("qa").score([None], [example]).values()) == {0.0}
    assert _task("sentiment").score([None], [Example("t", None, "1")])["accuracy"] == 0
    assert _task("translation").score([None], [Example("t", None, "Katze")])["chrf"] == 0


def test_code_reports_how_many_references_parse():
    task = _task("code_generation")
    examples = [Example("Do", None, "if x :"), Example("do", None, "return (")]
    scores = task.score([{"generated_text": "if  x :"}, {"generated_text": "y = 1"}], examples)
    assert scores["exact_match"] == 0.5
    assert scores["sentence_bleu"] == pytest.approx(50)
    assert scores["parses"] == 1.0
    assert scores["reference_parses"] == 0.5
    assert scores["uppercase_share"] == 0.5


def test_an_answer_of_another_label_set_is_wrong_and_not_a_crash():
    scores = _task("sentiment").score([{"label": "angry", "score": 1.0}], [Example("t", None, "1")])
    assert scores["accuracy"] == 0


def test_translation_reads_the_column_of_its_language():
    task = Translation("fr", TranslationConfig(type="translation", target_language="French", target_code="fr"))
    example = task.read({"en": "cat", "de": "Katze", "fr": "chat"}, "here")
    assert (example.text, example.target) == ("cat", "chat")
    with pytest.raises(DataError, match="needs a column 'target'"):
        task.read({"en": "cat", "de": "Katze"}, "here")


def test_own_wordings_may_hold_braces_and_are_scored_with():
    settings_ = {"instructions": ["Into {lang}:"], "evaluation_instructions": ["Say it in {language}:"]}
    task = _task("translation", **settings_)
    assert task.instructions == ["Into {lang}:"]
    assert task.evaluation_instructions == ["Say it in German:"]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": ["def"], "answer_start": ["four"]},
        {"text": ["def"], "answer_start": [None]},
        {"text": [5], "answer_start": [4]},
        {"text": "def", "answer_start": [4, 5]},
        {"text": ["def", "x"], "answer_start": [4]},
        ["ghi"],
        [5],
        "not json",
        7,
    ],
)
def test_malformed_answers_are_named(answers):
    with pytest.raises(DataError, match=r"f, line 2: 'answers' of task 'qa' should hold 'text' and 'answer_start'"):
        _task("qa").read({"context": "abc def", "question": "q", "answers": answers}, "f, line 2")


def test_answers_may_come_as_json_in_a_table_and_not_before_the_text():
    row = {"context": "abc def", "question": "q", "answers": '{"text": ["def"], "answer_start": [4]}'}
    assert json.loads(_task("qa").read(row, "here").target) == [["def", 4]]
    row["answers"] = [{"text": "def", "answer_start": -3}]
    with pytest.raises(DataError, match="does not stand at character -3"):
        _task("qa").read(row, "here")


def test_of_several_answers_the_best_that_is_well_formed_is_given(system):
    """Fails if the first is taken as it is, or if one that parses is preferred over a better one that does too."""
    code, german = system.tasks["code_generation"], system.tasks["translation"]
    broken, fine, worse = ({"generated_text": text} for text in ("x = (", "if x :", "x = 1"))
    assert code.choose([broken, fine, worse]) is fine
    assert code.choose([broken]) is broken
    anything = [{"translation_text": text} for text in ("x = (", "ein Hund")]
    assert german.choose(iter(anything)) is anything[0]
