"""The paper in miniature: its experiments on a made-up world, by this project's own recipes, and the page made of them.

The parts, in the order in which they build on each other:

| module | what it gives |
|---|---|
| `world` | contexts, questions and answers, as ids and as text |
| `start` | `make_start(folder)`: the tokenizer and the model pre-trained on short contexts |
| `pairs` | `make_pairs(PairPlan(side, seed), start, folder)`: triplets sampled from that model |
| `methods` | `METHODS`: each row of the tables as a recipe with overrides |
| `runs` | `run_method(Run(method, seed, overrides), start, pairs, folder)`: trained by the recipe, scored by length |
| `pool` | `open_pool(workers, logs)`: processes to run these in, side by side |
"""
