#!/usr/bin/env bash
# Submits a recipe to Slurm. tools/launch.sh --help
# `solopo launch` runs the copy of this script that is part of the installed package, and sets SOLOPO_PYTHON (its
# interpreter) and SOLOPO_VERSION: the job then runs in the current folder, and not in a checkout.
set -euo pipefail
unset CDPATH

usage() {
    cat <<'TEXT'
usage: tools/launch.sh [options] recipes/solo_dpo.py [overrides]     in a checkout
       solopo launch [options] solo_dpo [overrides]                  anywhere, with the package installed

Submits a recipe, a tool, or another program for torchrun, to Slurm: one torchrun a node, every argument as it stands
(sampling, evaluation and growth are one process on one node, which may start its own server: --serve). Ahead of
the time limit and on preemption the run saves and goes back into the queue, as it does after a crash or the failure of
a node, until it has finished. The batch script and the commit are kept in OUTPUT_DIR/slurm, the log in OUTPUT_DIR/logs.

resources
  --nodes N               nodes (1)
  --gpus-per-node G       GPUs, and ranks, of each node (0: train on CPUs); where the site takes --gres only, add
                          --sbatch=--gres=gpu:G
  --ranks-per-node R      ranks of each node without GPUs (1)
  --cpus-per-node C       CPU cores of each node, for all its ranks (what the cluster gives)
  --time LIMIT            MINUTES, HH:MM:SS or D-HH:MM:SS (what the partition gives)
  --partition P, --account A, --job-name NAME, --dependency LIST
                          as sbatch takes them
  --sbatch OPTION         any other option of sbatch, as in --sbatch=--qos=high; may be repeated. With
                          --sbatch=--no-requeue the job ends where it would requeue

restarts
  --grace SECONDS         how long before the time limit the run is told to save and stop (180)
  --max-restarts N        restarts in a row without progress before it is given up (3)
  --chain N               N jobs, each going on where the one before stopped, instead of requeueing

environment
  --env NAME=VALUE        set in the job; written into the batch script
  --env NAME              taken from here when the job is submitted, written nowhere: for keys and tokens
  --container IMAGE       run in this image, through pyxis, apptainer or docker, whichever is found
  --container-runtime R   pyxis, apptainer or docker, where the nodes have another one than this machine
  --mounts SRC:DST[:ro],...
                          folders for the container; the current folder and the output folder are mounted anyway
  --container-option O    any other option of the container runtime (of srun, with pyxis); may be repeated
  PYTHON=...              the interpreter of the nodes (.venv/bin/python if there is one, or solopo's own; in a
                          container python)

  --dry-run               print the batch script, write and submit nothing
  -h, --help
TEXT
}

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -n ${SOLOPO_PYTHON-} ]]; then root=$PWD; else root=$(dirname "$here"); fi
nodes=1 gpus=0 ranks="" cpus="" limit="" partition="" account="" job_name="" dependency=""
grace=180 max_restarts=3 chain=1 image="" runtime=none dry_run=false requeue=1 gres=false
program=() watched=() sbatch_options=() settings=() passed_on=() mounts=() container_options=()

add_env() {
    local name=${1%%=*}
    [[ $name =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || fail "--env $1: not NAME or NAME=VALUE"
    if [[ $1 != *=* ]]; then
        [[ -v $name ]] || fail "--env $name: not set here; export it first"
        export "${name?}"
    elif [[ ${name^^} =~ KEY|TOKEN|SECRET|PASSW|CREDENTIAL ]]; then
        fail "--env $name=...: would be readable in the batch script; export it and give --env $name"
    else
        settings+=("$1")
    fi
    passed_on+=("$name")
}

read_options() {
    local option value
    while (($#)); do
        option=$1
        shift
        case $option in
            -h | --help)
                usage
                exit 0
                ;;
            --dry-run)
                dry_run=true
                continue
                ;;
            --*=*)
                value=${option#*=}
                option=${option%%=*}
                ;;
            -*)
                value=${1-}
                shift "$(($# > 0))"
                ;;
            *)
                program=("$option" "$@")
                return
                ;;
        esac
        [[ $value != *[[:cntrl:]]* || $option == --env ]] || fail "$option: no line breaks, please"
        case $option in
            --nodes) nodes=$value ;;
            --gpus-per-node) gpus=$value ;;
            --ranks-per-node) ranks=$value ;;
            --cpus-per-node) cpus=$value ;;
            --time) limit=$value ;;
            --partition) partition=$value ;;
            --account) account=$value ;;
            --job-name) job_name=$value ;;
            --dependency) dependency=$value ;;
            --sbatch) sbatch_options+=("$value") ;;
            --grace) grace=$value ;;
            --max-restarts) max_restarts=$value ;;
            --chain) chain=$value ;;
            --env) if [[ -n $value ]]; then add_env "$value"; fi ;;
            --container) image=$value ;;
            --container-runtime) runtime=$value ;;
            --mounts) IFS=, read -ra mounts <<<"$value" ;;
            --container-option) container_options+=("$value") ;;
            *) fail "unknown option $option; --help lists them" ;;
        esac
        [[ -n $value ]] || fail "$option needs a value"
    done
    fail "no program given, such as recipes/solo_dpo.py; see --help"
}

seconds_of() { # a time limit
    local days=0 rest=$1 parts
    if [[ $rest == *-* ]]; then
        days=${rest%%-*}
        rest=${rest#*-}
        IFS=: read -ra parts <<<"$rest:0:0"
    else
        IFS=: read -ra parts <<<"$rest"
        case ${#parts[@]} in
            1) parts=(0 "${parts[0]}" 0) ;;
            2) parts=(0 "${parts[@]}") ;;
        esac
    fi
    echo $((days * 86400 + 10#${parts[0]} * 3600 + 10#${parts[1]} * 60 + 10#${parts[2]}))
}

whole() { # VARIABLE OPTION MINIMUM
    local -n number=$1
    if ! [[ $number =~ ^[0-9]{1,6}$ ]] || ((10#$number < $3)); then
        fail "$2 $number: must be a whole number of at least $3"
    fi
    number=$((10#$number))
}

check_options() {
    whole nodes --nodes 1
    whole gpus --gpus-per-node 0
    if [[ -n $ranks ]]; then whole ranks --ranks-per-node 1; fi
    if [[ -n $cpus ]]; then whole cpus --cpus-per-node 1; fi
    whole grace --grace 1
    whole max_restarts --max-restarts 0
    whole chain --chain 1
    if ((gpus)); then
        [[ -z $ranks || $ranks == "$gpus" ]] || fail "--ranks-per-node $ranks: with --gpus-per-node $gpus it is $gpus"
        ranks=$gpus
    fi
    ranks=${ranks:-1}
    if [[ -n $limit ]]; then
        [[ $limit =~ ^([0-9]{1,4}-)?[0-9]{1,6}(:[0-5]?[0-9]){0,2}$ ]] ||
            fail "--time $limit: must look like 90 (minutes), 04:00:00 or 1-12:00:00"
        (($(seconds_of "$limit") > grace)) ||
            fail "--time $limit: leaves no time to train; the run is told to stop $grace s before the end (--grace)"
    fi
    local mount option
    for mount in "${mounts[@]}"; do
        [[ $mount =~ ^/[^:]*:/[^:]*(:r[ow])?$ ]] || fail "--mounts $mount: must be /SOURCE:/DESTINATION or .../DESTINATION:ro"
    done
    for option in "${sbatch_options[@]}"; do
        [[ $option == --?* ]] || fail "--sbatch $option: must be an option, as in --sbatch=--qos=high"
        case $option in
            --no-requeue) requeue=0 ;;
            --array | --array=*) fail "--sbatch $option: the jobs of an array would write into one output folder; launch" \
                "once for each output_dir" ;;
            --gres=*gpu*)
                ((gpus)) || fail "--sbatch $option: needs --gpus-per-node, which also sets the ranks of a node"
                [[ ,${option#*=}, =~ ,gpu(:[^,:]*[^0-9,:][^,:]*)?(:([0-9]+))?, && ${BASH_REMATCH[3]:-1} == "$gpus" ]] ||
                    fail "--sbatch $option: must ask for gpu:$gpus, as --gpus-per-node $gpus"
                gres=true
                ;;
            --nodes* | --ntasks* | --signal* | --output* | --open-mode*) fail "--sbatch $option: launch.sh sets it" ;;
        esac
    done
    [[ $runtime =~ ^(none|pyxis|apptainer|docker)$ ]] || fail "--container-runtime $runtime: pyxis, apptainer or docker"
    if [[ -z $image ]]; then
        [[ $runtime == none ]] || fail "--container-runtime $runtime: needs --container IMAGE"
        ((${#mounts[@]} + ${#container_options[@]} == 0)) || fail "--mounts and --container-option need --container IMAGE"
    fi
    refuse_credentials
    [[ $PWD == "$root" ]] || fail "run this in the repository root, $root"
    # the name of a command of solopo, or a file
    if [[ ${program[0]} =~ ^[a-z_]+$ && ! -e ${program[0]} ]]; then
        program=(-m solopo_nemo "${program[@]}")
    else
        [[ -f ${program[0]} ]] || fail "${program[0]}: no such program; recipes are in recipes/"
    fi
}

# The batch script holds every word of the program, also those of --serve and --sampling.
refuse_credentials() {
    local word name='(([a-z]+[-_])*api[-_]?key|((hf|auth|access|bearer)[-_])?token|([a-z]+[-_])*(password|secret))'
    local option="--$name([=[:space:]]+[^[:space:]]|\$)" query="://[^[:space:]]*[?&](key|sig|signature|code|$name)="
    local user='://[^[:space:]/?#]*@|://[^[:space:]/?#:]*:[^[:space:]]*[^/[:space:]]@'
    for word in "${program[@]:1}"; do
        if [[ ${word,,} =~ $option|$user|$query || $word =~ (KEY|TOKEN|PASSWORD|SECRET)=[^[:space:]] ]]; then
            fail "${program[0]}: a password or key in an argument would be readable in the batch script; export" \
                "OPENAI_API_KEY (for --serve what the server reads, such as VLLM_API_KEY) and give --env NAME"
        fi
    done
}

choose_runtime() {
    [[ -n $image ]] || return 0
    if [[ $runtime == none ]]; then
        if srun --help 2>/dev/null | grep -q -- --container-image; then
            runtime=pyxis
        elif command -v apptainer >/dev/null; then
            runtime=apptainer
        elif docker info >/dev/null 2>&1; then
            runtime=docker
        elif $dry_run; then
            runtime=pyxis
            printf 'note: %s\n' "no container runtime here; the script is the one for pyxis (--container-runtime)" >&2
        else
            fail "--container: neither pyxis nor apptainer nor a running docker found here; where only the nodes have" \
                "one, name it with --container-runtime"
        fi
    fi
    [[ ! -e $image || $image == /* ]] || image=$PWD/$image
    if [[ ! -e $image ]]; then
        case $runtime in
            # enroot wants REGISTRY#IMAGE
            pyxis) if [[ $image =~ ^([^/#]+[.:][^/#]*|localhost)/ ]]; then image=${image/\//#}; fi ;;
            apptainer) if [[ $image != *://* ]]; then image=docker://$image; fi ;;
        esac
    fi
}

# Sets output_dir, from the checked configuration where this machine can read it.
check_program() {
    local own=${SOLOPO_PYTHON-} argument recipe is_recipe=false is_tool=false overrides out="" previous=""
    if [[ -z $own && -x $root/.venv/bin/python ]]; then own=$root/.venv/bin/python; fi
    if [[ -z $own ]]; then own=$(command -v python3) || own=""; fi
    if [[ -n $image ]]; then
        python=${PYTHON:-python}
    else
        own=$(command -v "${PYTHON:-$own}") || fail "${PYTHON:-python3}: no such Python"
        python=$own
    fi
    if [[ ${program[0]} == -m ]]; then
        recipe=${program[2]} overrides=("${program[@]:3}") is_recipe=true
    else
        recipe=$(basename "${program[0]}" .py) overrides=("${program[@]:1}")
        if [[ ${program[0]} -ef recipes/$recipe.py || ${program[0]} -ef tools/cache_reference.py ]]; then is_recipe=true; fi
    fi
    case $recipe in
        sample_pairs | evaluate | build_contexts | build_questions | grow)
            if [[ ${program[0]} == -m || ${program[0]} -ef tools/$recipe.py ]]; then
                ((nodes == 1 && (gpus || ranks == 1))) ||
                    fail "--nodes $nodes, --ranks-per-node $ranks: $recipe is one process: give one node, and its GPUs"
                ranks=1 is_tool=true
            fi
            ;;
    esac
    if $is_recipe && [[ $recipe == cache_reference ]]; then # its first argument may name a recipe
        recipe=solo_dpo
        if [[ ${overrides[0]-=} != *=* ]]; then recipe=${overrides[0]} overrides=("${overrides[@]:1}"); fi
    fi
    output_dir=outputs/$recipe
    for argument in "${overrides[@]}"; do
        if [[ $argument == output_dir=* ]]; then output_dir=${argument#*=}; fi
        if [[ $argument == --out=* ]]; then out=${argument#*=}; elif [[ $previous == --out ]]; then out=$argument; fi
        previous=$argument
    done
    if $is_tool && [[ -z $out ]]; then fail "$recipe: give --out, where a restart looks for progress"; fi
    # a tool writes --out, a folder, or a file with others of its name
    if [[ -n $out ]]; then
        is_recipe=false
        [[ $out == /* ]] || out=$root/$out
        output_dir=$out
        if [[ ${out##*/} == *.* ]]; then output_dir=$(dirname "$out"); fi
    fi
    if $is_recipe; then
        if [[ -n $own ]] && "$own" -c 'from importlib.util import find_spec as f; exit(not (f("hydra") and f("torch")))'; then
            output_dir=$(PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} "$own" -m solopo_nemo.training.preflight \
                "$recipe" "$((nodes * ranks))" "${overrides[@]}") || exit
        else
            printf 'note: %s\n' "no Python with the requirements here; the job checks the configuration" >&2
        fi
    fi
    [[ $output_dir == /* ]] || output_dir=$root/$output_dir
    [[ $output_dir != *[[:cntrl:]]* ]] || fail "output_dir: no line breaks, please"
    [[ -z $image || $output_dir != *[,:]* ]] || fail "output_dir=$output_dir: no comma or colon, please, with --container"
    if [[ -n $out ]]; then
        watched=("$out")
    else
        watched=("$output_dir/checkpoints" "$output_dir/reference")
    fi
    mounts=("$root:$root" "$output_dir:$output_dir" "${mounts[@]}")
    job_name=${job_name:-$recipe}
}

directive() { # quoted as sbatch reads it
    local value=$2
    value=${value//\\/\\\\}
    printf '#SBATCH %s="%s"\n' "$1" "${value//\"/\\\"}"
}

assign() { printf '%s=%q\n' "$1" "$2"; }

assign_list() {
    printf '%s=(' "$1"
    shift
    if (($#)); then printf ' %q' "$@"; fi
    printf ' )\n'
}

write_script() {
    local setting srun_options=(--ntasks-per-node=1 --kill-on-bad-exit=1 --cpu-bind=none) option
    echo '#!/bin/bash'
    directive --job-name "$job_name"
    echo "#SBATCH --nodes=$nodes --ntasks-per-node=1"
    if ((gpus)) && ! $gres; then echo "#SBATCH --gpus-per-node=$gpus"; fi
    if [[ -n $cpus ]]; then
        echo "#SBATCH --cpus-per-task=$cpus"
        srun_options+=("--cpus-per-task=$cpus")
    fi
    if [[ -n $limit ]]; then echo "#SBATCH --time=$limit"; fi
    if [[ -n $partition ]]; then directive --partition "$partition"; fi
    if [[ -n $account ]]; then directive --account "$account"; fi
    if [[ -n $dependency ]]; then directive --dependency "$dependency"; fi
    for option in "${sbatch_options[@]}"; do
        if [[ $option == *=* ]]; then directive "${option%%=*}" "${option#*=}"; else echo "#SBATCH $option"; fi
    done
    if ((requeue)); then option="--requeue "; else option=""; fi
    echo "#SBATCH $option--open-mode=append --signal=B:USR1@$grace"
    directive --output "${output_dir//%/%%}/logs/slurm-%j.log"
    printf '\n# %s\n' "Written by launch.sh, commit $commit"
    assign root "$root"
    assign output_dir "$output_dir"
    assign_list watched "${watched[@]}"
    assign requeue "$requeue"
    assign commit "$commit"
    assign gpus "$gpus"
    assign max_restarts "$max_restarts"
    assign chained $((chain > 1))
    assign runtime "$runtime"
    assign image "$image"
    assign_list mounts "${mounts[@]}"
    assign_list container_options "${container_options[@]}"
    assign_list passed_on "${passed_on[@]}"
    assign_list srun_options "${srun_options[@]}"
    assign_list torchrun "$python" -m solopo_nemo.training.torchrun --nnodes "$nodes" --nproc-per-node "$ranks"
    assign_list program "${program[@]}"
    for setting in "${settings[@]}"; do printf 'export %s=%q\n' "${setting%%=*}" "${setting#*=}"; done
    echo
    cat "$here/slurm/job.sh"
}

# An output folder belongs to one job at a time.
check_unused() {
    local jobs=$output_dir/slurm/jobs active
    [[ -f $jobs && -z $dependency ]] || return 0
    active=$(squeue --noheader --format=%i --jobs "$(<"$jobs")" 2>/dev/null | head -n 1) || true
    [[ -z $active ]] || fail "$output_dir is in use by job $active: scancel it, or wait with" \
        "--dependency afterany:$active, or choose another output_dir"
}

submit() {
    local script ids=() id said wait_for=() link
    command -v sbatch >/dev/null || fail "sbatch: not found; submit from a machine of the cluster, or see --dry-run"
    check_unused
    if ! mkdir -p "$output_dir/logs" "$output_dir/slurm" 2>/dev/null || [[ ! -w $output_dir/slurm ]]; then
        fail "output_dir=$output_dir: cannot be written"
    fi
    rm -f "$output_dir/slurm/starts"
    # a user's variables of sbatch win over the directives of a script
    unset SBATCH_ARRAY_INX SBATCH_SIGNAL SBATCH_OPEN_MODE SBATCH_OUTPUT SBATCH_JOB_NAME
    if [[ -n $limit ]]; then unset SBATCH_TIMELIMIT; fi
    if [[ -n $partition ]]; then unset SBATCH_PARTITION; fi
    if [[ -n $account ]]; then unset SBATCH_ACCOUNT; fi
    script=$output_dir/slurm/job.sh
    write_script >"$script"
    for ((link = 1; link <= chain; link++)); do
        if ! said=$(sbatch --parsable "${wait_for[@]}" "$script" 2>&1); then
            ((${#ids[@]} == 0)) || scancel "${ids[@]}"
            rm -f "$script"
            fail "not submitted: $(tr -s '\n' ' ' <<<"$said")"
        fi
        # warnings come before the id
        id=${said##*$'\n'}
        ids+=("${id%%;*}")
        # every link waits for all before it, so that none starts once one has finished
        wait_for=(--kill-on-invalid-dep=yes "--dependency=$(printf ',afternotok:%s' "${ids[@]}" | cut -c 2-)")
    done
    (IFS=,; echo "${ids[*]}") >"$output_dir/slurm/jobs"
    mv "$script" "$output_dir/slurm/job-${ids[0]}.sh"
    echo "$commit" >"$output_dir/slurm/job-${ids[0]}.commit"
    printf 'submitted %s\nlog: %s\n' "${ids[*]}" "$output_dir/logs/slurm-${ids[0]}.log"
}

read_options "$@"
check_options
choose_runtime
check_program
commit=${SOLOPO_VERSION:+unknown (solopo_nemo $SOLOPO_VERSION)}
[[ -n $commit ]] || commit=$(git -C "$root" describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)
if $dry_run; then write_script; else submit; fi
