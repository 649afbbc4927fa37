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
from studies.paths import ASSETS
from studies.pool import Job, Pool
from studies.reproduction.claims import decide
from studies.reproduction.methods import METHODS
from studies.reproduction.pairs import PairPlan, make_pairs
from studies.reproduction.runs import BASE, Result, Run, run_method, sample_flops
from studies.reproduction.scoring import score_model
from studies.reproduction.start import Start, make_start
from studies.reproduction.statistics import Interval, contrast, over_seeds_and_questions
from studies.reproduction.world import prompt_tokens
from studies.results import Results, machine, revision, versions

ROUNDS = (2, 8, 32)
"""Lengths of the rounds, as multiples of the short one."""
STAY = 8
LENGTHS = (1, 2, 4, 8, 16, 32)
METHOD = METHODS["solo-dpo"]
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
        steps: optimizer steps of a round, of 16 samples.
        pairs: pairs of a round.
        questions: questions per length and seed.
    """

    seeds: int = 3
    steps: int = 50
    pairs: int = 400
    questions: int = 256

    def plan(self, seed: int, long: int, rounds: int = 1) -> PairPlan:
        """The pairs of a number of rounds."""
        size = rounds * self.pairs
        return PairPlan("short", seed, size, questions=6 * size, samples=8, long=long)

    def seconds(self) -> float:
        """Estimated seconds on an idle core: the starting model, sampling, training and scoring."""
        sampling = (len(ROUNDS) + 2 * len(ROUNDS)) * (10 + 0.07 * self.pairs)
        tokens = {long: 16 * (2 * prompt_tokens(1) + prompt_tokens(long)) / 1000 for long in ROUNDS}
        steps = len(ROUNDS) * self.steps
        once = self.steps * sum(0.02 + 0.027 * tokens[long] for long in ROUNDS)
        training = 3 * once + steps * (0.04 + 0.027 * (tokens[ROUNDS[-1]] + tokens[STAY]))
        return 75 + self.seeds * (sampling + training + 8 * 6.0 + 6 * 0.06 * self.questions)


@dataclass(frozen=True)
class Policy(Start):
    """A trained policy as the starting model of the next round: its Hugging Face folder in both roles."""

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
    pool, start, folder = Pool(workers, out / "logs"), Start(out / "start"), out / "growth"
    pool.run("starting model", [Job("start", make_start, (start.folder,), 75.0)])
    seeds, share = range(1, size.seeds + 1), size.seconds() / size.seeds / 6
    plans = [size.plan(seed, long, len(ROUNDS)) for seed in seeds for long in (ROUNDS[-1], STAY)]
    pool.run(
        "sampling pairs",
        [Job(f"pairs {plan.name}", make_pairs, (plan, start, folder / "pairs"), 90.0) for plan in plans],
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
        result = Result(BASE, seed, "", [], score_model(start.hf, LENGTHS, size.questions, seed))
    elif arm == IN_ROUNDS:
        result = _rounds(seed, size, start, own)
    else:
        kind, equal = arm.split("-")
        long, steps = ROUNDS[-1] if kind == "direct" else STAY, len(ROUNDS) * size.steps
        run = Run(METHOD, seed, long=long, steps=steps, lengths=LENGTHS, questions=size.questions)
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
        pairs = make_pairs(size.plan(100 * seed + number, long), start, folder / "pairs")
        lengths = LENGTHS if long == ROUNDS[-1] else ()
        run = Run(METHOD, seed, long=long, steps=size.steps, lengths=lengths, questions=size.questions)
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
    """Steps, and means over the seeds of the FLOPs (16 samples a step) and of the seconds of training."""
    count = len(found)
    flops = sum(16 * run.flops * run.steps for run in found) / count / 1e15
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
