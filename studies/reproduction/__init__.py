"""Reproduction of the paper in miniature: experiments on synthetic facts with this project's recipes, and their page.

Each module uses those above it:

| module | content |
|---|---|
| `world` | contexts, questions and answers, as token ids and as text |
| `start` | `make_start(folder)`: tokenizer, and model pre-trained on short contexts |
| `ground`, `embedded` | what methods are compared on: this data, or the embedded questions of the default run |
| `pairs` | `make_pairs(PairPlan(side, seed), start, folder)`: triplets sampled from that model |
| `methods` | `METHODS`: each row of the tables as a recipe with overrides |
| `runs` | `run_method(Run(method, seed, overrides), start, pairs, folder)`: train with the recipe, score by length |
| `schedule` | `run_all(work, workers)`: run everything that is missing, in parallel, with `studies.pool` |
| `claims`, `charts`, `page` | verdicts on the paper's claims, and `docs/reproduction.md` |
"""
