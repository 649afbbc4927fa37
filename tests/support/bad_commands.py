"""Commands with something wrong in them, one line each, and what the complaint has to name.

``{tmp}`` is a folder of the case's own, ``{bad}`` the folder of broken things, ``{model}`` the embedded model, ``{ok}``
a file of good triplets. Recipes get an ``output_dir`` unless they name one.
"""

from __future__ import annotations

RECIPES = """
unknown key                  | objective.bta=1                         | there is no key objective.bta (
unknown section              | optimizer.lr=1                          | optimizer
unknown group option         | objective=nope                          | nope
address of a model           | model.init=https://huggingface.co/a/b    | model.init=a/b
unknown model                | model=gpt5                              | gpt5
unknown group                | objectiv=dpo                            | objectiv
not an override              | alpha                                   | alpha
text that needs quotes       | logger.wandb=a=b                        | 'logger.wandb="a=b"'
a space without quotes       | data.train={bad}/a b                     | /a b'
a home of nobody             | data.train=~no_such_user/x.jsonl        | ~no_such_user
half a list                  | +plugins=[a                             | +plugins=[a
no key                       | =3                                      | =3
added without a plus         | trainer.steps=3                         | trainer.steps
added with a plus            | +trainer.steps=3                        | trainer.steps
a deleted key                | ~trainer.seed                           | trainer.seed
wrong type                   | trainer.global_batch=many               | trainer.global_batch
a fraction                   | trainer.max_steps=1.5                   | trainer.max_steps
a list                       | trainer.max_steps=[1]                   | trainer.max_steps
wrong boolean                | parallel.sequence=perhaps               | parallel.sequence
wrong logger                 | logger.tensorboard=loud                 | logger.tensorboard
a broken interpolation       | data.train=${nowhere}                   | nowhere
bad recompute                | model.recompute=some                    | model.recompute
bad row chunk                | model.logits_chunk_size=0                       | model.logits_chunk_size
bad precision                | trainer.precision=fp8                   | trainer.precision
bad evaluation               | evaluation.name=mmlu                    | evaluation.name
no questions of the suite    | evaluation.limit=0                      | evaluation.limit
best by what                 | trainer.select_best=glue                | trainer.select_best
best by two                  | trainer.select_best='builtin,ruler_qa'    | trainer.select_best
no questions                 | evaluation.questions=0                  | evaluation.questions
no lengths                   | evaluation.lengths=[]                   | evaluation.lengths
length zero                  | evaluation.lengths=[0]                  | evaluation.lengths
endless length               | evaluation.lengths=[1000]               | evaluation.lengths
bad score                    | data.score=first                        | data.score
bad template mismatch        | data.template_mismatch=drop             | data.template_mismatch
half of the labels swapped   | objective.label_smoothing=0.5           | objective.label_smoothing
negative label smoothing     | objective.label_smoothing=-0.1          | objective.label_smoothing
labels of no pair            | objective=sft +objective.label_smoothing=0.1 | objective.label_smoothing
no place on the hub          | hub.push=mine                           | hub.push=mine
a logger that is missing     | logger.mlflow=tests                     | logger.mlflow=tests: the package mlflow is not installed
another logger               | logger.trackio=tests                    | logger.trackio=tests
one more logger              | logger.swanlab=tests                    | logger.swanlab=tests
bad too_long                 | data.too_long=cut                       | data.too_long
learning rate zero           | optim.lr=0                              | optim.lr
negative learning rate       | optim.lr=-1                             | optim.lr
learning rate NaN            | optim.lr=nan                            | optim.lr
learning rate infinite       | optim.lr=inf                            | optim.lr
minimum above                | optim.min_lr=1                          | optim.min_lr
warm-up longer than the run  | optim.warmup_ratio=1.5                  | optim.warmup_ratio
beta1 of one                 | optim.beta1=1                           | optim.beta1
beta2 negative               | optim.beta2=-0.1                        | optim.beta2
eps zero                     | optim.eps=0                             | optim.eps
weight decay negative        | optim.weight_decay=-1                   | optim.weight_decay
clip negative                | optim.clip_grad=-1                      | optim.clip_grad
no steps                     | trainer.max_steps=0                     | trainer.max_steps
no epochs                    | trainer.epochs=0                        | trainer.epochs
no global batch              | trainer.global_batch=0                  | trainer.global_batch
no micro-batch               | trainer.micro_batch=0                   | trainer.micro_batch
negative seed                | trainer.seed=-1                         | trainer.seed
no checkpoints               | trainer.checkpoint_every=0              | trainer.checkpoint_every
none kept                    | trainer.keep_checkpoints=0              | trainer.keep_checkpoints
no time                      | trainer.timeout_minutes=0               | trainer.timeout_minutes
bad nonfinite                | trainer.nonfinite=ignore                | trainer.nonfinite
negative alpha               | objective.alpha=-1                      | objective.alpha
alpha NaN                    | objective.alpha=nan                     | objective.alpha
beta zero                    | objective.beta=0                        | objective.beta
beta of another type         | objective.beta=high                     | objective.beta
bad alignment                | objective.align=all                     | objective.align
bad align_on                 | objective.align_on=logits               | objective.align_on
bad distance                 | objective.distance=cosine               | objective.distance
bad huber delta              | objective.huber_delta=0                 | objective.huber_delta
bad detach                   | objective.detach_short=maybe            | objective.detach_short
negative nll weight          | objective.nll_weight=-1                 | objective.nll_weight
bad prompt                   | objective.prompt=medium                 | objective.prompt
bad reference                | objective.reference=gpu                 | objective.reference
reference without adapters   | objective.reference=adapter_off         | objective.reference
a copy beside adapters       | peft=lora objective.reference=online    | objective.reference
method that is not there     | peft=dora                               | peft
method by its name           | peft.name=lora                          | peft=lora
rank without adapters        | peft.rank=8                             | peft=lora
rank zero                    | peft=lora peft.rank=0                   | peft.rank
LoRA rank that is no number  | peft=lora peft.rank=high                | peft.rank
rank null                    | peft=lora peft.rank=null                | peft.rank
alpha of adapters zero       | peft=lora peft.alpha=0                  | peft.alpha
dropout of everything        | peft=lora peft.dropout=1                | peft.dropout
unknown target               | peft=lora peft.targets=[q_proj,qkv]     | peft.targets
targets that match nothing   | peft=lora peft.targets=[]               | peft.targets
target of another type       | peft=lora peft.targets=7                | peft.targets
adapter without LoRA         | model.adapter={bad}/adapter             | peft=lora
no such adapter              | peft=lora model.adapter=/no/such/folder | model.adapter
adapter of no kind           | peft=lora model.adapter={bad}/adapter   | model.adapter
both alignments              | objective.prompt=long                   | objective.align
full without a reference     | objective=simpo +objective.alignment_reference=full | alignment_reference
option of another objective  | objective=simpo +objective.lambda_=1    | objective.lambda_
objective without a name     | objective=plugin                        | objective.name
unregistered objective       | objective=plugin objective.name=mine    | mine
plugin that is not there     | +plugins=[no_such_package.po]           | no_such_package
plugins of another type      | +plugins=7                              | plugins: must be a list, as in [a,b]
option of a plugin           | objective=plugin objective.name=mine objective.beta=2 | takes a plus: +objective.beta (
global batch not divisible   | trainer.global_batch=5 trainer.micro_batch=2 | trainer.global_batch
global batch over data ranks | trainer.global_batch=4 parallel.data=3  | trainer.global_batch
tensor zero                  | parallel.tensor=0                       | parallel.tensor
data zero                    | parallel.data=0                         | parallel.data
heads not divisible          | parallel.tensor=3                       | parallel.tensor
too many tensor ranks        | parallel.tensor=64                      | parallel.tensor
layers not divisible         | parallel.pipeline=3                     | parallel.pipeline
Ulysses heads                | parallel.context=3 parallel.cp_comm_type=a2a trainer.global_batch=16 | parallel.cp_comm_type=p2p
sequence parallel alone      | parallel.sequence=true                  | parallel.sequence
no expert ranks              | parallel.expert=0                       | parallel.expert
experts of a dense model     | parallel.expert=2                       | has no experts
router loss of no router     | model.moe_aux_loss=0.1                  | model.moe_aux_loss
z-loss of no router          | model.moe_z_loss=0.1                    | model.moe_z_loss
router loss below zero       | model.moe_aux_loss=-0.1                 | model.moe_aux_loss
expert channels beyond ranks | parallel.expert=2 parallel.expert_tensor=2 | parallel.expert_tensor
expert channels alone        | parallel.tensor=2 parallel.expert_tensor=1 | parallel.expert of 2
experts not divisible        | model=custom model.init={bad}/experts parallel.expert=3 parallel.data=3 trainer.global_batch=12 | 4 experts
experts, tokens sent twice   | model=custom model.init={bad}/experts parallel.tensor=2 | parallel.sequence=true
experts on too few ranks     | model=custom model.init={bad}/experts parallel.expert=4 parallel.data=2 trainer.global_batch=8 | parallel.expert=4
a stage without experts      | model=custom model.init={bad}/experts_first parallel.pipeline=2 | parallel.pipeline=2: a stage
a stage's adapters of experts alone | model=custom model.init={bad}/experts_then peft=lora peft.targets=[up_proj,down_proj] parallel.pipeline=2 | add a module of the attention
experts of unequal gathers   | model=custom model.init={bad}/experts parallel.tensor=2 parallel.sequence=true parallel.expert=2 parallel.expert_tensor=2 parallel.data=2 trainer.global_batch=8 | gloo
adapters of split experts    | model=custom model.init={bad}/experts peft=lora peft.dropout=0.1 parallel.tensor=2 parallel.sequence=true | peft.dropout=0.1
expert ranks of another type | parallel.expert=two                     | parallel.expert
z-loss below zero            | model.moe_z_loss=-1                     | model.moe_z_loss
router loss as text          | model=custom model.init={bad}/experts model.moe_aux_loss=high | model.moe_aux_loss
expert channels undivided    | model=custom model.init={bad}/experts_odd parallel.tensor=2 parallel.sequence=true | parallel.expert_tensor=2
windows in a ring            | model=custom model.init={bad}/gemma parallel.context=2 parallel.cp_comm_type=p2p | use parallel.cp_comm_type=a2a
one head for two ranks       | model=custom model.init={bad}/gemma parallel.tensor=2 | key/value heads
more experts than there are  | model=custom model.init={bad}/experts_many           | num_experts_per_tok=9
one expert of weight 1       | model=custom model.init={bad}/experts_one            | num_experts_per_tok=1
no layer with experts        | model=custom model.init={bad}/experts_nowhere        | mlp_only_layers
a layer that is not there    | model=custom model.init={bad}/experts_layer          | mlp_only_layers
shared experts               | model=custom model.init={bad}/experts_shared         | shared_expert_intermediate_size
noise of a router            | model=custom model.init={bad}/experts_noise          | router_jitter_noise
experts of another family    | model=custom model.init={bad}/experts_qwen2          | 'qwen2_moe'
context mode, not packed     | parallel.context=2 parallel.cp_comm_type=all_gather | packed
rope scaling unknown         | model.rope_scaling={type:ntk,factor:2}  | model.rope_scaling
rope scaling, no mapping     | model.rope_scaling=4                    | model.rope_scaling
rope scaling, no factor      | model.rope_scaling={type:yarn}          | factor
one sample too few           | data.builtin.samples=0                  | data.builtin.samples
more samples than there are  | data.builtin.samples=100000             | 1220
one paragraph                | data.builtin.long_paragraphs=1          | data.builtin.long_paragraphs
endless built-in contexts    | data.builtin.long_paragraphs=100000     | paragraphs
one token                    | data.max_tokens=1                       | data.max_tokens
longer than the window       | data.max_tokens=100000000               | data.max_tokens
none fits                    | data.max_tokens=5 data.too_long=drop    | data.max_tokens
no such model                | model.init=/no/such/folder              | model.init
no such relative model       | model.init=./no/such/folder             | model.init
a model that is a file       | model.init={bad}/text.txt               | model.init
an empty model folder        | model.init={bad}/empty                  | model.init
broken model configuration   | model.init={bad}/broken_config          | broken_config
model of an unknown family   | model.init={bad}/unknown_family         | no_such_family
model of another family      | model.init={bad}/other_family           | gpt2
a key that nobody reads      | model.init={bad}/unknown_key            | logit_scale
both spellings of RoPE       | model.init={bad}/two_thetas             | contradicts
a size as text               | model.init={bad}/text_size              | hidden_size='128'
end token as text            | model.init={bad}/text_end               | generation_config.json
two sets of weights          | model.init={bad}/two_weights            | shard.safetensors
model without weights        | model.init={bad}/no_weights             | no_weights
model with cut weights       | model.init={bad}/cut_weights            | git lfs pull
model and an adapter         | model.init={bad}/with_adapter           | LoRA adapter
an adapter without its model | model.init={bad}/adapter                | LoRA adapter
model without a tokenizer    | model.init={bad}/no_tokenizer           | tokenizer
model with a broken tokenizer| model.init={bad}/broken_tokenizer       | broken_tokenizer
tokenizer without a template | model.init={bad}/no_template data.train={ok} | chat template
transformers 5, no file      | model.init={bad}/mistral_common         | copy tokenizer.json
a switch of no template      | data.chat_template_kwargs={thinking:false} | data.chat_template_kwargs.thinking
a think block that is dropped| model.init={bad}/opens_think            | '<think>\\n' before the answer
end beyond the vocabulary    | model.init={bad}/end_beyond             | has id 2048
the same, tensor-parallel    | model.init={bad}/end_beyond parallel.tensor=2 parallel.data=1 | vocab_size=2048
tokenizer without an end     | model.init={bad}/no_eos data.train={bad}/plain.jsonl | eos_token
checkpoint without hf        | model.init={bad}/without_hf             | hf/
foreign checkpoint           | model.init={bad}/foreign/step_000004    | model.trust_checkpoint
changed initial checkpoint   | model.init={bad}/changed/step_000004    | __0_0.distcp
resume what                  | trainer.resume=sometimes                | trainer.resume
resume from nowhere          | trainer.resume=/no/such/step_000001     | trainer.resume
resume from a file           | trainer.resume={bad}/text.txt           | trainer.resume
resume from another name     | trainer.resume={bad}/named_oddly        | trainer.resume
resume from an empty folder  | trainer.resume={bad}/empty              | trainer.resume
resume from a foreign one    | trainer.resume={bad}/foreign/step_000004 | model.trust_checkpoint
resume from a cut one        | trainer.resume={bad}/cut/step_000004    | __0_0.distcp
resume from a changed one    | trainer.resume={bad}/changed/step_000004 | __0_0.distcp
resume from one that lacks a file | trainer.resume={bad}/lost/step_000004 | io.json
no such file                 | data.train=/no/such/file.jsonl          | /no/such/file.jsonl
an empty data folder         | data.train={bad}/empty                  | empty
a folder without data        | data.train={bad}/no_data                | no_data
another kind of file         | data.train={bad}/text.txt               | text.txt
another encoding             | data.train={bad}/latin.jsonl            | latin.jsonl:1
a cut archive                | data.train={bad}/cut.jsonl.gz           | cut.jsonl.gz
no archive                   | data.train={bad}/not.jsonl.gz           | not.jsonl.gz
no parquet                   | data.train={bad}/not.parquet            | not.parquet
several splits               | data.train={bad}/splits                 | splits
files of several splits      | data.train={bad}/test_alone             | test.jsonl
output is a file             | output_dir={bad}/text.txt               | output_dir
output below a file          | output_dir={bad}/text.txt/out           | output_dir
output nowhere               | output_dir=/proc/no/such                | output_dir
output of nothing            | output_dir=                             | output_dir
"""

TOOLS = """
contexts of nothing     | build_contexts   |                                                         | --source
contexts, no source     | build_contexts   | {contexts} --source /no/such.jsonl                      | /no/such.jsonl
contexts, nobody's home | build_contexts   | {contexts} --source=~no_such_user/x.jsonl               | ~no_such_user
contexts, empty source  | build_contexts   | {contexts} --source {bad}/empty_file.jsonl              | empty_file.jsonl
contexts, other source  | build_contexts   | {contexts} --source {bad}/ok.jsonl                      | ok.jsonl
contexts, broken source | build_contexts   | {contexts} --source {bad}/broken_line_4711.jsonl        | broken_line_4711.jsonl
contexts, text source   | build_contexts   | {contexts} --source {bad}/text.txt                      | text.txt
contexts, no tokenizer  | build_contexts   | {contexts} --tokenizer /no/such                         | /no/such
contexts, no template   | build_contexts   | {contexts} --tokenizer {bad}/no_template                | chat template
contexts, number        | build_contexts   | {contexts} --short-tokens few                           | --short-tokens
contexts, range         | build_contexts   | {contexts} --long-tokens 900-800                        | --long-tokens
contexts, order         | build_contexts   | {contexts} --long-tokens 50                             | --long-tokens
contexts, twice         | build_contexts   | {contexts} --long-tokens 500,500                        | --long-tokens
contexts, lengths file  | build_contexts   | {contexts} --long-tokens {bad}/text.txt                 | text.txt:1
contexts, limit         | build_contexts   | {contexts} --limit 0                                    | --limit
contexts, limit type    | build_contexts   | {contexts} --limit all                                  | --limit
contexts, workers       | build_contexts   | {contexts} --workers 0                                  | --workers
contexts, format        | build_contexts   | {contexts} --format trivia                              | --format
contexts, pairs         | build_contexts   | {contexts} --pairs silver                               | --pairs
contexts, pool          | build_contexts   | {contexts} --pool /no/such.jsonl                        | /no/such.jsonl
contexts, pool rows     | build_contexts   | {contexts} --pool {bad}/ok.jsonl                        | ok.jsonl:1
contexts, out           | build_contexts   | {contexts} --out {tmp}/out.json                         | --out
contexts, in place      | build_contexts   | {contexts} --out {bad}/questions.jsonl                  | questions.jsonl: is read and would be replaced
contexts, option        | build_contexts   | {contexts} --fast                                       | --fast
questions of nothing    | build_questions  |                                                         | --source
questions, no source    | build_questions  | {questions} --source /no/such.txt                       | /no/such.txt
questions, no folder    | build_questions  | {questions} --source /no/such                           | /no/such
questions, no documents | build_questions  | {questions} --source {bad}/empty                        | empty
questions, empty file   | build_questions  | {questions} --source {bad}/empty_file.jsonl             | empty_file.jsonl
questions, no text      | build_questions  | {questions} --source {bad}/ok.jsonl                     | ok.jsonl:1
questions, prompts      | build_questions  | {questions} --prompts /no/such                          | --prompts /no/such
questions, passages     | build_questions  | {questions} --passage-tokens 3                          | --passage-tokens
questions, no address   | build_questions  | {questions} --backend openai                            | --base-url
questions, out          | build_questions  | {questions} --out {tmp}/out.json                        | --out
questions, in place     | build_questions  | {questions} --source {bad}/ok.jsonl --out {bad}/ok.jsonl | ok.jsonl: is read and would be replaced
pairs of nothing        | sample_pairs     |                                                         | --contexts
pairs, no contexts      | sample_pairs     | {pairs} --contexts /no/such.jsonl                       | /no/such.jsonl
pairs, in place         | sample_pairs     | {pairs} --out {bad}/contexts.jsonl                      | contexts.jsonl: is read and would be replaced
pairs, no answers       | sample_pairs     | {pairs} --contexts {bad}/ok.jsonl                       | answers
pairs, broken contexts  | sample_pairs     | {pairs} --contexts {bad}/broken_line_4711.jsonl         | broken_line_4711.jsonl
pairs, backend          | sample_pairs     | {pairs} --backend grpc                                  | --backend
pairs, no address       | sample_pairs     | {pairs} --backend openai                                | --base-url
pairs, no server        | sample_pairs     | {pairs} --backend openai --base-url http://127.0.0.1:9/v1 --patience 0.1 | --base-url
pairs, odd address      | sample_pairs     | {pairs} --backend openai --base-url nowhere --patience 0.1 | --base-url
pairs, own field        | sample_pairs     | {pairs} --backend openai --base-url x --extra-body {"n":2} | --extra-body: n:
pairs, serve and hf     | sample_pairs     | {pairs} --serve x                                       | --serve
evaluate, serve         | evaluate         | {evaluate} --serve x                                    | --serve x
pairs, switch           | sample_pairs     | {pairs} --chat-template-kwargs {"think":1}              | --chat-template-kwargs.think
pairs, switches         | sample_pairs     | {pairs} --chat-template-kwargs think                    | --chat-template-kwargs
contexts, switch        | build_contexts   | {contexts} --chat-template-kwargs {"think":1}           | --chat-template-kwargs.think
evaluate, switch        | evaluate         | {evaluate} --chat-template-kwargs {"think":1}           | --chat-template-kwargs.think
convert, in place       | convert_pairs    | {ok} {ok} --to trl                                      | ok.jsonl: is read and would be replaced
inspect, switch         | inspect_triplets | {ok} --chat-template-kwargs {"think":1}                 | --tokenizer
pairs, one sample       | sample_pairs     | {pairs} --samples 1                                     | --samples
pairs, temperature      | sample_pairs     | {pairs} --temperature 0                                 | --temperature
pairs, top-p            | sample_pairs     | {pairs} --top-p 2                                       | --top-p
pairs, length           | sample_pairs     | {pairs} --max-new-tokens 0                              | --max-new-tokens
pairs, batch            | sample_pairs     | {pairs} --batch -1                                      | --batch
pairs, concurrency      | sample_pairs     | {pairs} --concurrency 0                                 | --concurrency
pairs, size             | sample_pairs     | {pairs} --size 0                                        | --size
pairs, side             | sample_pairs     | {pairs} --on middle                                     | --on
pairs, out              | sample_pairs     | {pairs} --out {tmp}/out.csv                             | --out
pairs, no model         | sample_pairs     | {pairs} --model /no/such                                | /no/such
pairs, empty model      | sample_pairs     | {pairs} --model {bad}/empty                             | empty
pairs, device           | sample_pairs     | {pairs} --device tpu9                                   | tpu9
inspect nothing         | inspect_triplets |                                                         | FILE
inspect, no file        | inspect_triplets | /no/such.jsonl                                          | /no/such.jsonl
inspect, empty file     | inspect_triplets | {bad}/empty_file.jsonl                                  | empty_file.jsonl
inspect, text           | inspect_triplets | {bad}/text.txt                                          | text.txt
inspect, tokenizer      | inspect_triplets | {ok} --tokenizer {bad}/empty                            | empty
inspect, no such sample | inspect_triplets | {ok} --tokenizer {model} --tokens zz                    | 'zz'
inspect, what tokens    | inspect_triplets | {ok} --tokens a                                         | --tokens
inspect, what is scored | inspect_triplets | {ok} --score first                                      | --score
inspect, number         | inspect_triplets | {ok} --show some                                        | --show
convert pairs, nothing  | convert_pairs    |                                                         | SOURCE
convert pairs, no file  | convert_pairs    | /no/such.jsonl {tmp}/out.jsonl --to trl                 | /no/such.jsonl
convert pairs, format   | convert_pairs    | {ok} {tmp}/out.jsonl --to parquet                       | --to
convert pairs, no side  | convert_pairs    | {ok} {tmp}/out.jsonl --to trl                           | --side
convert pairs, bad row  | convert_pairs    | {bad}/missing_chosen.jsonl {tmp}/out.jsonl --to trl --side short | missing_chosen.jsonl:1
cache, unknown recipe   | cache_reference  | no_recipe                                               | no_recipe
cache, override         | cache_reference  | solo_dpo {recipe} objective.bta=1                       | objective.bta
cache, layout           | cache_reference  | {recipe} parallel.tensor=3                              | parallel.tensor
cache, data             | cache_reference  | {recipe} data.train=/no/such.jsonl                      | /no/such.jsonl
reference, none needed  | cache_reference  | solo_simpo {recipe}                                     | no reference policy
reference, of adapters  | cache_reference  | solo_dpo {recipe} peft=lora                             | objective.reference=cached
merge, what             | merge_adapter    |                                                         | ADAPTER
merge, no model         | merge_adapter    | /no/such {bad}/adapter {tmp}/out                        | /no/such
merge, swapped          | merge_adapter    | {bad}/adapter {model} {tmp}/out                         | LoRA adapter
merge, no adapter       | merge_adapter    | {model} {bad}/empty {tmp}/out                           | adapter_config.json
merge, destination      | merge_adapter    | {model} {bad}/adapter {bad}/foreign                     | foreign
convert, an adapter     | convert          | import {bad}/adapter {tmp}/out.ck                       | LoRA adapter
convert what            | convert          |                                                         | export
convert, other way      | convert          | across {model} {tmp}/out.ck                             | across
convert, no folder      | convert          | import /no/such {tmp}/out.ck                            | /no/such
convert, a file         | convert          | import {bad}/text.txt {tmp}/out.ck                      | text.txt
convert, family         | convert          | import {bad}/other_family {tmp}/out.ck                  | gpt2
convert, no weights     | convert          | import {bad}/no_weights {tmp}/out.ck                    | no_weights
convert, cut weights    | convert          | import {bad}/cut_weights {tmp}/out.ck                   | cut_weights
convert, no tokenizer   | convert          | import {bad}/no_tokenizer {tmp}/out.ck                  | no_tokenizer
convert, scaling text   | convert          | import {model} {tmp}/out.ck --rope-scaling yarn         | --rope-scaling
convert, scaling kind   | convert          | import {model} {tmp}/out.ck --rope-scaling {"rope_type":"ntk"} | ntk
convert, destination    | convert          | import {model} {bad}/foreign                            | foreign
convert, no checkpoint  | convert          | export /no/such {tmp}/out.hf                            | /no/such
convert, foreign        | convert          | export {bad}/foreign/step_000004 {tmp}/out.hf           | --trust-checkpoint
convert, changed        | convert          | export {bad}/changed/step_000004 {tmp}/out.hf           | __0_0.distcp
convert, no hf          | convert          | export {bad}/without_hf {tmp}/out.hf                    | hf/
convert, shard size     | convert          | export {bad}/named_oddly {tmp}/out.hf --max-shard-size big | --max-shard-size
plan, recipe            | plan             | no_recipe                                               | no_recipe
plan, override          | plan             | objective.bta=1                                         | objective.bta
plan, model             | plan             | model.init=/no/such                                     | /no/such
plan, layout            | plan             | parallel.tensor=3                                       | parallel.tensor
plan, GPUs              | plan             | --gpus 0                                                | --gpus
plan, memory            | plan             | --gpu-memory nan                                        | --gpu-memory
plan, length            | plan             | --length 8G                                             | --length
plan, share             | plan             | --mfu 2                                                 | --mfu
plan, optimizer         | plan             | --optimizer gpu                                         | --optimizer
plan, plot              | plan             | --gpus 1 --plot /proc/no/such.png                       | --plot=/proc/no
collapse, seeds         | collapse         | --seeds 0                                               | --seeds
collapse, rates         | collapse         | --rates 3                                               | --rates
collapse, minutes       | collapse         | --minutes inf                                           | --minutes
collapse, no results    | collapse         | --page --out {tmp}/none                                 | collapse.json
collapse, page elsewhere | collapse        | --page --out {tmp}/none --document {tmp}/none/results/a/b.md | --results
collapse, out           | collapse         | --out /proc/no/such                                     | --out=/proc/no
benchmark what          | benchmark        |                                                         | command
benchmark, command      | benchmark        | speed                                                   | speed
benchmark, length       | benchmark        | step --long 8G --out {tmp}/out.json                     | --long
benchmark, no length    | benchmark        | step --long 0 --out {tmp}/out.json                      | --long
benchmark, system       | benchmark        | step --systems trl_worst --out {tmp}/out.json           | trl_worst
benchmark, repeats      | benchmark        | step --repeats 0 --out {tmp}/out.json                   | --repeats
benchmark, steps        | benchmark        | step --steps 0 --out {tmp}/out.json                     | --steps
benchmark, heads        | benchmark        | step --heads 3 --out {tmp}/out.json                     | --heads
benchmark, budget       | benchmark        | memory --budget 0 --out {tmp}/out.json                  | --budget
benchmark, head         | benchmark        | head --heads tiled --out {tmp}/out.json                 | tiled
benchmark, override     | benchmark        | step --override objective.bta=1 --out {tmp}/out.json    | objective.bta
benchmark, out          | benchmark        | step --out /proc/no/such.json                           | --out=/proc/no
benchmark, suite        | benchmark        | all --suite /no/such.yaml                               | /no/such.yaml
benchmark, entry        | benchmark        | all --only no_such_entry --results {tmp}/out.results    | no_such_entry
evaluate nothing        | evaluate         |                                                         | --model
evaluate, no suite      | evaluate         | --model {model}                                         | --suite
evaluate, suite         | evaluate         | {evaluate} --suite glue                                 | glue
evaluate, suite twice   | evaluate         | {evaluate} --suite builtin,builtin                      | --suite
evaluate, no model      | evaluate         | {evaluate} --model /no/such                             | /no/such
evaluate, empty model   | evaluate         | {evaluate} --model {bad}/empty                          | empty
pairs, transformers 5   | sample_pairs     | {pairs} --model {bad}/newer_family                      | rope_parameters
evaluate, family        | evaluate         | {evaluate} --model {bad}/other_family                   | gpt2
evaluate, transformers 5 | evaluate        | {evaluate} --model {bad}/mistral_common                 | copy tokenizer.json
evaluate, no tokenizer  | evaluate         | {evaluate} --model {bad}/no_tokenizer                   | tokenizer
evaluate, foreign       | evaluate         | {evaluate} --model {bad}/foreign/step_000004            | --trust-checkpoint
evaluate, changed       | evaluate         | {evaluate} --model {bad}/changed/step_000004            | __0_0.distcp
evaluate, limit         | evaluate         | {evaluate} --limit 0                                    | --limit
evaluate, lengths       | evaluate         | {evaluate} --lengths 4G                                 | --lengths
evaluate, length twice  | evaluate         | {evaluate} --lengths 4K,4096                            | --lengths
evaluate, length zero   | evaluate         | {evaluate} --lengths 0                                  | --lengths
evaluate, tokens        | evaluate         | {evaluate} --lengths 2K                                 | 1 to 32, such as 1,2,4,8
evaluate, unread depths | evaluate         | {evaluate} --depths 0,50                                | --depths: is for niah_plus
evaluate, depth         | evaluate         | {evaluate} --depths 0,150                               | --depths
evaluate, seed          | evaluate         | {evaluate} --seeds -1                                   | --seeds
evaluate, answer length | evaluate         | {evaluate} --max-new-tokens 0                           | --max-new-tokens
evaluate, yarn          | evaluate         | {evaluate} --yarn 0.5                                   | --yarn
evaluate, yarn, server  | evaluate         | {evaluate} --yarn 4 --base-url http://127.0.0.1:9/v1    | --yarn
evaluate, no server     | evaluate         | {evaluate} --base-url http://127.0.0.1:9/v1             | --base-url
evaluate, window        | evaluate         | {evaluate} --window 4096                                | --window
evaluate, concurrency   | evaluate         | {evaluate} --concurrency 0                              | --concurrency
evaluate, out           | evaluate         | {evaluate} --out /proc/no/such                          | --out=/proc/no
evaluate, math          | evaluate         | {evaluate} --suite open_llm                             | MATH
compare, no folder      | evaluate         | --compare /no/such --out {tmp}/out.page                 | /no/such
compare, other folder   | evaluate         | --compare {bad}/empty --out {tmp}/out.page              | empty
compare and evaluate    | evaluate         | --compare {bad} --model {model} --suite builtin         | --compare
"""

LAUNCHED = {
    "world not divisible": (["parallel.tensor=2"], {"RANK": "0", "WORLD_SIZE": "3"}, "world of 3"),
    "data ranks of another world": (["parallel.data=4"], {"RANK": "0", "WORLD_SIZE": "2"}, "parallel.data"),
    "batch of another world": (
        ["trainer.global_batch=4", "trainer.micro_batch=2"],
        {"RANK": "0", "WORLD_SIZE": "3"},
        "trainer.global_batch",
    ),
    "rank that is no number": ([], {"RANK": "first", "WORLD_SIZE": "2"}, "RANK"),
    "world that is no number": ([], {"RANK": "0", "WORLD_SIZE": "all"}, "WORLD_SIZE"),
}
