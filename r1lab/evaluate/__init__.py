"""Held-out evaluation: pass@1, pass@k, maj@k and greedy accuracy, compared and drawn problem by problem.

problems.py    rows -> prompts: embedded tasks, mathematics, HumanEval
judge.py       completions -> what is right, strictly and format-blind
statistics.py  judged completions -> numbers, with intervals over problems
split.py       one split sampled, decoded greedily and judged
store.py       evaluations on disk
compare.py     two evaluations of the same problems, paired
plot.py        pass@k curves
"""

from r1lab.evaluate.compare import Comparison, compare_evaluations
from r1lab.evaluate.judge import Judged, RewardFunction, find_answer, judge_answer, judge_completions
from r1lab.evaluate.plot import plot_pass_at_k
from r1lab.evaluate.problems import build_human_eval, load_problems
from r1lab.evaluate.split import (
    SplitOutcome,
    build_generate,
    evaluate_split,
    join_shares,
    judge_split,
    reflection_token_ids,
)
from r1lab.evaluate.statistics import (
    bootstrap_intervals,
    majority_is_correct,
    mcnemar_test,
    pass_at_k,
    problem_scores,
    sign_flip_test,
    summarize,
)
from r1lab.evaluate.store import Evaluation, load_evaluation, write_evaluation

__all__ = [
    "Comparison",
    "Evaluation",
    "Judged",
    "RewardFunction",
    "SplitOutcome",
    "bootstrap_intervals",
    "build_generate",
    "build_human_eval",
    "compare_evaluations",
    "evaluate_split",
    "find_answer",
    "join_shares",
    "judge_answer",
    "judge_completions",
    "judge_split",
    "load_evaluation",
    "load_problems",
    "majority_is_correct",
    "mcnemar_test",
    "pass_at_k",
    "plot_pass_at_k",
    "problem_scores",
    "reflection_token_ids",
    "sign_flip_test",
    "summarize",
    "write_evaluation",
]
