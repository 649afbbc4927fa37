"""The paper in miniature: experiments on synthetic facts, run by this project's own recipes, and the page of results.

The modules, each built on those above it:

| module | what it gives |
|---|---|
| `world` | contexts, questions and answers, as ids and as text |
| `start` | `make_start(folder)`: the tokenizer and the model pre-trained on short contexts |
| `pairs` | `make_pairs(PairPlan(side, seed), start, folder)`: triplets sampled from that model |
| `methods` | `METHODS`: each row of the tables as a recipe with overrides |
| `runs` | `run_method(Run(method, seed, overrides), start, pairs, folder)`: trained by the recipe, scored by length |
| `schedule` | `run_all(work, workers)`: everything that is missing, side by side in `studies.pool` |
| `claims`, `charts`, `page` | the paper's claims decided from the results, and `docs/reproduction.md` |
"""
