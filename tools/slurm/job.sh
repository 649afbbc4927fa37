# The body of the batch scripts that launch.sh submits; their head sets the lower-case variables.
# One torchrun a node. A run that stops (ahead of the time limit, by preemption) or crashes goes back into the queue and
# on from its last checkpoint, until it has started max_restarts times in a row without progress.
# shellcheck shell=bash disable=SC2154
set -u

job=$SLURM_JOB_ID
start=${SLURM_RESTART_COUNT:-0}
codes=$output_dir/slurm/exit-codes-$job-$start
starts=$output_dir/slurm/starts
step=""
stopped_by=""

say() { printf 'launch: %s\n' "$*"; }

# What a run has to show: its newest checkpoint, and how much of the reference policy has been scored. What a tool has
# to show: the files whose names begin with its --out.
progress() {
    local path
    for path in "${watched[@]}"; do
        if [[ $path == "$output_dir/checkpoints" ]]; then
            find "$path" -mindepth 1 -maxdepth 1 -name 'step_*' -printf '%f\n' | sort | tail -n 1
        else
            find "$(dirname "$path")" -path "$path*" -not -path "$output_dir/slurm/*" -not -path "$output_dir/logs/*" \
                -type f -printf '%p %s\n' | sort
        fi
    done 2>/dev/null | cksum
}

give_up() {
    say "error: $((max_restarts + 1)) starts in a row without a new checkpoint, not started again: the log above says" \
        "why they ended; launch with the same arguments to go on from the last checkpoint"
    exit 1
}

# Counts starts in a row that found nothing new; also those after which Slurm itself requeued (a node failed).
count_start() {
    local before=""
    fruitless=0
    now=$(progress)
    if [[ -f $starts ]]; then { read -r fruitless && read -r before; } <"$starts"; fi
    if [[ $now == "$before" ]]; then fruitless=$((fruitless + 1)); else fruitless=0; fi
    printf '%s\n' "$fruitless" "$now" >"$starts"
    if ((fruitless > max_restarts)); then give_up; fi
}

# srun passes USR1 on to the ranks; TERM would make it kill them.
stop() {
    stopped_by=$1
    say "$1: the run saves and stops"
    if [[ -n $step ]]; then kill -USR1 "$step" 2>/dev/null; fi
}

# Sets container: what stands before the command of a task.
enter_container() {
    local name mount
    container=()
    case $runtime in
        pyxis)
            srun_options+=("--container-image=$image" "--container-workdir=$root")
            srun_options+=("--container-mounts=$(IFS=,; printf '%s' "${mounts[*]}")" "${container_options[@]}")
            ;;
        apptainer)
            container=(apptainer exec --pwd "$root")
            if ((gpus)); then container+=(--nv); fi
            for mount in "${mounts[@]}"; do container+=(--bind "$mount"); done
            container+=("${container_options[@]}" "$image")
            ;;
        docker)
            container=(docker run --rm --init --network host --ipc host --user "$(id -u):$(id -g)" --workdir "$root")
            container+=(--label "slurm-job=$job" -e HOME=/tmp -e PYTHONPATH -e SLURM_NODEID -e SOLOPO_EXIT_CODES)
            for name in "${passed_on[@]}"; do container+=(-e "$name"); done
            if ((gpus)); then container+=(--gpus all -e CUDA_VISIBLE_DEVICES); fi
            for mount in "${mounts[@]}"; do container+=(--volume "$mount"); done
            container+=("${container_options[@]}" "$image")
            ;;
    esac
}

# The engine's containers outlive a killed task.
remove_containers() {
    [[ $runtime == docker ]] || return 0
    # shellcheck disable=SC2016
    srun --ntasks-per-node=1 bash -c 'docker ps -q --filter "label=slurm-job=$1" | xargs -r docker rm -f' _ "$job"
}

# Runs all nodes and sets outcome, from srun's exit code and the one that each node leaves in a file.
run() {
    local code found
    mkdir -p "$codes"
    srun "${srun_options[@]}" "${container[@]}" "${torchrun[@]}" "${program[@]}" </dev/null &
    step=$!
    # a signal that came before the line above has not been passed on
    if [[ -n $stopped_by ]]; then kill -USR1 "$step" 2>/dev/null; fi
    # wait also returns when a signal is trapped
    while code=0; wait "$step" || code=$?; kill -0 "$step" 2>/dev/null; do :; done
    step=""
    found=" $(cat "$codes"/* 2>/dev/null | tr '\n' ' ')"
    rm -rf "$codes"
    case "$code:$found" in
        0:*) outcome=finished ;;
        *" 2 "*) outcome=refused ;;
        *" 75 "*) outcome=stopped ;;
        *) if [[ -n $stopped_by ]]; then outcome=stopped; else outcome=crashed; fi ;;
    esac
}

again() {
    if ((chained)); then
        say "$outcome; the next job of the chain goes on"
    elif [[ $stopped_by == SIGTERM ]]; then
        # scancel ends the job for good; what Slurm preempts it requeues by itself
        say "$outcome, ended by Slurm; not requeued from here"
    elif ((!requeue)); then
        say "$outcome; not requeued (--no-requeue): launch with the same arguments to go on"
    elif ((fruitless >= max_restarts)) && [[ $(progress) == "$now" ]]; then
        give_up
    else
        say "$outcome; requeued, to go on from the last checkpoint"
        scontrol requeue "$job" ||
            say "this cluster does not requeue: launch with the same arguments to go on, or use --chain"
    fi
}

trap 'stop SIGUSR1' USR1
trap 'stop SIGTERM' TERM
cd "$root" || exit 1
# after sbatch --export=NONE, srun would keep these from the tasks
unset SLURM_EXPORT_ENV
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
say "job $job, start $start, on $SLURM_JOB_NODELIST, commit $commit"
count_start

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
torchrun+=(--rdzv-id "$job.$start" --master-addr "$head_node" --master-port $((20000 + job % 10000)))
export SOLOPO_EXIT_CODES=$codes
enter_container
run
case $outcome in
    finished) say "finished" ;;
    refused)
        say "error: bad configuration or data (see the line above); not requeued"
        exit 2
        ;;
    stopped)
        again
        exit 75
        ;;
    crashed)
        remove_containers
        again
        exit 1
        ;;
esac
