"""Fill the tables of README.md and docs/ from the result files: ``python benchmarks/tables.py``.

A table stands between ``<!-- table: results/FILE.json KIND -->`` and ``<!-- /table -->``.
The pictures of the comparison and of the races are drawn anew too.
"""

import json
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import performance
import targets

from dynamo_mtl.evaluation.report import (
    cost_rows,
    rejection_rows,
    result_facts,
    result_rows,
    routing_rows,
    shift_rows,
    trivial_text,
)
from dynamo_mtl.evaluation.result import read_result
from dynamo_mtl.evaluation.result_figures import systems_picture
from dynamo_mtl.markdown import markdown_table

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
RESULT_KINDS = {
    "scores": lambda result: markdown_table(*result_rows(result)),
    "routing": lambda result: markdown_table(*routing_rows(result)),
    "rejection": lambda result: markdown_table(*rejection_rows(result)),
    "costs": lambda result: markdown_table(*cost_rows(result)),
    "facts": result_facts,
    "trivial": trivial_text,
}
SCORES = {
    "sentiment": ("accuracy",),
    "qa": ("f1", "exact_match"),
    "summarization": ("rouge1", "rouge2"),
    "code_generation": ("bleu", "sentence_bleu", "exact_match", "parses"),
    "translation": ("bleu", "chrf"),
}
"""What a table shows of a task's scores."""


def shown(task: str, scores: Container[str]) -> list[str]:
    """Those of ``SCORES`` that a file has: an older one lacks what has been added since."""
    return [name for name in SCORES[task] if name in scores]


def experiment_table(path: Path) -> str:
    """The variants of an experiment: scores, and the interval of the first one over examples."""
    content = json.loads(path.read_text(encoding="utf-8"))
    everywhere = set.intersection(*(set(found["scores"]) for found in content["variants"].values()))
    names = shown(content["task"], everywhere)
    rows: list[list[str]] = []
    for variant, found in content["variants"].items():
        low, high = found["interval"]
        scores = [f"{found['scores'][name]:.{1 if found['scores'][name] > 1 else 3}f}" for name in names]
        digits = 1 if high > 1 else 3
        between = f"{low:.{digits}f} to {high:.{digits}f}"
        rows.append([variant, scores[0], between, *scores[1:]])
    return markdown_table(["variant", names[0], "95 % interval", *names[1:]], rows)


def detail_table(path: Path) -> str:
    """What a result holds of each task beside its main metric."""
    result = read_result(path)
    scores = next(iter(result.systems.values()))
    columns = [
        (task, name) for task, main in result.main_metrics.items() for name in shown(task, scores[task]) if name != main
    ]
    rows = [
        [system, *(f"{scores[task][name]:.{1 if scores[task][name] > 1 else 3}f}" for task, name in columns)]
        for system, scores in result.systems.items()
    ]
    return markdown_table(["system", *(f"{task} {name}" for task, name in columns)], rows)


def parts_table(path: Path) -> str:
    """Scores on parts of each task's validation data."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            task, part, str(found["n"]), f"{100 * found['share_of_target_tokens']:.0f} %",
            ", ".join(
                f"{name} {found['scores'][name]:.{1 if found['scores'][name] > 1 else 3}f}"
                for name in shown(task, found["scores"])
            ),
        ]
        for task, parts in content["tasks"].items()
        for part, found in parts.items()
    ]  # fmt: skip
    return markdown_table(["task", "examples", "n", "share of target tokens", "scores"], rows)


def seeds_table(path: Path) -> str:
    """What a variant changes, or reaches where nothing was measured before it: mean, least and most of its seeds."""
    variants = json.loads(path.read_text(encoding="utf-8"))["variants"]
    runs = {name: list(found["seeds"].values()) for name, found in variants.items()}
    values = next(iter(runs.values()))[0]["after"]
    names = [name for name in values if name.startswith(("accuracy_", "loss_")) or name == "routing_loss"]
    rows: list[list[str]] = []
    for variant, seeds in runs.items():
        cells = [variant]
        for name in names:
            found = [seed["after"][name] - seed.get("before", {}).get(name, 0.0) for seed in seeds]
            sign = "+" if "before" in seeds[0] else ""
            mean = sum(found) / len(found)
            cells.append(f"{mean:{sign}.4f} ({min(found):{sign}.4f} to {max(found):{sign}.4f})")
        rows.append(cells)
    return markdown_table(["variant", *(name.replace("_", " ") for name in names)], rows)


def plan_table(path: Path) -> str:
    """What a configuration needs: updates and time by stretch, then parameters and memory."""
    content = json.loads(path.read_text(encoding="utf-8"))
    stretches = content["stretches"]
    times = [
        [
            name, f"{found['updates']:,}", f"{found['tokens_an_update']:,.0f}", f"{found['flops']:.1e}",
            f"{found['gpu_minutes']:.1f}", f"{found['hours_here']:.1f}",
        ]
        for name, found in stretches.items()
    ]  # fmt: skip
    total = [sum(found[key] for found in stretches.values()) for key in ("flops", "gpu_minutes", "hours_here")]
    times.append(["together", "", "", f"{total[0]:.1e}", f"{total[1]:.1f}", f"{total[2]:.1f}"])
    header = ["stretch", "updates", "tokens an update", "FLOP", "minutes on an A100", "hours on two CPU cores"]
    parameters = content["parameters"]
    sizes = [
        *([name, f"{size:.2f} GiB"] for name, size in content["gib"].items()),
        *([f"parameters: {part}", f"{parameters[part] / 1e6:.1f} million"] for part in ("backbone", "router")),
        *(
            [f"parameters: {part} of all tasks", f"{sum(parameters[part].values()) / 1e6:.1f} million"]
            for part in ("adapters", "heads")
        ),
    ]
    return markdown_table(header, times) + "\n\n" + markdown_table(["what", "size"], sizes)


def added_table(path: Path) -> str:
    """What adding a task changed: routing of every task before and after."""
    content = json.loads(path.read_text(encoding="utf-8"))
    added, routing = content["added"], content["routing"]
    kinds = list(routing["before"])
    rows = [
        [
            task,
            str(count),
            *(f"{routing[when][kind].get(task, 0):.4f}" for kind in kinds for when in ("before", "after")),
        ]
        for task, count in routing["n"].items()
    ]
    scores = added["scores"]
    own = ["" if when == "before" or kind not in added["routing"] else f"{added['routing'][kind]:.4f}"
           for kind in kinds for when in ("before", "after")]  # fmt: skip
    rows.append([f"{added['task']} (added)", str(scores["oracle"]["n"]), *own])
    header = ["task", "n", *(f"{kind}, {when}" for kind in kinds for when in ("before", "after"))]
    metric, answers = added["main_metric"], content["answers"]
    said = (
        f"Added in {added['train_seconds'] / 60:.1f} minutes from {added['training_examples']:,} examples: "
        f"{metric} {scores['dynamo'][metric]:.1f} routed, {scores['oracle'][metric]:.1f} with oracle routing. "
        f"The largest fall of an older task is {content['largest_fall']:.2f} points; {answers['identical']} of "
        f"{answers['n']} answers of the older tasks are the same to the bit."
    )
    return f"{markdown_table(header, rows)}\n\n{said}"


def highlights(path: Path) -> str:
    """What the README promises, each with one number out of its file; ``path`` is the file of the races."""

    def content(name: str) -> dict[str, Any]:
        return json.loads((path.parent / name).read_text(encoding="utf-8"))

    races = performance.read_bench(path)["races"]
    own, busy, added = content("own-tables.json"), content("busy.json"), content("add-task.json")
    rows, routed = sorted(own["rows"].values()), 100 * own["routing"]["instructed"]
    ratio = races["peft_mixed_k16"]["ratio"]
    return "\n".join(
        [
            "- **One batch for all tasks.** Mixed inputs of 16 tasks take PEFT, given the adapter of each row, "
            f"{ratio:.1f} times as long as ours with routing ([races](results/{path.name})).",
            f"- **Your own tables.** Three of {rows[0]} to {rows[-1]} rows, two of one type, by `dynamo init` and "
            f"`train`: {routed:.1f} % of instructed inputs find their task ([file](results/own-tables.json)).",
            "- **A task later changes no other.** After one was added, "
            f"{added['answers']['identical']} of {added['answers']['n']} answers of the others are the same to the bit "
            "([file](results/add-task.json)).",
            "- **Small, shared machines.** Beside a process that takes one of two cores, an answer takes "
            f"{busy['ratios']['busy_over_quiet_ms']:.2f} times its quiet time ([file](results/busy.json)).",
        ]
    )


def small_table(path: Path) -> str:
    """What fewer bits cost."""
    content = json.loads(path.read_text(encoding="utf-8"))
    forms = content["forms"]
    rows = [
        [
            name, f"{found['backbone_mib']:.0f}", f"{found['scores']['sentiment']['accuracy']:.3f}",
            f"{found['scores']['qa']['f1']:.1f}", f"{found['routing']:.4f}",
            f"{found['over_fp32']['ratio']:.2f} ({found['over_fp32']['low']:.2f} to {found['over_fp32']['high']:.2f})",
        ]
        for name, found in forms.items()
    ]  # fmt: skip
    header = [
        "form",
        "MiB (graphs: all of it)",
        "sentiment accuracy",
        "qa f1",
        "plain inputs routed right",
        "time over fp32",
    ]
    milliseconds = f"One input in fp32 takes {forms['fp32']['ms']:.0f} ms"
    return f"{markdown_table(header, rows)}\n\n{milliseconds} on {performance.describe_machine(content['machine'])}."


def uneven_table(path: Path) -> str:
    """What weights of labels and smoothing do where labels are rare, or wrong."""
    content = json.loads(path.read_text(encoding="utf-8"))
    made = {"rare": f"rarest 1:{content['ratio']}", "wrong": f"{100 * content['wrong']:.0f} % wrong"}
    rows = [
        [task, made[how], way, f"{own['macro_f1']:.3f}", f"{own['accuracy']:.3f}", f"{own['ece_after']:.3f}",
         str(own["training_examples"])]
        for task, hows in content["tasks"].items()
        for how, ways in hows.items()
        for way, own in ways.items()
    ]  # fmt: skip
    header = ["task", "labels", "training", "macro F1", "accuracy", "ece, calibrated", "rows"]
    return f"{markdown_table(header, rows)}\n\n{content['steps']} updates each, one seed."


def labels_table(path: Path) -> str:
    """Adapters beside full fine-tuning and a trivial system."""
    found = json.loads(path.read_text(encoding="utf-8"))

    def calibrated(own: Mapping[str, Any]) -> str:
        if own.get("ece_after") is None:
            return ""
        return f"{own['ece_before']:.3f} → {own['ece_after']:.3f} ({own['ece_chance']:.3f})"

    rows = [
        [name, own["type"], own["metric"], f"{own['trivial']:.3f}", f"**{own['adapter']:.3f}**",
         f"{own['full_finetuning']:.3f}" if "full_finetuning" in own else "", calibrated(own), str(own["n"])]
        for name, own in found["tasks"].items()
    ]  # fmt: skip
    header = ["task", "type", "metric", "trivial", "adapter", "full fine-tuning", "ece (by chance)", "rows"]
    ratio = "" if found["mean_ratio"] is None else f" Mean of adapter over full fine-tuning: {found['mean_ratio']:.3f}."
    return f"{markdown_table(header, rows)}\n\nAll adapters took {found['minutes']:.0f} minutes.{ratio}"


def files_table(path: Path) -> str:
    """A large file by the command, beside loops in Python."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [f"`dynamo predict` over {found['rows']:,} rows", f"{found['rows_per_second']:.0f} rows/s"],
        ["the best loop over batches in Python",
         f"{found['python_batches_per_second']:.0f} rows/s; the file is {found['ratio']:.2f} times as fast"],
        ["`transformers`' pipeline, same texts and weights, its best batch size",
         f"{found['transformers_pipeline_rows_per_second']:.0f} rows/s; the file is {found['times_transformers']:.1f} "
         "times as fast"],
        ["peak memory at 10,000 rows; at all", f"{found['peak_rss_mib_at_10k']:.0f} MiB; "
         f"{found['peak_rss_mib_at_1m']:.0f} MiB ({found['memory_ratio']:.2f} times)"],
        ["killed twice and resumed: the same bytes", "yes" if found["killed_resumed_equal"] else "no"],
    ]  # fmt: skip
    return markdown_table(["what", "measured"], rows)


def questions_table(path: Path) -> str:
    """What several questions about one text cost, and what the tap costs in quality."""
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = [count for count in next(iter(found["cost"].values())) if int(count) in (2, 6, 10, 20)]
    tasks = list(next(iter(found["quality"].values())))
    rows = [
        [f"{tap}{' (default)' if int(tap) == found['default_tap'] else ''}",
         *(f"{cost[count]['ratio']:.2f}" for count in counts),
         *(f"{found['quality'][tap][task]:.3f}" for task in tasks)]
        for tap, cost in found["cost"].items()
    ]  # fmt: skip
    return markdown_table(["tap", *(f"{count} questions" for count in counts), *tasks], rows)


def shift_table(path: Path) -> str:
    """Routing of inputs from elsewhere, and of validation rows of training's own data."""
    found = json.loads(path.read_text(encoding="utf-8"))
    own = found["in_distribution"]
    return (
        f"{markdown_table(*shift_rows(found))}\n\nOf the validation rows of training's own data, "
        f"{100 * own['macro']:.2f} % are routed right (mean over tasks) and {100 * own['rejected']:.1f} % rejected."
    )


def views_table(path: Path) -> str:
    """What views and general texts change, with several seeds."""
    found = json.loads(path.read_text(encoding="utf-8"))["views"]
    names = {"mean_right": "mean of the files", "worst_right": "worst file", "everyday": "everyday",
             "macro": "validation rows", "instructed": "with an instruction"}  # fmt: skip
    rows = [
        [variant, *(f"{own[key]['mean']:.3f} ± {own[key]['std']:.3f}" for key in names)]
        for variant, own in found.items()
    ]  # fmt: skip
    return markdown_table(["the router learns", *names.values()], rows)


def coherence_table(path: Path) -> str:
    """Typed questions by a public suite: shares of tests that hold."""
    found = json.loads(path.read_text(encoding="utf-8"))
    names = {"REP": "one question in other words or order", "BAT": "alone and in a batch", "MEA": "sums of chances",
             "LOG": "logic between questions", "CHO": "sets of options"}  # fmt: skip
    rows = [["requests; failed", f"{found['requests']:,}; {found['errors']}"]]
    rows += [[what, f"{found['pillars'][key]:.3f}"] for key, what in names.items() if found["pillars"][key] is not None]
    rows += [["overall", f"{found['overall']:.3f}"]] if found["overall"] is not None else []
    return markdown_table([f"{found['suite']}, jevbench {found['jevbench']}", "measured"], rows)


def serving_table(path: Path) -> str:
    """What the server did under load."""
    found = json.loads(path.read_text(encoding="utf-8"))
    through, over = found["throughput"], found["overload"]
    rows = [
        [f"{through['connections']} connections, {through['seconds']:.0f} s, tasks in turns: over one by one",
         f"{found['throughput_ratio']:.2f} × ({through['low']:.2f} to {through['high']:.2f})"],
        ["answers a second; failed", f"{through['batched_per_second']:.0f}; {found['errors']}"],
        ["a lone client: median, 99th percentile",
         f"{through['lone_p50_ms']:.0f}, {through['lone_p99_ms']:.0f} ms"],
        [f"four times what it can do ({over['sent_per_second']:.0f} a second): accepted, 99th percentile",
         f"{over['accepted_p99_ms']:.0f} ms of {over['deadline_ms']:.0f}"],
        ["… refused with 429, 99th percentile; 5xx", f"{over['rejected_p99_ms']:.1f} ms; {over['five_xx']}"],
        ["… until it answers as before", f"{over['recovery_seconds']:.2f} s"],
        [f"{found['abandoned']['clients']} clients that give up, then one",
         f"{found['abandoned_then_answered_seconds']:.2f} s"],
        [f"{found['idle_connections']['connections']} idle connections: median over without",
         f"{found['idle_connections']['p50_over_without']:.2f} ×"],
        ["HTTP beside the call itself, one connection", f"{found['http_overhead_ms']:.1f} ms"],
        ["until it answers after its start", f"{found['start']['ready_seconds']:.1f} s"],
    ]  # fmt: skip
    if "questions" in found:
        own = found["questions"]
        rows.append(
            [f"{own['tasks']} tasks about each text, {own['connections']} connections: 99th percentile; failed",
             f"{own['p99_ms']:.0f} ms of {own['deadline_ms']:.0f}; {own['errors']} of {own['requests']:,}"]
        )  # fmt: skip
    if "soak" in found:
        soak = found["soak"]
        rows.append(
            [f"{soak['minutes']:.0f} minutes, {soak['requests']:,} requests: memory; failed",
             f"{100 * soak['rss_growth']:+.1f} %; {soak['failures']}"]
        )  # fmt: skip
    return markdown_table(["load", "measured"], rows)


KINDS: dict[str, Callable[[Path], str]] = {
    "highlights": highlights,
    **{kind: lambda path, show=show: show(read_result(path)) for kind, show in RESULT_KINDS.items()},
    **{kind: lambda path, show=show: show(performance.read_bench(path)) for kind, show in performance.KINDS.items()},
    "added": added_table,
    "coherence": coherence_table,
    "details": detail_table,
    "experiment": experiment_table,
    "files": files_table,
    "labels": labels_table,
    "questions": questions_table,
    "parts": parts_table,
    "plan": plan_table,
    "seeds": seeds_table,
    "serving": serving_table,
    "shift": shift_table,
    "small": small_table,
    "targets": targets.targets_table,
    "uneven": uneven_table,
    "views": views_table,
}
"""What a table shows of its file."""
TABLE = re.compile(r"<!-- table: (\S+) (\w+) -->\n.*?<!-- /table -->", flags=re.DOTALL)


def filled(page: str) -> str:
    """The page with every table as the result files have it."""

    def table(match: re.Match[str]) -> str:
        file, kind = match.groups()
        return f"<!-- table: {file} {kind} -->\n\n{KINDS[kind](ROOT / file)}\n\n<!-- /table -->"

    return TABLE.sub(table, page)


if __name__ == "__main__":
    for path in PAGES:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    for picture in performance.curve_pictures(performance.read_bench(ROOT / "results/bench-cpu.json")):
        (ROOT / "docs" / f"{picture.name}.png").write_bytes(picture.png())
    questions = ROOT / "results" / "questions.json"
    of_questions = performance.question_pictures(json.loads(questions.read_text())) if questions.exists() else []
    for picture in of_questions:
        (ROOT / "docs" / f"{picture.name}.png").write_bytes(picture.png())
    (ROOT / "docs" / "compare.png").write_bytes(systems_picture(read_result(ROOT / "results/compare-cpu.json")).png())
