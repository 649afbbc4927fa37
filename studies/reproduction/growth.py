"""Growing the window in rounds, against one training at the last length and against staying at 8x."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from solopo_nemo.pages import figures
from solopo_nemo.pages.figures import Chart, Look
from solopo_nemo.pages.render import write_page
from solopo_nemo.pages.tables import Table
from solopo_nemo.pages.theme import Theme
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from studies.paths import ASSETS
from studies.pool import Job, Pool
from studies.reproduction.claims import decide
from studies.reproduction.embedded import EMBEDDED
from studies.reproduction.methods import solo
from studies.reproduction.pairs import PairPlan, make_pairs
from studies.reproduction.runs import BASE, Result, Run, run_method, sample_flops
from studies.reproduction.start import Start
from studies.reproduction.statistics import Interval, contrast, over_seeds_and_questions
from studies.results import Results, machine, revision, versions

ROUNDS = (2, 8, 32)
"""Lengths of the rounds, as multiples of the short one."""
STAY = 8
LENGTHS = (1, 2, 4, 8, 16, 32)
BATCH = 8
"""Samples of a step."""
METHOD = replace(
    solo("dpo", "-higher", ", higher side held"),
    overrides=(
        *("objective.detach_higher=true", "objective.alpha=2", "optim.min_lr=1e-4"),
        *(f"trainer.global_batch={BATCH}", f"trainer.micro_batch={BATCH}"),
    ),
)
"""The embedded default: the only form that is safe at any gap between short and long contexts (the collapse study)."""
IN_ROUNDS = "rounds"
ARMS = {
    BASE: "starting model",
    IN_ROUNDS: f"in rounds: {', '.join(f'{length}x' for length in ROUNDS)}",
    "direct-cost": f"{ROUNDS[-1]}x at once, equal cost",
    "direct-data": f"{ROUNDS[-1]}x at once, equal data",
    "stay-cost": f"{STAY}x, equal cost",
    "stay-data": f"{STAY}x, equal data",
}
RESULTS = "growth.json"
_CHART = Chart("growth", "Accuracy by length", "Bars are 95 % intervals over seeds and questions.")
_LOOKS = (("grey", ""), ("blue", "o"), ("orange", "s"), ("orange", "^"), ("green", "s"), ("green", "^"))


@dataclass(frozen=True)
class GrowthSize:
    """The size of the comparison.

    Attributes:
        seeds: seeds of each arm.
        steps: optimizer steps of a round, of :data:`BATCH` samples.
        pairs: pairs of a round.
        questions: questions per length and seed.
    """

    seeds: int = 3
    steps: int = 24
    pairs: int = 128
    questions: int = 128

    def plan(self, seed: int, long: int, rounds: int = 1) -> PairPlan:
        """The pairs of a number of rounds."""
        size = rounds * self.pairs
        return PairPlan("short", seed, size, questions=4 * size, samples=8, temperature=1.2, long=long)

    def seconds(self) -> float:
        """Estimated seconds on an idle core: sampling, training and scoring."""
        steps, last, stay = len(ROUNDS) * self.steps, ROUNDS[-1], STAY
        sampling = 0.3 * self.pairs * 3 * len(ROUNDS)
        training = 3 * self.steps * sum(map(_step_seconds, ROUNDS)) + steps * (
            _step_seconds(last) + _step_seconds(stay)
        )
        starts = 40.0 * (len(ROUNDS) + 4)
        return self.seeds * (sampling + training + starts + len(ARMS) * 0.2 * self.questions)


def _step_seconds(long: int) -> float:
    """Measured: a linear and a quadratic part in thousands of tokens."""
    tokens = BATCH * (2 * EMBEDDED.prompt_tokens(1) + EMBEDDED.prompt_tokens(long)) / 1000
    return 0.05 * tokens + 0.0054 * tokens**2


@dataclass(frozen=True)
class Policy(Start):
    """A policy as the starting model: its Hugging Face folder in both roles."""

    @property
    def hf(self) -> Path:
        """The folder."""
        return self.folder

    @property
    def nemo(self) -> Path:
        """The folder too."""
        return self.folder


def run_growth(size: GrowthSize, out: Path, results: Path, document: Path, workers: int) -> dict[str, Any]:
    """Run what is missing, and write the results and the page.

    Returns:
        The summary: the verdict of each comparison.

    Raises:
        RunFault: a job failed.
    """
    pool, start, folder = Pool(workers, out / "logs"), Policy(EMBEDDED_MODEL), out / "growth"
    seeds, share = range(1, size.seeds + 1), size.seconds() / size.seeds / 6
    plans = [size.plan(seed, long, len(ROUNDS)) for seed in seeds for long in (ROUNDS[-1], STAY)]
    pool.run(
        "sampling pairs",
        [Job(f"pairs {plan.name}", make_pairs, (plan, start, folder / "pairs", EMBEDDED), 90.0) for plan in plans],
    )
    jobs = [
        Job(f"{arm}-{seed}", _arm, (arm, seed, size, start, folder), share)
        # the longest first
        for seed in seeds
        for arm in sorted(ARMS, key=lambda arm: (arm != IN_ROUNDS, arm == BASE))
    ]
    done: dict[str, Result] = pool.run("training and scoring", jobs)
    about = {"machine": machine(), "versions": versions(), "revision": revision(), "size": asdict(size)}
    Results(results / RESULTS, about, [asdict(done[f"{arm}-{seed}"]) for arm in ARMS for seed in seeds]).save()
    return write_growth(results, document)


def _arm(arm: str, seed: int, size: GrowthSize, start: Start, folder: Path) -> Result:
    """Train and score an arm. A stored result is reused."""
    own = folder / f"{arm}-{seed}"
    found = own / "result.json"
    if found.is_file():
        return Result.read(found)
    if arm == BASE:
        result = Result(BASE, seed, "", [], EMBEDDED.score(start.hf, LENGTHS, size.questions, seed))
    elif arm == IN_ROUNDS:
        result = _rounds(seed, size, start, own)
    else:
        kind, equal = arm.split("-")
        long, steps = ROUNDS[-1] if kind == "direct" else STAY, len(ROUNDS) * size.steps
        run = Run(METHOD, seed, (), long, steps, LENGTHS, size.questions, EMBEDDED)
        if equal == "cost":
            spent = size.steps * sum(sample_flops(replace(run, long=length), start) for length in ROUNDS)
            run = replace(run, steps=max(1, round(spent / sample_flops(run, start))))
        pairs = size.plan(seed, long, len(ROUNDS)).path(folder / "pairs")
        result = run_method(run, start, pairs, own / "training")
    result = replace(result, method=arm)
    result.save(found)
    return result


def _rounds(seed: int, size: GrowthSize, start: Start, folder: Path) -> Result:
    """Train at one length after the other, each on pairs of the policy before; costs are those of all rounds."""
    done: list[Result] = []
    for number, long in enumerate(ROUNDS):
        # other questions in each round
        pairs = make_pairs(size.plan(100 * seed + number, long), start, folder / "pairs", EMBEDDED)
        lengths = LENGTHS if long == ROUNDS[-1] else ()
        run = Run(METHOD, seed, (), long, size.steps, lengths, size.questions, EMBEDDED)
        done.append(run_method(run, start, pairs, folder / f"round-{long}x", keep=True))
        start = Policy(folder / f"round-{long}x" / "run" / "hf")
    sums = {
        name: sum(getattr(one, name) for one in done) for name in ("steps", "seconds", "tokens", "tokens_long", "wall")
    }
    flops = sum(one.flops * one.steps for one in done) / sums["steps"]
    return replace(done[-1], **sums, flops=flops, peak_gib=max(one.peak_gib for one in done))


def write_growth(folder: Path, document: Path) -> dict[str, Any]:
    """Write the page and its plot from the results.

    Raises:
        UserError: the results are missing or have another format.
    """
    stored = Results.read(folder / RESULTS)
    runs = stored.parse(lambda results: [Result.from_json(run) for run in results.runs])
    by_arm = {arm: [run for run in runs if run.method == arm] for arm in ARMS}
    outcomes = {
        arm: {run.seed: {score.length: score.outcomes() for score in run.scores} for run in found}
        for arm, found in by_arm.items()
    }
    verdicts = _verdicts(outcomes)
    figures.draw(folder, _CHART.name, lambda theme: _draw(by_arm, theme))
    rows = [
        (ARMS[arm], *_costs(found), *(_share(_accuracy(found, n)) for n in LENGTHS)) for arm, found in by_arm.items()
    ]
    head = ("arm", "steps", "PFLOP", "seconds", *(f"{length}x" for length in LENGTHS))
    write_page(
        document,
        ASSETS / "growth.md.jinja",
        folder=folder.name,
        chart=_CHART,
        size=stored.about["size"],
        batch=BATCH,
        last=ROUNDS[-1],
        reached=any(_accuracy(found, ROUNDS[-1]).mean >= 0.05 for found in by_arm.values()),
        method=METHOD.title,
        arms=Table(head, rows),
        verdicts=Table(
            ("in rounds less", "at", "points", "in rounds is better"),
            [
                (ARMS[arm], f"{length}x", _points(interval), decide(interval))
                for (arm, length), interval in verdicts.items()
            ],
            "llrl",
        ),
    )
    said = {f"{arm} at {length}x": decide(interval) for (arm, length), interval in verdicts.items()}
    return {"document": str(document), "verdicts": said}


def _verdicts(outcomes: dict[str, Any]) -> dict[tuple[str, int], Interval | None]:
    """Differences of growth in rounds to every other arm, at the last length, the one of staying, and the short one."""
    return {
        (arm, length): contrast({IN_ROUNDS: 1.0, arm: -1.0}, outcomes, [length])
        for length in (ROUNDS[-1], STAY, 1)
        for arm in ARMS
        if arm != IN_ROUNDS
    }


def _accuracy(found: Sequence[Result], length: int) -> Interval:
    return over_seeds_and_questions([[run.score(length).outcomes()] for run in found]).clipped(0.0, 1.0)


def _costs(found: Sequence[Result]) -> tuple[str, str, str]:
    """Steps, and means over the seeds of the FLOPs and of the seconds of training."""
    count = len(found)
    flops = sum(BATCH * run.flops * run.steps for run in found) / count / 1e15
    return f"{found[0].steps}", f"{flops:.3g}", f"{sum(run.seconds for run in found) / count:.0f}"


def _share(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} ({100 * interval.low:.0f}-{100 * interval.high:.0f})"


def _points(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval.mean:+.1f} ({100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def _draw(by_arm: dict[str, list[Result]], theme: Theme) -> Figure:
    figure, (axis,) = figures.panels(1, height=3.8)
    for (arm, found), (colour, marker) in zip(by_arm.items(), _LOOKS, strict=True):
        means = {length: _accuracy(found, length) for length in LENGTHS}
        spans = {length: (100 * one.mean, 100 * one.low, 100 * one.high) for length, one in means.items()}
        figures.points(axis, theme, Look(ARMS[arm], colour, marker), spans)
    figures.powers_of_two(axis, {length: f"{length}x" for length in LENGTHS})
    axis.set(ylim=(-3, 103), xlabel="context length", ylabel="accuracy, %")
    figures.legend(figure, 2)
    return figure


def plan_growth(size: GrowthSize, workers: int) -> dict[str, Any]:
    """Print and return what would run, and how long it takes."""
    minutes = size.seconds() / 60
    summary = {
        "runs": size.seeds * len(ARMS),
        "core_minutes": round(minutes, 1),
        "minutes": round(minutes / workers, 1),
    }
    print(json.dumps(summary))
    return summary
