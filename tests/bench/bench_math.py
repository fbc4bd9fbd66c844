"""`rewards.math` beside Math-Verify: extract and compare, no pair seen twice, CPU seconds of one process, by hand.

    python tests/bench/bench_math.py [--pairs 60] [--rounds 3]

Both see the same completions (some prose and a box) and bare-LaTeX golds; Math-Verify gets its gold between dollars,
as it needs it. The last row is a GRPO batch: 16 prompts x 16 completions that repeat a few answers, where our verdicts
are cached. Rounds alternate, medians are printed; our verdicts are checked first.
"""

import argparse
import random
import time
from statistics import median

import math_verify

from rewards import accuracy_reward
from rewards.math import extract_answer, verdict, verify

PROSE = "First we simplify, then we collect the terms, and at last we check the result against the question. " * 6
FORMS = {
    # form: (gold, right answer, wrong answer, times faster we must be), for random numbers 1 < a < b
    "integer": ("{a}", "{a}", "{b}", 20),
    "decimal": ("{a}.5", "{a}.50", "{b}.5", 20),
    "fraction": (r"\frac{{{a}}}{{{b}}}", r"\frac{{{a}0}}{{{b}0}}", r"\frac{{{b}}}{{{a}}}", 20),
    "surd": (r"{a}\sqrt{{7}}", r"\sqrt{{7\cdot {a}^2}}", r"\sqrt{{{b}}}", 10),
    "tuple": ("({a},{b})", "({a}, {b}.0)", "({b},{a})", 10),
    "interval": ("[{a},{b})", r"\left[{a},\frac{{{b}}}{{1}}\right)", "({a},{b})", 10),
    "polynomial": ("x^2+{a}x+{b}", "{b}+x(x+{a})", "x^2+{b}x+{a}", 10),
    "set": (r"\{{1,{a},{b}\}}", r"\{{{b},{a},1\}}", r"\{{2,{a},{b}\}}", 10),
}
CONFIG = [math_verify.LatexExtractionConfig(boxed_match_priority=0), math_verify.ExprExtractionConfig()]


def completion(answer):
    return rf"{PROSE}So the answer is \boxed{{{answer}}}."


def build_pairs(form, count, generator):
    """(gold, completion) pairs, right and wrong in turn."""
    gold, right, wrong, _ = FORMS[form]
    pairs = []
    for index in range(count):
        a, b = sorted(generator.sample(range(2, 5000), 2))
        answer = wrong if index % 2 else right
        pairs.append((gold.format(a=a, b=b), completion(answer.format(a=a, b=b))))
    return pairs


def build_batch(generator):
    """16 prompts x 16 completions; a group holds a handful of different answers, three in four of them numbers."""
    pairs = []
    for prompt in range(16):
        form = "integer" if prompt % 4 else generator.choice(list(FORMS))
        kinds = build_pairs(form, 2, generator)
        gold = kinds[0][0]
        texts = [kinds[0][1], kinds[0][1], kinds[1][1], completion("17")]
        pairs += [(gold, generator.choice(texts)) for _ in range(16)]
    return pairs


def ours(pairs):
    verdict._check.cache_clear()
    verdict._parse.cache_clear()
    return [verify(gold, extract_answer(text, "boxed")) for gold, text in pairs]


def our_reward(pairs):
    verdict._check.cache_clear()
    verdict._parse.cache_clear()
    golds, texts = zip(*pairs)
    return accuracy_reward(completions=texts, solution=golds)


def theirs(pairs):
    parse = math_verify.parse
    return [math_verify.verify(parse(f"${gold}$", CONFIG), parse(text, CONFIG)) for gold, text in pairs]


def rate(function, pairs, repeats):
    """Checks a CPU second."""
    begin = time.process_time()
    for _ in range(repeats):
        function(pairs)
    return len(pairs) * repeats / (time.process_time() - begin)


def report(name, mine, peer, must):
    print(f"{name:<12} {mine:>10.0f} {peer:>12.1f} {mine / peer:>7.0f} {must:>6}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="of each form and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    generator = random.Random(0)
    print(f"{'checks/s':<12} {'ours':>10} {'math-verify':>12} {'ratio':>7} {'must':>6}")
    theirs(build_pairs("fraction", 2, generator))  # warms up
    for form, (*_, must) in FORMS.items():
        rates = []
        for _ in range(options.rounds):
            pairs = build_pairs(form, options.pairs, generator)
            if ours(pairs) != [index % 2 == 0 for index in range(options.pairs)]:
                raise SystemExit(f"{form}: judged wrong")
            rates.append((rate(ours, pairs, 10), rate(theirs, pairs, 1)))
        report(form, *map(median, zip(*rates)), must)
    batches = [build_batch(generator) for _ in range(options.rounds)]
    rates = [(rate(our_reward, batch, 10), rate(theirs, batch, 1)) for batch in batches]
    report("GRPO batch", *map(median, zip(*rates)), 50)


if __name__ == "__main__":
    main()
