"""Decoding: the cache changes nothing, and beam search is what a slow reference says."""

import itertools

import pytest
import torch
from tiny import nearly

from dynamo_mtl.inference.decoding import Decoder, make_cache
from dynamo_mtl.inference.draft import Draft, Hypothesis
from dynamo_mtl.inference.predictor import Predictor
from dynamo_mtl.inference.requests import TextInput
from dynamo_mtl.model.batch import Target, Window, build_batch
from dynamo_mtl.tasks.generation_task import GenerationConfig

SOURCES = [[0, 40, 41, 42, 2], [0, 50, 2], [0, 60, 61, 62, 63, 64, 65, 2]]
WORDS = [[(1, 0), (3, 1)], [(1, 0)], [(1, 0), (2, 1), (4, 0), (5, 2)]]
"""What may be copied of each source: places and numbers of words."""
PIECES = [[40, 42], [50], [60, 61, 64]]
TASK = "translation"
COPIES = "code_generation"


@pytest.fixture
def ready(system):
    """A system whose logits differ enough for search to matter."""
    torch.manual_seed(4)
    with torch.no_grad():
        for task in (TASK, COPIES):
            head = system.model.head(task)
            head.embeddings.normal_(std=0.35)
            head.bias.normal_(std=0.3)
            head.bias[1] += 1.0
        pointer = head.pointer
        pointer.fed.normal_()
        pointer.query.weight.normal_(std=0.7)
        pointer.key.weight.normal_(std=0.7)
    return system.model.eval() and system


def _copyable(system, task, hidden, starts, rows):
    """What the sources in ``rows`` may copy."""
    if task != COPIES:
        return None
    most = max(len(WORDS[row]) for row in rows)
    padded = torch.tensor([WORDS[row] + [(0, -1)] * (most - len(WORDS[row])) for row in rows])
    pieces = torch.tensor([PIECES[row] + [0] * (3 - len(PIECES[row])) for row in rows])
    return system.model.head(task).copyable(hidden[starts[:, None] + padded[..., 0]], padded[..., 1], pieces)


def _weights(system, rows):
    return torch.softmax(torch.arange(rows * 5, dtype=torch.float32).reshape(rows, 5).sin() * 3, dim=-1)


def _join(decoder, system, settings, task, rows):
    """Let the answers to some of the sources join a decoder."""
    weights = _weights(system, len(SOURCES))
    batch = build_batch([Window(s, row) for row, s in enumerate(SOURCES)], [], system.first_position)
    with torch.inference_mode():
        output = system.model(batch, weights, record=True)
    cache = make_cache(output.recorded, batch, rows, settings.max_new_tokens, 4)
    source = _copyable(system, task, output.hidden, batch.top_starts[torch.tensor(rows)], rows)
    drafts = [Draft(task, weights[row], 0, 1, settings) for row in rows]
    decoder.add(drafts, cache, range(5), source)
    return drafts


def _decode(system, settings, task=TASK):
    decoder = Decoder(system.model)
    drafts = _join(decoder, system, settings, task, [0, 1, 2])
    while decoder.drafts:
        decoder.step()
    return [draft.best() for draft in drafts]


def _next_log_probabilities(system, row, ids, task=TASK):
    """Without a cache: source and target through a full pass."""
    weights = _weights(system, len(SOURCES))[row : row + 1]
    head, fed = system.model.head(task), [0, *ids]
    size = head.vocabulary_size
    pieces = [PIECES[row][i - size] if i >= size else 0 for i in fed] if task == COPIES else None
    batch = build_batch([Window(SOURCES[row], 0)], [Target(0, task, fed, pieces)], system.first_position)
    with torch.no_grad():
        output = system.model(batch, weights)
        source = _copyable(system, task, output.hidden, batch.top_starts, [row])
        last = batch.target_slices[task][1]
        return torch.log_softmax(head(output.hidden[last - 1 : last], source), dim=-1)[0]


def _slow_beam(system, row, settings, task=TASK):
    beams, finished = [(0.0, [])], []
    for step in range(settings.max_new_tokens):
        candidates = []
        for total, ids in beams:
            values = _next_log_probabilities(system, row, ids, task)
            if len(ids) < settings.min_new_tokens:
                values[1] = float("-inf")
            n = settings.no_repeat_ngram_size
            for token in range(len(values)):
                grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] if n else []
                if n and len(ids) >= n - 1 and tuple([*ids, token][-n:]) in grams:
                    continue
                if values[token] > float("-inf"):
                    candidates.append((total + float(values[token]), ids, token))
        candidates.sort(key=lambda c: -c[0])
        beams = []
        for rank, (total, ids, token) in enumerate(candidates[: 2 * settings.num_beams]):
            if token == 1:
                if rank < settings.num_beams:
                    finished.append(Hypothesis(ids, total, len(ids) + 1))
            elif len(beams) < settings.num_beams:
                beams.append((total, [*ids, token]))
        if len(finished) >= settings.num_beams:
            break
        if step + 1 == settings.max_new_tokens:
            finished += [Hypothesis(ids, total, len(ids)) for total, ids in beams]
    return max(finished, key=lambda h: h.score(settings.length_penalty))


@pytest.mark.parametrize(
    "settings",
    [
        GenerationConfig(max_new_tokens=8),
        GenerationConfig(max_new_tokens=8, min_new_tokens=3),
        GenerationConfig(max_new_tokens=10, no_repeat_ngram_size=2),
        GenerationConfig(max_new_tokens=7, num_beams=3, length_penalty=0.0),
        GenerationConfig(max_new_tokens=7, num_beams=3, length_penalty=2.0, no_repeat_ngram_size=2),
    ],
    ids=["greedy", "minimum", "no repeats", "beam", "beam long"],
)
def test_decoding_with_a_cache_equals_a_slow_search_without_one(ready, settings):
    got = _decode(ready, settings)
    expected = [_slow_beam(ready, row, settings) for row in range(len(SOURCES))]
    assert [h.ids for h in got] == [h.ids for h in expected]
    assert [h.log_probability for h in got] == pytest.approx([h.log_probability for h in expected], abs=1e-4)
    assert len({tuple(h.ids) for h in got}) > 1


@pytest.mark.parametrize("beams", [1, 3])
def test_copied_words_are_decoded_as_a_slow_search_without_a_cache_would(ready, beams):
    """Fails if a copied word is fed as another one, or beams change places without what they may copy."""
    settings = GenerationConfig(max_new_tokens=7, num_beams=beams, no_repeat_ngram_size=3)
    got = _decode(ready, settings, COPIES)
    expected = [_slow_beam(ready, row, settings, COPIES) for row in range(len(SOURCES))]
    assert [h.ids for h in got] == [h.ids for h in expected]
    assert [h.log_probability for h in got] == pytest.approx([h.log_probability for h in expected], abs=1e-4)
    size = ready.model.head(COPIES).vocabulary_size
    assert any(i >= size for h in got for i in h.ids)
    assert any(i < size for h in got for i in h.ids)


def test_answers_of_any_task_join_a_running_decoder_and_leave_it(ready):
    """Against slow searches, one by one. Fails if rows, what they may copy or their mixtures change places."""
    plan = {
        0: [
            (TASK, [0, 2], GenerationConfig(max_new_tokens=9)),
            (COPIES, [1], GenerationConfig(max_new_tokens=8, min_new_tokens=7)),
        ],
        2: [(COPIES, [2, 0], GenerationConfig(max_new_tokens=6, num_beams=3))],
        3: [(TASK, [1, 0, 2], GenerationConfig(max_new_tokens=7, num_beams=2, no_repeat_ngram_size=2))],
        14: [(COPIES, [1, 2], GenerationConfig(max_new_tokens=5, length_penalty=0.0))],
    }
    decoder, drafts, ended, together = Decoder(ready.model), [], [], set()
    for step in range(30):
        for task, rows, settings in plan.get(step, []):
            joined = _join(decoder, ready, settings, task, rows)
            drafts += [(draft, row) for draft, row in zip(joined, rows, strict=True)]
        if decoder.drafts:
            together.add(len({draft.head for draft in decoder.drafts}))
            ended += decoder.step()
    assert together == {1, 2}
    assert len(ended) == len(set(ended)) == len(drafts) == 10
    for draft, row in drafts:
        expected = _slow_beam(ready, row, draft.settings, draft.head)
        assert (draft.head, draft.best().ids) == (draft.head, expected.ids)
        assert draft.best().log_probability == pytest.approx(expected.log_probability, abs=1e-4)


def test_an_answer_that_has_ended_never_outgrows_the_cache(ready):
    """The longest source ends at once and keeps its row. Fails if it is counted on until there is no place left."""
    decoder = Decoder(ready.model)
    first = _join(decoder, ready, GenerationConfig(max_new_tokens=1), TASK, [2])
    settings = GenerationConfig(max_new_tokens=9, min_new_tokens=8)
    others = [_join(decoder, ready, settings, TASK, [1])[0] for _ in range(4)]
    assert decoder.step() == first
    assert len(decoder.drafts) == 5
    while decoder.drafts:
        decoder.step()
    expected = _slow_beam(ready, 1, settings)
    assert [draft.best().ids for draft in others] == [expected.ids] * 4


def test_sampling_draws_first_tokens_as_often_as_the_model_says(ready):
    """Against the softmax of a pass without a cache, and seeded. Fails if the temperature is left out."""
    temperature, draws = 0.7, 400
    settings = GenerationConfig(max_new_tokens=1, sampling_temperature=temperature)
    torch.manual_seed(0)
    drawn = [[h.ids for h in _decode(ready, settings)] for _ in range(draws)]
    for row in range(len(SOURCES)):
        expected = torch.softmax(_next_log_probabilities(ready, row, []) / temperature, dim=0)
        expected[0] += expected[1]  # an answer that ends at once has no token
        counts = torch.zeros_like(expected)
        for answers in drawn:
            counts[answers[row][0] if answers[row] else 0] += 1
        error = (expected * (1 - expected) / draws).sqrt()
        assert ((counts / draws - expected).abs() <= 4.5 * error + 1 / draws).all()
    torch.manual_seed(0)
    assert [h.ids for h in _decode(ready, settings)] == drawn[0]
    assert len({str(answers) for answers in drawn}) > 10


def test_no_ngram_is_repeated(ready):
    with torch.no_grad():
        ready.model.head(TASK).bias[1] -= 20
    free = _decode(ready, GenerationConfig(max_new_tokens=30))
    held = _decode(ready, GenerationConfig(max_new_tokens=30, no_repeat_ngram_size=2))

    def repeats(ids):
        grams = list(itertools.pairwise(ids))
        return len(grams) - len(set(grams))

    assert sum(repeats(h.ids) for h in free) > 0
    assert sum(repeats(h.ids) for h in held) == 0


def test_length_penalty_prefers_longer_answers():
    short, long = Hypothesis([5], -2.0, 2), Hypothesis([5] * 7, -5.0, 8)
    assert short.score(0) > long.score(0)
    assert short.score(1) < long.score(1)


def test_answers_are_the_same_one_by_one_and_batched(system):
    predictor = Predictor(system)
    inputs = [
        TextInput("A wonderful film."),
        TextInput("Who sang?", "Ada sang. Tom slept. " * 12),
        TextInput("The man buys an apple."),
        TextInput("People stopped. A fire closed the harbour. " * 8),
        TextInput(""),
    ]
    hints = ["sentiment", "qa", "translation", "summarization", None]
    together = predictor.predict(inputs, hints)
    for index, (one, hint) in enumerate(zip(inputs, hints, strict=True)):
        alone = predictor.predict([one], [hint])[0]
        assert alone.task == together[index].task
        assert alone.route.probabilities == pytest.approx(together[index].route.probabilities, abs=1e-5)
        assert alone.answer == nearly(together[index].answer)


def test_route_gives_the_probabilities_of_predict(system):
    predictor = Predictor(system)
    inputs = [TextInput("A wonderful film."), TextInput("Who sang?", "Ada sang. " * 60)]
    routed = predictor.route(inputs)
    for row, prediction in zip(routed, predictor.predict(inputs), strict=True):
        assert row.probabilities == pytest.approx(prediction.route.probabilities, abs=1e-5)
        assert prediction.task == list(system.tasks)[row.probabilities.index(row.confidence)]


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_a_hint_changes_the_answer_and_not_the_reported_routing(system, top_k):
    system.model.router.config = system.model.router.config.model_copy(update={"top_k": top_k})
    predictor = Predictor(system)
    inputs = [TextInput("A wonderful film."), TextInput("The man buys an apple.")]
    free = predictor.predict(inputs)
    hinted = predictor.predict(inputs, ["sentiment", None])
    assert hinted[0].task == "sentiment"
    assert [p.route.probabilities for p in hinted] == [pytest.approx(p.route.probabilities) for p in free]
    assert hinted[1].task == free[1].task
    assert hinted[1].answer["score"] == pytest.approx(free[1].answer["score"], abs=1e-4)


def test_several_tasks_on_one_text_share_the_trunk(system, monkeypatch):
    """Answers are those of single calls. Fails if the layers below the adapters run once a task."""
    predictor = Predictor(system)
    text, other = TextInput("A wonderful film about a small town."), TextInput("The man buys an apple.")
    inputs, tasks = [text, other, text, text], ["sentiment", "translation", "translation", "summarization"]
    alone = [predictor.predict([i], [t])[0] for i, t in zip(inputs, tasks, strict=True)]
    seen = []
    trunk = system.model.trunk
    monkeypatch.setattr(
        system.model, "trunk", lambda batch, **kw: seen.append(len(batch.windows)) or trunk(batch, **kw)
    )
    together = predictor.predict(inputs, tasks)
    lengths = [len(w.ids) for i in (text, other) for w in system.source.encode(i.text).windows]
    assert seen == [sum(lengths)]
    for one, many in zip(alone, together, strict=True):
        assert one.task == many.task
        assert many.answer == nearly(one.answer)
        assert one.route.probabilities == pytest.approx(many.route.probabilities, abs=1e-5)
